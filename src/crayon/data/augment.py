"""Random changes to training images, a whole batch at once, on whatever device the batch is on.

Every draw is keyed by (seed, epoch) and the image's place in the epoch, so the augmented images are the same whatever
the number of workers, and after a resume. Mirroring is keyed by (seed, image): what is mirrored in one epoch isn't in
the next (alternating flip, Jordan 2024), so any two epochs show both sides of every image.

What moves pixels comes first, then TrivialAugment, colours, and cutout. Images are mixed where their labels are, in the
loss of crayon.tasks.classification.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crayon.config.settings import AugmentConfig
from crayon.data import colour
from crayon.data.trivial import DRAWS, trivial
from crayon.data.warp import warp
from crayon.rng import Randomness

COLUMNS = 14
"""Draws per image: shift y, shift x, angle, zoom, cutout y, cutout x; of the crop area, ratio, left, top; brightness,
contrast, saturation, hue. Fixed, so that switching one change on doesn't alter the draws of the others."""
RATIO = math.log(4 / 3)
"""Most that a random crop is wider or higher than the image is, as everywhere since Szegedy et al. 2015."""


def to_float(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """uint8 (B, C, H, W) to float32 in [0, 1]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(torch.float32, memory_format=layout).div_(255)


class Augment:
    """`AugmentConfig`, applied. mean: the colour cutout paints with, per channel in [0, 1]."""

    def __init__(self, config: AugmentConfig, mean: tuple[float, ...]):
        self.config = config
        self.mean = mean

    def __call__(
        self,
        images: Tensor,
        rng: Randomness,
        epoch: int,
        positions: Tensor,
        indices: Tensor,
        *,
        channels_last: bool = False,
    ) -> Tensor:
        """uint8 (B, C, H, W) to augmented float32 (B, C, H, W) in [0, 1].

        Args:
            rng: keyed by everything but epoch and image (the loader's is keyed by the seed).
            positions: int64 (B,), on the CPU where nothing is to wait for a device; the images' places in the epoch.
            indices: int64 (B,) there; which images of the set they are.
        """
        c = self.config
        if c == AugmentConfig():
            return to_float(images, channels_last=channels_last)
        u = rng.fold(epoch).uniform(positions.to(images.device), COLUMNS)
        mirrored = rng.fold("flip").uniform(indices, 1) < 0.5 if c.flip else None  # (B, 1)
        if mirrored is not None and epoch % 2:
            mirrored = ~mirrored
        if c.rotate or c.zoom or c.resized_crop < 1:
            # Resampled plane by plane, which is faster, and put into the order asked for afterwards.
            layout = torch.channels_last if channels_last else torch.contiguous_format
            pixels = self._warp(to_float(images), u, mirrored).contiguous(memory_format=layout)
        else:
            pixels = to_float(
                self._move(images, u, mirrored) if c.flip or c.shift else images, channels_last=channels_last
            )
        if c.trivial:
            pixels = trivial(pixels, rng.fold("trivial", epoch).uniform(positions.cpu(), DRAWS))
        return self._cut(self._coloured(pixels, u), u) if c.cutout else self._coloured(pixels, u)

    def _shifts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Whole pixels (B, 1) down and right, uniform on -shift .. shift."""
        s = self.config.shift
        return ((u[:, 0:2] * (2 * s + 1)).floor() - s).split(1, dim=1)

    def _move(self, images: Tensor, u: Tensor, mirrored: Tensor | None) -> Tensor:
        """Mirror and shift by whole pixels: exact, and still uint8."""
        b, c, h, w = images.shape
        dy, dx = self._shifts(u)
        y = _reflect(torch.arange(h, device=u.device) - dy.long(), h)
        x = _reflect(torch.arange(w, device=u.device) - dx.long(), w)
        if mirrored is not None:
            x = torch.where(mirrored, w - 1 - x, x)
        flat = (y[:, :, None] * w + x[:, None, :]).view(b, 1, h * w).expand(b, c, h * w)
        return images.reshape(b, c, h * w).gather(2, flat).view(b, c, h, w)

    def _warp(self, pixels: Tensor, u: Tensor, mirrored: Tensor | None) -> Tensor:
        """Mirror, shift, rotate and zoom in one bilinear resampling."""
        c, (h, w) = self.config, pixels.shape[-2:]
        dy, dx = self._shifts(u)
        angle = (2 * u[:, 2:3] - 1) * math.radians(c.rotate)
        scale = 1 + (2 * u[:, 3:4] - 1) * c.zoom
        # Where each output pixel looks in the input, in pixels from the centre: the inverse of what is done to the
        # image, so the angle turns back and the scale divides.
        cos, sin = angle.cos() / scale, angle.sin() / scale
        mirror = torch.ones_like(cos) if mirrored is None else torch.where(mirrored, -1.0, 1.0)
        to_x = torch.cat([cos, sin, -cos * dx - sin * dy], 1) * (mirror * (2 / w))
        to_y = torch.cat([-sin, cos, sin * dx - cos * dy], 1) * (2 / h)
        if c.resized_crop < 1:
            width, height, right, down = crop_window(u[:, 6:10], c.resized_crop).split(1, dim=1)
            to_x, to_y = to_x * width, to_y * height
            to_x[:, 2:] += right
            to_y[:, 2:] += down
        return warp(pixels, to_x, to_y)

    def _coloured(self, pixels: Tensor, u: Tensor) -> Tensor:
        """Colour jitter: factors within 1 - setting .. 1 + setting, never below 0."""
        c = self.config
        if c.brightness or c.contrast or c.saturation:
            ends = ((max(0.0, 1 - most), 1 + most) for most in (c.brightness, c.contrast, c.saturation))
            factors = (low + u[:, 10 + i] * (high - low) for i, (low, high) in enumerate(ends))
            pixels = colour.adjust(pixels, *factors)
        if c.hue and pixels.shape[1] == 3:
            pixels = colour.turn_hue(pixels, (2 * u[:, 13] - 1) * c.hue)
        return pixels

    def _cut(self, pixels: Tensor, u: Tensor) -> Tensor:
        """Paint a square over each image; its centre may lie anywhere in it (DeVries & Taylor 2017)."""
        side, (_, c, h, w) = self.config.cutout, pixels.shape
        top = (u[:, 4:5] * h).floor() - side // 2
        left = (u[:, 5:6] * w).floor() - side // 2
        y, x = torch.arange(h, device=u.device) - top, torch.arange(w, device=u.device) - left
        inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :]
        mean = torch.tensor(self.mean, dtype=pixels.dtype, device=pixels.device).view(1, c, 1, 1)
        return torch.where(inside[:, None], mean, pixels)


def crop_window(u: Tensor, smallest: float) -> Tensor:
    """Random windows (B, 4): width and height as shares of the image's, and how far their centres lie right and down of
    the image's, in halves of its sides.

    Their areas are uniform on smallest .. 1, and the logarithms of width / height on as much of log(3/4) .. log(4/3) as
    fits into the image. u: (B, 4), uniform.
    """
    area = smallest + u[:, :1] * (1 - smallest)
    ratio = ((2 * u[:, 1:2] - 1) * area.log().neg().clamp(max=RATIO)).exp()
    size = torch.cat([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
    return torch.cat([size, (2 * u[:, 2:] - 1) * (1 - size)], 1)


def _reflect(index: Tensor, n: int) -> Tensor:
    """Fold indices back into 0 .. n - 1 at the edge pixels' centres: -1 becomes 1, n becomes n - 2."""
    period = max(2 * (n - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)
