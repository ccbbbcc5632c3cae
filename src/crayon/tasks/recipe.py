"""Presets fitted to a user's own images, and to the number of workers.

A preset is made for tens of thousands of images. As many passes over a thousand would be too few updates to learn much,
so the fewer there are, the more often each is seen, in smaller batches. What the numbers below were chosen and checked
on stands in benchmarks/LOG.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from crayon import data
from crayon.config.names import as_flag, flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.data.validate import brought
from crayon.report.events import Emit, Message, ignore
from crayon.tasks.jobs import find, get

SHORTER = 0.5
"""For a share r of the images that a preset is for, r to this power of the images that it sees in all."""
SMALLEST_BATCH = 64
"""Batches shrink with the root of the number of images, but not below this, and `lr` with the root of the batch."""
LOOKS = 10
"""About how often the validation split is looked at: the best of many looks at few images is the luckiest."""
MANY_WORKERS = "full"
"""The preset of which each worker keeps the images of a step that one has, as far as its job allows (`scales_to`)."""
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


def scaled(preset: Experiment, workers: int) -> dict[str, Scalar]:
    """What fits so many workers better than a preset that was made for one, by dotted name: a larger batch, `lr` in
    proportion, which the warm-up bears (benchmarks/LOG.md). Nothing where each of them has its share of the batch."""
    workers = min(workers, find(preset.job).scales_to)
    if preset.preset != MANY_WORKERS or workers < 2:
        return {}
    return {"global_batch_size": workers * preset.global_batch_size, "lr": workers * preset.lr}


def fitted(
    config: Experiment,
    kept: Mapping[str, Any] | None = None,
    emit: Emit = ignore,
    count: Callable[[], int | None] | None = None,
) -> Experiment:
    """`config` with what fits the user's own images, where there are any, and the workers; told. What was asked for
    stays: what is `given`, or differs from the preset. Raises BadInput where the images' folder isn't what the job
    needs.

    kept: the settings of what goes on, where it was decided before; images that were added or removed since then don't
        make it another run.
    count: how many training images there are, where that isn't to be seen from here; else they are counted.
    """
    preset = get(config.job, config.preset)
    made_for = find(config.job).images
    images: int | None = None
    if made_for and kept is None:
        count = count or partial(data.training_images, config.data, labels=config.needs_labels, emit=emit)
        images = count()
    before, now = flatten(preset), flatten(config)
    asked = config.given | {name for name in FITTED if now[name] != before[name]}
    epochs = config.epochs if "epochs" in asked else None
    found: Mapping[str, Any] = kept or {}
    if kept is None:
        found = (changes(preset, made_for, images, epochs) if made_for and images else {}) or scaled(
            preset, config.max_workers
        )
    elif not (
        made_for and brought(config.data)
    ):  # of others only what follows from the workers that the run began with
        ways = (scaled(preset, workers) for workers in range(find(config.job).scales_to, 0, -1))
        found = next(way for way in ways if way.items() <= kept.items())
    new = {name: found[name] for name in FITTED if name in found and name not in asked}
    if kept is None and "global_batch_size" in new:
        new["global_batch_size"] = max(new["global_batch_size"], config.max_workers)
    if "global_batch_size" in asked:
        new.pop("lr", None)  # it followed from the batch
    config = dataclasses.replace(override(config, new), given=asked)
    if kept is None and (text := told(config, images)):
        emit(Message(text))
    return config


def told(config: Experiment, images: int | None) -> str:
    """What `fitted` changed for so many images, or workers, in a sentence; empty where it changed nothing."""
    preset = get(config.job, config.preset)
    before, now = flatten(preset), flatten(config)
    new = [name for name in FITTED if name not in config.given and now[name] != before[name]]
    if not new:
        return ""
    words = [" ".join(as_flag(name, now[name])) for name in new]
    few = f" to about {images:,} images" if images else ""
    if config.preset == MANY_WORKERS and config.lr > preset.lr:
        few = f" to {config.max_workers} workers"
    return f"The preset {config.preset} is fitted{few}: {' '.join(words)}."
