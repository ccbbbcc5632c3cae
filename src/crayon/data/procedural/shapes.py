"""Procedural shapes: ten classes of coloured figures on busy backgrounds, at any angle, size and place.

Figures are drawn from their outline in polar coordinates, over a colour gradient and two blurred blobs that have
nothing to do with the class; some contrast little. Image i of seed s is the same in whatever batch it is drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crayon.rng import Randomness

CLASSES = (
    "circle",
    "ring",
    "ellipse",
    "triangle",
    "square",
    "pentagon",
    "star",
    "cross",
    "crescent",
    "heart",
)
VERSION = 1
TRAIN_SIZE, TEST_SIZE = 10_000, 2_000
ROWS_AT_ONCE = 64


def render(indices: Tensor, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The shapes of `indices`, int64 (N,), any numbers: uint8 (N, 3, size, size) and labels, int64 (N,), indices into
    `CLASSES`, which take turns: index i shows class i mod 10."""
    images = []
    for part in indices.split(ROWS_AT_ONCE):
        # Always whole chunks: a kernel may round differently for another shape.
        padded = torch.cat([part, part[-1:].expand(ROWS_AT_ONCE - len(part))])
        images.append(_draw(padded, size, seed)[: len(part)])
    return torch.cat(images), indices % len(CLASSES)


def _draw(indices: Tensor, size: int, seed: int) -> Tensor:
    rng = Randomness(seed, "shapes")
    u = rng.uniform(indices, 32)
    column = [u[:, i].view(-1, 1, 1) for i in range(9)]
    place_x, place_y, scale, angle, tilt, shade, blob_1, blob_2, squeeze = column
    back, front, second, third = (u[:, i : i + 3, None, None] for i in (9, 12, 15, 18))

    line = (torch.arange(size) + 0.5) * (2 / size) - 1
    py, px = line.view(1, -1, 1), line.view(1, 1, -1)
    image = 0.1 + 0.8 * back + (0.5 * ((2 * tilt - 1) * px + (2 * shade - 1) * py))[:, None]
    for colour, where, i in ((second, blob_1, 21), (third, blob_2, 24)):
        x, y = (2 * u[:, j].view(-1, 1, 1) - 1 for j in (i, i + 1))
        distance = (px - x).square() + (py - y).square()
        image = image.lerp(colour, (0.75 / (1 + distance / (0.02 + 0.15 * where.square())))[:, None])

    radius = 0.38 + 0.32 * scale
    x = px - (2 * place_x - 1) * (0.95 - radius)
    y = py - (2 * place_y - 1) * (0.95 - radius)
    turn = (2 * math.pi) * angle
    x, y = (x * turn.cos() + y * turn.sin()) / radius, (y * turn.cos() - x * turn.sin()) / radius
    inside = _signed(indices % len(CLASSES), x, y, squeeze)
    mask = (inside * radius * (size / 2) + 0.5).clamp(0, 1)
    # At least a fifth of the range away from the background's base colour, so that no figure is invisible.
    contrast = torch.where(front > back, 1.0, -1.0)
    paint = (0.1 + 0.8 * back + contrast * (0.2 + 0.3 * (front - back).abs())).clamp(0, 1)
    paint = paint + 0.12 * (x * (2 * shade - 1))[:, None]
    image = image.lerp(paint, mask[:, None])
    grain = rng.fold("grain").uniform(indices, size * size).view(-1, 1, size, size)
    return (image + 0.08 * (grain - 0.5)).mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def _signed(labels: Tensor, x: Tensor, y: Tensor, squeeze: Tensor) -> Tensor:
    """(N, S, S): about the distance to the outline, positive inside, of figures of radius 1."""
    r = (x.square() + y.square()).sqrt()
    theta = torch.atan2(y, x)

    def polygon(n: int) -> Tensor:
        sector = theta.remainder(2 * math.pi / n) - math.pi / n
        return math.cos(math.pi / n) - r * sector.cos()

    spike = (theta.remainder(2 * math.pi / 5) - math.pi / 5).abs() / (math.pi / 5)
    hx, hy = x.abs() * 1.15, 0.25 - y * 1.1
    figures = (
        1 - r,
        (0.26 - (r - 0.74).abs()),
        (1 - (x.square() + (y / (0.45 + 0.12 * squeeze)).square()).sqrt()) * 0.5,
        polygon(3),
        polygon(4),
        polygon(5),
        (0.42 + 0.58 * spike.square() - r) * 0.8,
        torch.minimum(0.98 - torch.maximum(x.abs(), y.abs()), 0.30 - torch.minimum(x.abs(), y.abs())),
        torch.minimum(1 - r, ((x - 0.45).square() + y.square()).sqrt() - 0.75),
        (0.9 - (hx.square() + (hy - 0.55 * hx.sqrt()).square()).sqrt()) * 0.8,
    )
    out = torch.empty_like(r)
    for label, figure in enumerate(figures):
        rows = labels == label
        out[rows] = figure[rows]
    return out
