"""Resampling of images by affine maps, one for each image of a batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(
    pixels: Tensor,
    to_x: Tensor,
    to_y: Tensor,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["reflection", "zeros"] = "reflection",
) -> Tensor:
    """Images (B, C, H, W) that look, at each pixel, where the maps say.

    to_x, to_y: (B, 3), what a pixel's x, y (in pixels from the centre) and 1 are multiplied with: where it looks in the
        input, from -1 to 1 between the outer edges.
    """
    h, w = pixels.shape[-2:]
    per_x, per_y, constant = torch.stack([to_x, to_y], 1).split(1, dim=2)  # each (B, 2, 1)
    y, x = (torch.arange(n, device=pixels.device) - (n - 1) / 2 for n in (h, w))
    # One addition at full size. It leaves the two coordinates in planes of their own, which grid_sample reads as
    # fast. (As a matrix product it is no faster, and an image's last bits then depend on the batch's size.)
    grid = (per_x * x)[:, :, None, :] + (per_y * y + constant)[:, :, :, None]
    return F.grid_sample(
        pixels, grid.permute(0, 2, 3, 1), mode=mode, padding_mode=padding, align_corners=False
    )
