"""`generate`: the images of many seeds, as PNG files or arrays, in blocks that are whole or absent."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from crayon.data.values import FLAT
from crayon.errors import BadInput
from crayon.report.events import Message
from crayon.report.plots import image_grid
from crayon.use import png
from crayon.use.model import Model, load
from crayon.use.output import Content, Output, identity
from crayon.use.seeds import Seeds
from crayon.use.settings import Context, GenerateConfig
from crayon.use.spread import BlockFunction, opener, run_blocks

GRID = 64
"""Images in the picture that is left beside them."""
MOST_BLOCKS = 1_000_000
SAME = 4
"""A standard deviation of each pixel over the images, of 0..255, below which they are nearly the same."""


def run(settings: GenerateConfig, context: Context) -> None:
    """Leaves, in `--out`:

        grid.png             the first 64 images
        block-000000/        1024 files seed-000000000.png ..., with --format png
        block-000000.npy     or one array uint8 (images, channels, height, width)
        result.json          which seeds are in which block, in order, and where they come from; written last

    The same seed is the same image, to the byte, whatever else is asked for and on how many workers, on one kind of
    processor. Raises CrayonError.
    """
    seeds, size = Seeds(settings.seeds).distinct(), settings.block
    model = load(settings.run, settings.checkpoint, settings.device)
    model.needs("generate")
    about = identity(settings, model, step=model.step, seeds=seeds.text, device=model.device.type)
    output = Output(settings.out, about)
    if seeds.count > MOST_BLOCKS * size:
        raise BadInput(
            f"--seeds {settings.seeds} are {seeds.count:,} images, and at most {MOST_BLOCKS:,} blocks of --block "
            f"{size:,} are made; ask for fewer, or give a larger --block."
        )
    starts = range(0, seeds.count, size)
    counts = [min(size, seeds.count - start) for start in starts]
    names = [f"block-{k:06d}{'.npy' if settings.format == 'npy' else ''}" for k in range(len(starts))]
    with output.locked():
        if (found := output.result()) is not None:
            context.emit(Message(f"{output.path} has all {found['images']:,} images already."))
            return
        if settings.format == "npy":
            missing = sum(n for name, n in zip(names, counts, strict=True) if not output.holds(name))
            _check_room(output, missing * math.prod(model.form.shape))
        first = model.generate(torch.tensor(seeds.slice(0, GRID)))
        output.picture("grid", image_grid(first, scale=2))
        if text := remark(first):
            text += f" The model was trained for {model.step:,} steps; --checkpoint chooses another one."
            context.emit(Message(text, warning=True))
        factory = partial(blocks, opener(settings, model), seeds, size, settings.format)
        rate = run_blocks(factory, names, counts, output, settings, model.config, context.emit, "generating")
        made = {
            "images": seeds.count,
            "image_size": model.image_size,
            "channels": model.channels,
            "images_per_second": rate,
            "command_line": context.command,
            "blocks": {name: seeds.part(at, at + size) for name, at in zip(names, starts, strict=True)},
        }
        output.finish(about | made)
    plural, speed = "s" * (seeds.count > 1), f"  ({rate:,.0f} images/s)" if rate else ""
    context.emit(Message(f"{seeds.count:,} image{plural} in {output.path}{speed}"))


def remark(images: torch.Tensor) -> str:
    """What looks wrong with generated images, uint8 (N, C, H, W); empty where nothing does."""
    pixels = images.double()
    if bool((pixels.flatten(2).std(2) < FLAT).all()):
        return "The images are nearly flat."
    if len(images) > 1 and float(pixels.std(0).mean()) < SAME:
        return "The images are nearly all the same."
    return ""


def _check_room(output: Output, needed: int) -> None:
    free = shutil.disk_usage(output.path).free
    if needed > free:
        raise BadInput(
            f"--out {output.path} has {free / 2**30:,.1f} GiB free and the images take {needed / 2**30:,.1f} GiB; "
            "choose another folder, or fewer --seeds."
        )


def blocks(opened: Callable[[], Model], seeds: Seeds, size: int, format: str) -> BlockFunction:
    """What makes blocks of `size` images, an .npy file's bytes or PNG files by name, in whatever process it is
    called: see crayon.use.spread."""
    model = opened()

    def make(block: int, following: int | None) -> Content:
        wanted = seeds.slice(block * size, (block + 1) * size)
        images = model.generate(torch.tensor(wanted)).numpy()
        if format == "npy":
            file = io.BytesIO()
            np.save(file, images)
            return file.getvalue()
        return {f"seed-{s:09d}.png": png.encode(image) for s, image in zip(wanted, images, strict=True)}

    return make
