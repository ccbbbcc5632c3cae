"""`interpolate`: a walk through the latent space from seed to seed, as an animation or a grid."""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crayon.errors import BadInput
from crayon.report.animation import gif
from crayon.report.events import Message
from crayon.report.plots import image_grid
from crayon.report.style import png
from crayon.tasks.adversarial.network import interpolate
from crayon.use.model import load
from crayon.use.output import file_for, write_file
from crayon.use.seeds import Seeds
from crayon.use.settings import Context, InterpolateConfig

MOST_SEEDS = 1000
SIDE = 256
"""Frames are enlarged to about this many pixels."""
COLUMNS = 16
"""A picture has at most as many images per leg."""


def run(settings: InterpolateConfig, context: Context) -> None:
    """Writes `--out`. Between two seeds the way is a great circle, at even steps. Raises CrayonError."""
    seeds = Seeds(settings.seeds)
    path = file_for(settings.out, tuple(WRITERS))
    ending = path.suffix.lower()
    if not 2 <= seeds.count <= MOST_SEEDS:
        raise BadInput(
            f"--seeds {settings.seeds!r}: a walk needs 2 to {MOST_SEEDS:,} seeds, and this has {seeds.count:,}."
        )
    order = list(seeds)
    if settings.loop and seeds.count > 2 and ending != ".png":
        order.append(order[0])
    for a, b in itertools.pairwise(order):
        if a == b:
            raise BadInput(
                f"--seeds {settings.seeds!r}: from seed {a} to seed {a} there is no way; leave one out."
            )
    if ending == ".mp4" and importlib.util.find_spec("av") is None:
        raise BadInput(
            "An .mp4 needs the package `av`, which isn't installed; install crayon-ray[video] (uv sync --extra video), "
            "or give --out a name that ends in .gif."
        )
    model = load(settings.run, settings.checkpoint, settings.device)
    ends = model.latents(torch.tensor(order))
    steps = min(settings.steps, COLUMNS) if ending == ".png" else settings.steps
    images = model.decode(walk(ends, steps, whole=ending == ".png"))
    write_file(path, WRITERS[ending](images, settings.fps, steps))
    legs = len(order) - 1
    context.emit(Message(f"{len(images):,} images, {legs} leg{'s' * (legs > 1)}, in {path}"))


def walk(ends: Tensor, steps: int, whole: bool = False) -> Tensor:
    """Latents (M, Z) joined by great circles of `steps` latents each: (N, Z).

    `whole`: each leg has both its ends; otherwise one leg's last is the next one's first, and is there once.
    """
    legs = [
        interpolate(a, b, steps) if whole else interpolate(a, b, steps + 1)[:-1]
        for a, b in itertools.pairwise(ends)
    ]
    return torch.cat(legs if whole else [*legs, ends[-1:]])


def frames(images: Tensor) -> list[Image.Image]:
    """uint8 (N, C, H, W) as pictures whose longer side has about SIDE pixels, even numbers of them."""
    height, width = images.shape[-2:]
    scale = max(1, round(SIDE / max(height, width)))
    array = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    even = [side * scale + side * scale % 2 for side in (width, height)]
    return [Image.fromarray(a).resize(even, Image.Resampling.NEAREST) for a in array]


def as_mp4(images: Tensor, fps: int) -> bytes:
    """H.264 in MP4, in colours that browsers and phones play."""
    import av

    pictures = frames(images)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps), options={"crf": "18", "preset": "medium"}
        )
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


WRITERS: dict[str, Callable[[Tensor, int, int], bytes]] = {
    ".gif": lambda images, fps, steps: gif(
        frames(images), max(2, round(100 / fps)) * 10
    ),  # in hundredths of a second
    ".mp4": lambda images, fps, steps: as_mp4(images, fps),
    ".png": lambda images, fps, steps: png(image_grid(images, columns=steps, scale=None)),  # a leg per row
}
