"""Directions in a generator's latent space along which its images change most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def directions(model: Any, count: int) -> Tensor:
    """The first `count` directions by how strongly the generator's first layer answers to them (SeFa; Shen & Zhou
    2021): float32 (<= count, Z), orthonormal. Raises nothing; fewer where Z is smaller."""
    first = next(layer for layer in model.networks["generator"].modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        rows = torch.linalg.svd(first.weight.detach().float().cpu(), full_matrices=False).Vh
    return rows[:count]
