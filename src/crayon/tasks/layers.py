"""Layers that PyTorch lacks, and those that it has in a form that is slow here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A function of one tensor that uses `network`, as a module."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Flatten(nn.Flatten):
    """(B, C, H, W) -> (B, C * H * W), as torch's, but the gradient comes back in the memory order of the input.

    torch's comes in NCHW order, and operations on the CPU that are given one map of each order take up to ten times as
    long (benchmarks/LOG.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_GradientLikeInput.apply(x))


class Unflatten(nn.Unflatten):
    """(B, C * H * W) -> (B, C, H, W), as torch's, but in the NHWC order of the maps that follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class _GradientLikeInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.nhwc = x.is_contiguous(memory_format=torch.channels_last)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last) if ctx.nhwc else gradient
