"""BatchNorm by the statistics of all workers' images, so that a model is the same however many workers train it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crayon.config.settings import Experiment

FEW = 32
"""Images of a worker below which its own statistics are noise (benchmarks/LOG.md)."""
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronised(config: Experiment, workers: int) -> bool:
    """Whether the workers of a run share their statistics: see `sync_batchnorm`."""
    if workers == 1 or config.sync_batchnorm != "auto":
        return workers > 1 and config.sync_batchnorm == "on"
    return config.global_batch_size < FEW * workers


def synchronise(network: nn.Module) -> None:
    """Let every BatchNorm of `network` normalise, while it trains, by the mean and variance over the default process
    group's images. Workers may hold different numbers of them. Parameters, buffers and their names stay.

    torch.nn.SyncBatchNorm does this on GPUs only.
    """
    for module in network.modules():
        if isinstance(module, KINDS):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


@contextlib.contextmanager
def apart(network: nn.Module) -> Iterator[None]:
    """Within the block every worker's statistics are its own, whatever `synchronise` did."""
    norms = [m for m in network.modules() if isinstance(m, KINDS) and "forward" in vars(m)]
    shared = [(norm, vars(norm).pop("forward")) for norm in norms]
    try:
        yield
    finally:
        for norm, forward in shared:
            norm.forward = forward  # type: ignore[method-assign]


def _forward(module: Any, x: Tensor) -> Tensor:
    if not module.training:
        return type(module).forward(module, x)
    mean, variance, count = _moments(x)
    if module.track_running_stats:
        with torch.no_grad():
            module.num_batches_tracked.add_(1)
            factor = module.momentum
            if factor is None:
                factor = 1.0 / float(module.num_batches_tracked)
            unbiased = variance * (count / (count - 1))
            module.running_mean.lerp_(mean.to(module.running_mean.dtype), factor)
            module.running_var.lerp_(unbiased.to(module.running_var.dtype), factor)
    scale = (variance + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight
    shift = -mean * scale
    if module.affine:
        shift = shift + module.bias
    shape = (1, -1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.float().view(shape), x.float(), scale.float().view(shape)).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of all workers' `x` (B, C, ...), and how many values each is of, in float64."""
    dims, x = [0, *range(2, x.dim())], x.float()
    n = x.numel() / x.shape[1]
    # Two sums are ten times as fast as torch.var_mean on the CPU.
    mean = x.sum(dims, keepdim=True) / n
    variance = (x - mean).square().sum(dims) / n
    # In float64, in which the difference of squares below loses nothing that float32 would show.
    mean, variance = mean.flatten().double(), variance.double()
    sums = _Sum.apply(torch.cat([n * mean, n * (variance + mean.square()), mean.new_full((1,), n)]))
    mean, square = (sums[:-1] / sums[-1]).chunk(2)
    return mean, square - mean.square(), sums[-1].detach()


class _Sum(torch.autograd.Function):
    """The sum over all workers; so is its gradient, and that one's.

    Gathered and added up here: of a few hundred numbers gloo's all_reduce takes five times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)
