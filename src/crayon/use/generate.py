"""`generate`: the images of many seeds, as PNG files or arrays, in blocks that are whole or absent."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from crayon.errors import BadInput
from crayon.fast.allocator import keep_freed_memory
from crayon.report.events import Message
from crayon.report.plots import image_grid
from crayon.use import model as inference
from crayon.use import png
from crayon.use.model import Model
from crayon.use.output import Content, Output
from crayon.use.seeds import Seeds
from crayon.use.settings import Context, GenerateConfig
from crayon.use.spread import run_blocks

GRID = 64
"""Images in the picture that is left beside them."""
MOST_BLOCKS = 1_000_000
PIECE = 1024
"""Images whose latents are drawn at once."""


def run(settings: GenerateConfig, context: Context) -> None:
    """Leaves, in `--out`:

        grid.png             the first 64 images
        block-000000/        1024 files seed-000000000.png ..., with --format png
        block-000000.npy     or one array uint8 (images, channels, height, width)
        result.json          which seeds are in which block, in order, and where they come from; written last

    The same seed is the same image, to the byte, whatever else is asked for and on how many workers, on one kind of
    processor. Raises CrayonError.
    """
    seeds = Seeds(settings.seeds).distinct()
    keep_freed_memory()
    model = inference.load(settings.run, settings.checkpoint, settings.device)
    model.network("generator", "generate")
    identity = {
        "command": "generate",
        "run": model.uri,
        "step": model.step,
        "weights": model.digest,
        "seeds": seeds.text,
        "format": settings.format,
        "block": settings.block,
        "device": model.device.type,
    }
    output = Output(settings.out, identity)
    starts = range(0, seeds.count, settings.block)
    if seeds.count > MOST_BLOCKS * settings.block:
        raise BadInput(
            f"--seeds {settings.seeds} are {seeds.count:,} images, and at most {MOST_BLOCKS:,} blocks of --block "
            f"{settings.block:,} are made; ask for fewer, or give a larger --block."
        )
    counts = [min(settings.block, seeds.count - start) for start in starts]
    ending = {"png": "", "npy": ".npy"}[settings.format]
    names = [f"block-{k:06d}{ending}" for k in range(len(starts))]
    with output.locked():
        if (found := output.result()) is not None:
            _tell(context, f"{output.path} has all {found['images']:,} images already.")
            return
        if settings.format == "npy":
            missing = sum(n for name, n in zip(names, counts, strict=True) if not output.holds(name))
            _check_room(output, missing * model.channels * model.image_size**2)
        first = model.generate(torch.tensor(seeds.slice(0, GRID)))
        output.picture("grid", image_grid(first, scale=2))
        rate = run_blocks(
            partial(_factory, model.uri, settings, model if settings.workers == 0 else None),
            names,
            counts,
            output,
            workers=settings.workers,
            device=settings.device,
            config=model.config,
            emit=context.emit,
            what="generating",
        )
        result = identity | {
            "images": seeds.count,
            "image_size": model.image_size,
            "channels": model.channels,
            "images_per_second": rate,
            "command_line": context.command,
            "blocks": {
                name: seeds.part(at, at + n) for name, at, n in zip(names, starts, counts, strict=True)
            },
        }
        output.finish(result)
    _tell(
        context,
        f"{seeds.count:,} image{'s' * (seeds.count > 1)} in {output.path}"
        + (f"  ({rate:,.0f} images/s)" if rate else ""),
    )


def _check_room(output: Output, needed: int) -> None:
    free = shutil.disk_usage(output.path).free
    if needed > free:
        raise BadInput(
            f"--out {output.path} has {free / 2**30:,.1f} GiB free and the images take {needed / 2**30:,.1f} GiB; "
            "choose another folder, or fewer --seeds."
        )


def _factory(uri: str, settings: GenerateConfig, model: Model | None) -> Callable[..., Content]:
    """What makes blocks, in the process that does."""
    keep_freed_memory()
    model = model or inference.load(uri, device=settings.device)
    return partial(make, model, Seeds(settings.seeds), settings.block, settings.format)


def make(
    model: Model, seeds: Seeds, size: int, format: str, block: int, following: int | None = None
) -> Content:
    """Block number `block` of `size` images: an .npy file's bytes, or PNG files by name."""
    wanted = seeds.slice(block * size, (block + 1) * size)
    parts = [model.generate(torch.tensor(wanted[i : i + PIECE])) for i in range(0, len(wanted), PIECE)]
    images = parts[0] if len(parts) == 1 else torch.cat(parts)
    if format == "npy":
        file = io.BytesIO()
        np.save(file, images.numpy())
        return file.getvalue()
    return {
        f"seed-{seed:09d}.png": png.encode(image) for seed, image in zip(wanted, images.numpy(), strict=True)
    }


def _tell(context: Context, text: str) -> None:
    context.emit(Message(text))
