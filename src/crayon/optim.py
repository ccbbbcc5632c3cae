"""Adam, its schedule, and averaged weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from crayon.config import Experiment


def adam(network: nn.Module, config: Experiment) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with `lr` and `beta1` shared by every network of the job.

    Weight decay touches only tensors of two or more dimensions: decaying biases and normalisation gains does harm.
    """
    weights = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": config.optim.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.optim.beta2), eps=config.optim.eps, fused=True
    )


def lr_at(step: int, total_steps: int, config: Experiment) -> float:
    """Learning rate of the update that follows `step` finished ones (0-based) out of `total_steps`.

    Linear warm-up, then constant, linear or cosine down to `lr * optim.final` at the last step.
    """
    warmup = round(config.optim.warmup * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    left = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.lr * (config.optim.final + (1.0 - config.optim.final) * left[config.optim.schedule])


class Average:
    """Exponential moving average of the networks' weights, with its half-life counted in images.

    The half-life ramps up with the images seen (Karras et al. 2022, 5 %), so that the first evaluations aren't those
    of the initial weights. Buffers (BatchNorm statistics) are copied, not averaged.
    """

    RAMP = 0.05

    def __init__(self, networks: nn.ModuleDict, half_life: float):
        self.half_life = half_life
        self.source = networks
        self.networks = networks if half_life <= 0 else copy.deepcopy(networks).requires_grad_(False)
        self._live: list[Tensor] = [p.detach() for p in networks.parameters()]
        self._mean: list[Tensor] = [p.detach() for p in self.networks.parameters()]

    @property
    def on(self) -> bool:
        return self.half_life > 0

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """After a step that ended at `images_seen` images, `batch` of them new."""
        if self.on:
            half_life = max(1.0, min(self.half_life, self.RAMP * images_seen))
            torch._foreach_lerp_(self._mean, self._live, 1.0 - 0.5 ** (batch / half_life))

    @torch.no_grad()
    def copy_buffers(self) -> None:
        if self.on:
            for mean, live in zip(self.networks.buffers(), self.source.buffers(), strict=True):
                mean.copy_(live)
