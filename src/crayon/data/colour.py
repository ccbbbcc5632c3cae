"""Changes of colour, each image of a batch by factors of its own. One change alone gives torchvision's values.

Images are float (B, C, H, W) in [0, 1], factors (B,) on their device. Grey images have neither saturation nor hue.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grey(images: Tensor) -> Tensor:
    """Luma, (B, 1, H, W); of grey images themselves."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def adjust(
    images: Tensor,
    brightness: Tensor | float = 1.0,
    contrast: Tensor | float = 1.0,
    saturation: Tensor | float = 1.0,
) -> Tensor:
    """Multiply brightness, contrast (distance from the mean grey) and saturation (distance from each pixel's grey).

    Values are cut to [0, 1] once, at the end, so the order of the three doesn't matter.
    """
    brightness, contrast, saturation = (
        f.view(-1, 1, 1, 1) if isinstance(f, Tensor) else f for f in (brightness, contrast, saturation)
    )
    luma = grey(images)
    # Line by line, and then the lines: in one go, the last bits of a mean may depend on the batch's size.
    mean = luma.mean(3, keepdim=True).mean(2, keepdim=True)
    both = brightness * contrast
    rest = luma * (both * (1 - saturation)) + mean * (brightness * (1 - contrast))
    return (images * (both * saturation)).add_(rest).clamp_(0, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of colour images, by shares of the circle; value and saturation (HSV) stay."""
    red, green, blue = images.unbind(1)
    top = images.amax(1)
    chroma = top - images.amin(1)
    some = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        top == red,
        (green - blue) / some,
        torch.where(top == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    hue = (hue + 6 * turns[:, None, None])[:, None] + torch.tensor(
        [[[5.0]], [[3.0]], [[1.0]]], device=hue.device
    )
    place = hue - 6 * (hue * (1 / 6)).floor_()
    return top[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp_(0, 1)


def sharpen(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply sharpness: the distance from a blurred image. Pixels at the edge stay."""
    inner = images[..., 1:-1, 1:-1]
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    changed = images.clone()
    changed[..., 1:-1, 1:-1] = (blurred + (inner - blurred) * factors.view(-1, 1, 1, 1)).clamp_(0, 1)
    return changed


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Leave `bits` bits of each value."""
    levels = (2.0**bits).view(-1, 1, 1, 1)
    return torch.minimum((images * levels).floor_(), levels - 1) / levels


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert what is at least as bright as the threshold."""
    return torch.where(images >= thresholds.view(-1, 1, 1, 1), 1 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0 .. 1."""
    low, high = (end((2, 3), keepdim=True) for end in (images.amin, images.amax))
    flat = high == low
    return (images - torch.where(flat, 0, low)) / torch.where(flat, 1, high - low)


def equalize(images: Tensor) -> Tensor:
    """Spread each channel's values, in 8 bits, so that all are as frequent (Pillow's rule)."""
    b, c, h, w = images.shape
    values = (images * 255).round().to(torch.int64).reshape(b * c, h * w)
    counts = torch.zeros(b * c, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    step = (h * w - counts.gather(1, values.amax(1, keepdim=True))) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    spread = torch.where(step > 0, table.gather(1, values), values)
    return (spread.to(images.dtype) / 255).view(b, c, h, w)
