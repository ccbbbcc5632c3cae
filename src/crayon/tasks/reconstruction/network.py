"""A convolutional autoencoder with a vector in between.

Shapes: B batch, C channels, H height, W width, D latent dimensions.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from crayon.config.pairs import Size, sides
from crayon.tasks.layers import Flatten, Unflatten
from crayon.tasks.reconstruction.settings import AutoencoderConfig

COARSEST = 7
"""Resolution is halved until no side is longer than this."""


def block(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """`x + f(x)` with `depth` convolutions in f."""

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.body = nn.Sequential(*(block(channels, channels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Autoencoder(nn.Module):
    """Images to codes and back, at any size.

    The code is standardised by BatchNorm without gain and bias: every dimension has mean 0 and variance 1 over the
    data, so that distances between codes weigh all of them alike. Upsampling is by sub-pixel convolution (Shi et al.
    2016), which does its work at the lower resolution.
    """

    def __init__(self, config: AutoencoderConfig, *, image_size: Size, channels: int):
        super().__init__()
        self.sides, self.latent_dim = sides(image_size), config.latent_dim
        (h, w), widths = ((side + 1) // 2 for side in self.sides), [config.width]
        while max(h, w) > COARSEST:
            h, w = (h + 1) // 2, (w + 1) // 2
            widths.append(min(2 * widths[-1], 4 * config.width))
        top = widths[-1]

        down: list[nn.Module] = [block(channels, widths[0], kernel=5, stride=2)]
        up: list[nn.Module] = []
        for fine, coarse in pairwise(widths):
            down += [Residual(fine, config.depth), block(fine, coarse, stride=2)]
            up[:0] = [
                Residual(coarse, config.depth),
                block(coarse, 4 * fine),
                nn.PixelShuffle(2),
            ]
        self.encoder = nn.Sequential(
            *down,
            Residual(top, config.depth),
            Flatten(),
            nn.Linear(top * h * w, config.latent_dim, bias=False),
            nn.BatchNorm1d(config.latent_dim, affine=False),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_dim, top * h * w, bias=False),
            Unflatten(1, (top, h, w)),
            nn.BatchNorm2d(top),
            nn.ReLU(inplace=True),
            *up,
            Residual(widths[0], config.depth),
            nn.Conv2d(widths[0], 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] -> float32 codes (B, D)."""
        return self.encoder(images).float()

    def decode(self, codes: Tensor) -> Tensor:
        """float32 (B, D) -> float32 images (B, C, H, W) in (0, 1)."""
        pixels = self.decoder(codes)
        down, right = (made - side for made, side in zip(pixels.shape[-2:], self.sides, strict=True))
        if down or right:
            top, left = down // 2, right // 2
            pixels = F.pad(pixels, (-left, left - right, -top, top - down))
        return pixels.float().sigmoid()

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """float32 (B, C, H, W) -> codes (B, D) and reconstructions (B, C, H, W) of the codes plus `noise` (B, D)."""
        codes = self.encode(images)
        return codes, self.decode(codes if noise is None else codes + noise)
