"""TrivialAugment in its wide space (Müller & Hutter 2021): one operation for each image, of random strength.

Operations, ranges and values are those of torchvision's TrivialAugmentWide, which draws one for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from crayon.data import colour
from crayon.data.warp import warp

DRAWS = 3
"""Per image: operation, strength, sign."""
BINS = 31
"""Strengths are evenly spaced."""


def trivial(pixels: Tensor, draws: Tensor) -> Tensor:
    """Change each image of `pixels`, float (B, C, H, W) in [0, 1], in place.

    Args:
        draws: uniform (B, 3) on the CPU, where they decide which images go together: every operation is done once, on
            the images that drew it, and no device is waited for.
    """
    chosen = (draws[:, 0] * len(OPERATIONS)).long()
    strength = (draws[:, 1] * BINS).floor() / (BINS - 1)
    sign = torch.where(draws[:, 2] < 0.5, -1, 1)
    groups = chosen.argsort(stable=True).split(chosen.bincount(minlength=len(OPERATIONS)).tolist())
    for operation, group in zip(OPERATIONS.values(), groups, strict=True):
        if operation is not None and len(group):
            values = operation.values(strength[group] * (sign[group] if operation.signed else 1))
            here = group.to(pixels.device)
            pixels[here] = operation.change(pixels[here], values.to(pixels.device))
    return pixels


class Operation(NamedTuple):
    change: Callable[[Tensor, Tensor], Tensor]
    """Of images (B, C, H, W) and a value for each, (B,)."""
    values: Callable[[Tensor], Tensor]
    """Of strengths from 0 to 1, or from -1 to 1."""
    signed: bool = True


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return _moved(images, (cos, -sin, 0), (sin, cos, 0))


def _moved(images: Tensor, *maps: tuple[Tensor | float, ...]) -> Tensor:
    """The nearest pixels, black outside. maps: of x and y, in pixels from the centre."""
    b, _, h, w = images.shape
    to_x, to_y = (
        torch.stack([torch.as_tensor(v, device=images.device).expand(b) for v in m], 1) * (2 / n)
        for m, n in zip(maps, (w, h), strict=True)
    )
    return warp(images, to_x, to_y, mode="nearest", padding="zeros")


def _factor(strength: Tensor) -> Tensor:
    return 1 + 0.99 * strength


OPERATIONS = {
    "identity": None,
    "shear_x": Operation(
        lambda x, by: _moved(x, (1, by, by * x.shape[2] / 2), (0, 1, 0)), lambda s: 0.99 * s
    ),
    "shear_y": Operation(
        lambda x, by: _moved(x, (1, 0, 0), (by, 1, by * x.shape[3] / 2)), lambda s: 0.99 * s
    ),
    "translate_x": Operation(lambda x, by: _moved(x, (1, 0, -by), (0, 1, 0)), lambda s: (32 * s).trunc()),
    "translate_y": Operation(lambda x, by: _moved(x, (1, 0, 0), (0, 1, -by)), lambda s: (32 * s).trunc()),
    "rotate": Operation(_rotate, lambda s: 135 * s),
    "brightness": Operation(lambda x, f: colour.adjust(x, brightness=f), _factor),
    "saturation": Operation(lambda x, f: colour.adjust(x, saturation=f), _factor),
    "contrast": Operation(lambda x, f: colour.adjust(x, contrast=f), _factor),
    "sharpness": Operation(colour.sharpen, _factor),
    "posterize": Operation(colour.posterize, lambda s: (8 - 6 * s).round(), signed=False),
    "solarize": Operation(colour.solarize, lambda s: 1 - s, signed=False),
    "autocontrast": Operation(lambda x, _: colour.autocontrast(x), lambda s: s),
    "equalize": Operation(lambda x, _: colour.equalize(x), lambda s: s),
}
