"""Adam, its schedule, and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from crayon.config.settings import Experiment
from crayon.system import devices
from crayon.training.collectives import Group, flat, flat_gradient


class Adam:
    """AdamW (Loshchilov & Hutter 2019), the same to the last bit as `torch.optim.AdamW(fused=True)`.

    Why not torch's: creating any `torch.optim` optimizer imports torch's compiler, which few runs use (`compile`),
    and that takes longer than importing the rest of torch (benchmarks/LOG.md). The arithmetic is torch's own.

    groups: dicts with `params` (tensors of one device and dtype) and, where they aren't 0 and 1, `weight_decay` and
        `lr_factor`, by which the group's learning rate differs from the others'.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float):
        shared = {"betas": betas, "eps": eps, "weight_decay": 0.0, "lr_factor": 1.0}
        self.param_groups: list[dict[str, Any]] = [shared | group for group in groups]
        parameters = [p for group in groups for p in group["params"]]
        self.state: dict[Tensor, dict[str, Tensor]] = {
            p: {
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
                "step": torch.zeros((), device=p.device),
            }
            for p in parameters
        }
        """By parameter; a checkpoint is put back in place."""
        # Given tensors in NHWC order the kernel would copy every gradient, and then not use the copy: 3 % of a step.
        self._flattened = {
            p: (flat(p.detach()), flat(state["exp_avg"]), flat(state["exp_avg_sq"]), state["step"])
            for p, state in self.state.items()
        }
        device = parameters[0].device
        self._lrs = [torch.zeros((), device=device) if device.type == "cuda" else None for _ in groups]
        self.set_lr(lr)

    def set_lr(self, lr: float) -> None:
        """The learning rate from now on, times each group's factor. On a GPU it also lies in device memory, where a
        step that was recorded as a CUDA graph reads it."""
        for group, on_device in zip(self.param_groups, self._lrs, strict=True):
            group["lr"] = lr * group["lr_factor"]
            if on_device is not None:
                on_device.fill_(group["lr"])

    def set_beta1(self, beta1: float) -> None:
        """The decay of the first-moment estimate from now on."""
        for group in self.param_groups:
            group["betas"] = (beta1, group["betas"][1])

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.state:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group, on_device in zip(self.param_groups, self._lrs, strict=True):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                weights, means, squares, counts = map(
                    list, zip(*(self._flattened[p] for p in parameters), strict=True)
                )
                adamw(
                    weights,
                    [flat_gradient(p) for p in parameters],
                    means,
                    squares,
                    [],
                    counts,
                    fused=True,
                    lr=group["lr"] if on_device is None else on_device,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )


def adam(network: nn.Module, config: Experiment) -> Adam:
    """Adam for `network`, with the `lr` and `beta1` that every network of the job shares.

    Weight decay touches only tensors of two or more dimensions: decaying biases and normalisation gains does harm.
    Those are of the order of 1, where a convolution's weights are a hundredth, and can be given larger steps.

    A network may have `lr_factors`, learning rates of its parts in multiples of `lr` by the beginning of the
    parameters' names, of which the longest that fits counts. What doesn't require gradients is left as it is.
    """
    factors: Mapping[str, float] = getattr(network, "lr_factors", {})
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for vectors in (False, True):
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and (parameter.ndim < 2) == vectors:
                own = max((start for start in factors if name.startswith(start)), key=len, default=None)
                factor = 1.0 if own is None else factors[own]
                groups.setdefault((vectors, factor), []).append(parameter)
    described = [
        {"params": parameters, "lr_factor": factor * config.optim.bias_lr_factor}
        if vectors
        else {"params": parameters, "lr_factor": factor, "weight_decay": config.optim.weight_decay}
        for (vectors, factor), parameters in groups.items()
    ]
    return Adam(described, lr=config.lr, betas=(config.beta1, config.optim.beta2), eps=config.optim.eps)


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


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Average:
    """Exponential moving average of the networks' weights, with its half-life counted in images.

    The half-life ramps up with the images seen (Karras et al. 2022, 5 %), so that the first evaluations aren't those
    of the initial weights. Buffers are copied, not averaged; with `statistics` those of BatchNorm are averaged,
    too, from what each batch had.

    Eight times in a half-life, or more often, is the average brought nearer to the weights, not after every step: with
    small networks and batches that would take 2 % of the time (benchmarks/LOG.md).
    """

    RAMP = 0.05
    PER_HALF_LIFE = 8

    def __init__(self, networks: nn.ModuleDict, half_life: float, statistics: bool = False):
        self.half_life = half_life
        self.source = networks
        self.networks = networks if half_life <= 0 else copy.deepcopy(networks).requires_grad_(False)
        self._live: list[Tensor] = [p.detach() for p in networks.parameters()]
        self._mean: list[Tensor] = [p.detach() for p in self.networks.parameters()]
        self._copied = [*zip(self.networks.buffers(), networks.buffers(), strict=True)] if self.on else []
        self._statistics = statistics and self.on
        if self._statistics:
            norms = [m for m in networks.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
            for norm in norms:
                norm.momentum = 1.0  # it keeps the last batch's
            kept = {id(buffer) for norm in norms for buffer in (norm.running_mean, norm.running_var)}
            for mean, live in self._copied:
                if id(live) in kept:
                    self._live.append(live)
                    self._mean.append(mean)
            self._copied = [(mean, live) for mean, live in self._copied if id(live) not in kept]

    @property
    def on(self) -> bool:
        return self.half_life > 0

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """After a step that ended at `images_seen` images, `batch` of them new."""
        if self.on:
            half_life = max(1.0, min(self.half_life, self.RAMP * images_seen))
            # A power of two, so that the ever longer intervals of the ramp end where shorter ones did.
            every = 1 << max(0, int(half_life / (self.PER_HALF_LIFE * batch)).bit_length() - 1)
            if images_seen // batch % every == 0:
                torch._foreach_lerp_(self._mean, self._live, 1.0 - 0.5 ** (every * batch / half_life))

    @torch.no_grad()
    def copy_buffers(self, group: Group) -> None:
        """Give every worker, and the averaged networks, rank 0's buffers."""
        group.broadcast_buffers(self.source)
        if self._statistics:
            group.broadcast_buffers(self.networks)
        for mean, live in self._copied:
            mean.copy_(live)

    def measured(self) -> nn.ModuleDict:
        """The averaged networks where models are measured: copies on the CPU where the device has no float64."""
        if self._mean[0].device.type not in devices.WITHOUT_FLOAT64:
            return self.networks
        return copy.deepcopy(self.networks).to("cpu")
