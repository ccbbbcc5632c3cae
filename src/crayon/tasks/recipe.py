"""Presets fitted to a user's own images.

A preset is made for tens of thousands of images. As many passes over a thousand would be too few updates to learn much,
so the fewer there are, the more often each is seen, in smaller batches. What the numbers below were chosen and checked
on stands in benchmarks/LOG.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crayon import data
from crayon.config.names import as_flag, flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.report.events import Emit, Message, ignore
from crayon.tasks.jobs import find, get

SHORTER = 0.5
"""For a share r of the images that a preset is for, r to this power of the images that it sees in all."""
SMALLEST_BATCH = 64
"""Batches shrink with the root of the number of images, but not below this, and `lr` with the root of the batch."""
LOOKS = 10
"""About how often the validation split is looked at: the best of many looks at few images is the luckiest."""
MANY_PASSES = 40
"""Classifiers that see each image this often have it changed more (`augment.trivial`), which in fewer only costs."""
HALF_LIFE = 5_000.0
"""`optim.ema_images` where a preset has none."""
FITTED = (
    "epochs",
    "global_batch_size",
    "lr",
    "eval.every_epochs",
    "eval.latest",
    "optim.ema_images",
    "optim.ema_statistics",
    "augment.trivial",
)
"""What follows from the images, unless it is asked for."""


def changes(preset: Experiment, made_for: int, images: int, epochs: int | None = None) -> dict[str, Scalar]:
    """What fits `images` training images better than a preset that was made for more, by dotted name. epochs: where
    they are asked for."""
    made_for = min(made_for, preset.data.size or made_for)
    share = images / made_for
    if share >= 1:
        return {}
    epochs = epochs or max(preset.epochs, round(preset.epochs * share ** (SHORTER - 1)))
    largest = preset.global_batch_size
    wanted = min(max(largest * share**0.5, SMALLEST_BATCH), largest, max(1, images // 2))
    batch = largest if wanted == largest else 1 << (int(wanted).bit_length() - 1)  # a power of two
    return {
        "epochs": epochs,
        "global_batch_size": batch,
        "lr": float(f"{preset.lr * (batch / largest) ** 0.5:.2g}"),
        "eval.every_epochs": max(preset.eval.every_epochs, round(epochs / LOOKS)),
        "eval.latest": True,
        "optim.ema_images": preset.optim.ema_images or HALF_LIFE,
        "optim.ema_statistics": True,
        "augment.trivial": preset.augment.trivial or (preset.needs_labels and epochs >= MANY_PASSES),
    }


def fitted(config: Experiment, kept: Mapping[str, Any] | None = None, emit: Emit = ignore) -> Experiment:
    """`config` with what fits the user's own images, where there are any; told. What was asked for stays: what is
    `given`, or differs from the preset. Raises BadInput where the images' folder isn't what the job needs.

    kept: the settings of what goes on, where it was decided before; images that were added or removed since then don't
        make it another run.
    """
    preset = get(config.job, config.preset)
    made_for = find(config.job).images
    if (
        not made_for
        or (images := data.training_images(config.data, labels=config.needs_labels, emit=emit)) is None
    ):
        return config
    before, now = flatten(preset), flatten(config)
    asked = config.given | {name for name in FITTED if now[name] != before[name]}
    epochs = config.epochs if "epochs" in asked else None
    found: Mapping[str, Any] = changes(preset, made_for, images, epochs) if kept is None else kept
    new = {name: found[name] for name in FITTED if name in found and name not in asked}
    if kept is None and "global_batch_size" in new:
        new["global_batch_size"] = max(new["global_batch_size"], config.max_workers)
    if "global_batch_size" in asked:
        new.pop("lr", None)  # it followed from the batch
    config = dataclasses.replace(override(config, new), given=asked)
    if kept is None and (text := told(config, images)):
        emit(Message(text))
    return config


def told(config: Experiment, images: int) -> str:
    """What `fitted` changed for so many images, in a sentence; empty where it changed nothing."""
    before, now = flatten(get(config.job, config.preset)), flatten(config)
    new = [name for name in FITTED if name not in config.given and now[name] != before[name]]
    if not new:
        return ""
    words = [" ".join(as_flag(name, now[name])) for name in new]
    return f"The preset {config.preset} is fitted to about {images:,} images: {' '.join(words)}."
