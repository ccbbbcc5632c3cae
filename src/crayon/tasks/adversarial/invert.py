"""From an image back to a latent: the nearest of many seeds, then gradient descent.

Shapes: N candidates, Z latent_dim, C channels, H = W image size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crayon.tasks.adversarial.network import Generator

LEARNING_RATE = 0.05
FEATURES = 3e-4
"""Weight of the squared distance in features beside the mean squared error of pixels, which alone forgets details such
as glasses."""
PRIOR = 0.01
"""Weight of keeping the latent about as long as those the generator was trained on; beyond, images fall apart."""


def nearest(
    wanted: Tensor,
    images_of: Callable[[Tensor], Tensor],
    features_of: Callable[[Tensor], Tensor],
    count: int,
    *,
    keep: int = 8,
    piece: int = 1024,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """The seeds in 0..count-1 whose images are nearest to `wanted`, uint8 (C, H, W), the nearest first, int64
    (min(keep, count),), and their distances, float32.

    images_of: seeds int64 (N,) to images uint8 (N, C, H, W).
    features_of: those to float (N, F), where distance is Euclidean.
    """
    target = features_of(wanted[None])
    seeds, distances = torch.arange(0), torch.zeros(0)
    for start in range(0, count, piece):
        found = torch.arange(start, min(start + piece, count))
        # Not cdist: its shortcut for many points rounds a distance of zero up.
        apart = (features_of(images_of(found)) - target).norm(dim=1).cpu()
        seeds, distances = torch.cat([seeds, found]), torch.cat([distances, apart])
        best = distances.argsort(stable=True)[:keep]
        seeds, distances = seeds[best], distances[best]
        progress(min(start + piece, count))
    return seeds, distances


def refine(
    generator: Generator,
    wanted: Tensor,
    latents: Tensor,
    steps: int,
    features_of: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Latents (N, Z) moved by Adam so that their images come nearer to `wanted`, uint8 (C, H, W).

    Near is meant by the mean squared error per pixel of images in [0, 1] and, with `features_of` (float images
    (N, C, H, W) to features (N, F)), by FEATURES times the squared distance there.

    Returns the best latent of each start, (N, Z), and how far it is, (N,). No start ends farther than it began.
    """
    device = next(generator.parameters()).device
    target = wanted.to(device).float()[None] / 255
    target_features = features_of(target).detach() if features_of else torch.empty(0)
    z = latents.to(device).clone().requires_grad_()
    best, least = z.detach().clone(), torch.full((len(z),), torch.inf, device=device)
    optimizer = torch.optim.Adam([z], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        for step in range(steps + 1):
            images = generator(z)
            errors = (images - target).square().flatten(1).mean(1)
            if features_of:
                errors = errors + FEATURES * (features_of(images) - target_features).square().sum(1)
            with torch.no_grad():
                better = errors < least
                best[better], least[better] = z[better], errors[better]
            if step == steps:
                break
            beyond = F.relu(z.square().mean(1) - 1)
            optimizer.zero_grad()
            (errors + PRIOR * beyond.square()).sum().backward()
            optimizer.step()
            schedule.step()
            progress(step + 1)
    return best.detach(), least.detach()
