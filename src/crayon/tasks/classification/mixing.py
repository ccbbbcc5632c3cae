"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): every image with its neighbour in the step's global batch.

Neighbours are 0 and 1, 2 and 3 and so on, and others in every epoch, which has an order of its own. They come to the
same worker, and draws are keyed by (seed, step, place), so what is mixed is the same for any number of workers.
"""

from __future__ import annotations

import scipy.special
import torch
from torch import Tensor

from crayon.rng import Randomness

QUANTILES = 1024
"""Values of a beta distribution, evenly probable, that one is drawn of."""
DRAWS = 3
"""Per image: mixup or CutMix and how much, the box's centre's y and x."""


class Mixing:
    """Mixes a batch. mixup, cutmix: parameters of the symmetric beta distributions of the images' own share, or of the
    share of their area; 0 = never. With both, each image gets one or the other, evenly.
    """

    def __init__(self, mixup: float, cutmix: float):
        # On the CPU also where a network is laid out without memory, on the device "meta".
        middles = (torch.arange(QUANTILES, dtype=torch.float64, device="cpu") + 0.5) / QUANTILES
        alphas = [alpha for alpha in (mixup, cutmix) if alpha]
        kinds = [torch.from_numpy(scipy.special.betaincinv(a, a, middles.numpy())) for a in alphas]
        self.shares = torch.cat(kinds).float()
        self.cutmix = cutmix > 0

    def __call__(self, images: Tensor, rng: Randomness, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed images (B, C, H, W), the places int64 (B,) of each one's partner, and each one's own share (B,).

        Args:
            images: float (B, C, H, W), the first of them at an even place of the global batch.
            rng: keyed by the step.
            positions: int64 (B,), places in the global batch.
        """
        b, _, *sides = images.shape
        self.shares = self.shares.to(images.device)  # once: a recorded step copies nothing from the host
        partner = (torch.arange(b, device=images.device) ^ 1).clamp(max=b - 1)  # a last one without: itself
        u = rng.fold("mix").uniform(positions, DRAWS)
        index = (u[:, 0] * len(self.shares)).long()
        own = self.shares[index]
        weight = (1 - own)[:, None, None]
        if self.cutmix:
            half = weight[:, 0].sqrt() / 2
            y, x = (
                torch.arange(n, device=images.device) - (u[:, i : i + 1] * n).floor()
                for i, n in enumerate(sides, 1)
            )
            box = (
                _within(y, (half * sides[0]).floor())[:, :, None]
                & _within(x, (half * sides[1]).floor())[:, None]
            )
            boxed = index >= len(self.shares) - QUANTILES
            weight = torch.where(boxed[:, None, None], box.float(), weight)
            own = torch.where(boxed, 1 - box.float().mean((1, 2)), own)
        return torch.lerp(images, images[partner], weight[:, None]), partner, own


def _within(offsets: Tensor, half: Tensor) -> Tensor:
    return (offsets >= -half) & (offsets < half)
