"""What it costs several workers that they talk to each other in every step, told once."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from crayon.report.events import Emit, Event, Message, Step
from crayon.training.step import TrainStep

TRIES = 3
SETTLED = 2
"""Which report of the pace counts: in the first steps kernels are made, and steps recorded."""


def telling(update: TrainStep, emit: Emit) -> Emit:
    """`emit`, which also says, as soon as the pace is known, how much of it averaging gradients takes. Every worker
    takes part in measuring that; with one, `emit` as it is."""
    group, config, seen = update.group, update.config, 0
    if group.alone:
        return emit
    sizes = [sum(p.numel() for p in found) for found in update.trainable.values()]
    seconds = averaging_seconds(update, sizes)

    def tell(event: Event) -> None:
        nonlocal seen
        emit(event)
        if isinstance(event, Step) and (seen := seen + 1) == SETTLED:
            step, workers = config.global_batch_size / max(event.images_per_second, 1e-9), group.world_size
            text = (
                f"{workers} workers take {config.global_batch_size / workers:,.3g} images each a step and average "
                f"{4e-6 * sum(sizes):,.3g} MB of gradients in {1000 * seconds:,.3g} of its {1000 * step:,.3g} ms: "
                f"{max(0.0, 100 * (1 - seconds / step)):.0f} % of linear speed."
            )
            emit(Message(text))

    return tell


def averaging_seconds(update: TrainStep, sizes: list[int]) -> float:
    """How long averaging a step's gradients takes, of which the networks have so many."""
    device = update.group.device
    parts = [torch.zeros(size, device=device) for size in sizes]
    times = []
    for _ in range(TRIES):
        dist.barrier()
        begun = time.perf_counter()
        for part in parts:
            dist.all_reduce(part)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times)
