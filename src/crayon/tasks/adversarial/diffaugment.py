"""Differentiable augmentation for training a GAN on few images (Zhao et al. 2020): colour, translation, cutout.

Applied to real and generated images alike, whenever the discriminator looks: it then can't learn the training images
by heart, and the generator isn't taught the augmentations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crayon.rng import Randomness

SHIFT = 1 / 8
"""Largest translation, as a share of the side."""
CUTOUT = 1 / 2
"""Side of the blanked square, as a share of the side."""
DRAWS = 7


def augment(images: Tensor, rng: Randomness, positions: Tensor) -> Tensor:
    """Change each of the images, float (B, C, H, W) in [0, 1], by the draws of its position, int64 (B,),
    differentiably. Brightness and contrast may take values out of [0, 1]; pixels moved in from outside, and the
    blanked square, are mid grey."""
    b, _, h, w = images.shape
    u = rng.uniform(positions, DRAWS).to(images.device)
    brightness, saturation, contrast = (u[:, i].view(b, 1, 1, 1) for i in range(3))
    x = images + (brightness - 0.5)
    if images.shape[1] == 3:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (contrast + 0.5)

    most_y, most_x = round(h * SHIFT), round(w * SHIFT)
    dy = (u[:, 3] * (2 * most_y + 1)).long()
    dx = (u[:, 4] * (2 * most_x + 1)).long()
    padded = F.pad(x - 0.5, (most_x, most_x, most_y, most_y))
    rows = dy[:, None] + torch.arange(h, device=x.device)
    columns = dx[:, None] + torch.arange(w, device=x.device)
    each = torch.arange(b, device=x.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    side_y, side_x = round(h * CUTOUT), round(w * CUTOUT)
    top = (u[:, 5] * (h + 1)).long()[:, None] - side_y // 2
    left = (u[:, 6] * (w + 1)).long()[:, None] - side_x // 2
    ys, xs = torch.arange(h, device=x.device)[None], torch.arange(w, device=x.device)[None]
    in_rows = (ys >= top) & (ys < top + side_y)
    in_columns = (xs >= left) & (xs < left + side_x)
    keep = ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
    return moved * keep + 0.5
