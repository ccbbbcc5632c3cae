"""The bare step on one device, in one precision, compiled or not, its kernels launched one by one or as one CUDA graph.
Tells one line with its rate, then waits to be ended.

Forward and backward pass are compiled together, network by network; the optimizer is fused already. Steps are timed
between two synchronisations of the device. A recorded step is replayed on one batch, without anything on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch
import torch.distributed as dist

from crayon import data, tasks
from crayon.config.names import override
from crayon.config.settings import AugmentConfig
from crayon.data import Loader
from crayon.data.types import Batch
from crayon.fast.allocator import keep_freed_memory
from crayon.fast.cuda_graph import WARM_UP_STEPS
from crayon.training.collectives import Group
from crayon.training.optimizer import adam
from crayon.training.step import TrainStep
from peers import torch_data
from suite.tell import Teller


def bare(
    config, device: torch.device, group: Group, count: int = 1, augment: AugmentConfig | None = None
) -> tuple[TrainStep, list[Batch]]:
    """A step of a new network, and `count` batches of its images."""
    splits = data.load(config.data, labels=config.needs_labels)
    torch.manual_seed(config.seed)
    task = tasks.build(config, splits.info())
    task.networks.to(device)
    if config.channels_last:
        task.networks.to(memory_format=torch.channels_last)
    task.networks.train()
    optimizers = {name: adam(net, config) for name, net in task.networks.items()}
    update = TrainStep(config, task, task.networks, optimizers, group)
    loader = Loader(
        splits.train,
        global_batch_size=config.global_batch_size,
        device=device,
        augment=augment,
        channels_last=config.channels_last,
    )
    return update, [batch for batch, _ in zip(loader.epoch(0), range(count), strict=False)]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(turn: Callable[[int], None], device: torch.device, least: float) -> tuple[int, float]:
    """How many times `turn` was called within at least so many seconds, four times between two synchronisations, and
    how often in a second."""
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < least or done < 4:
        for number in range(4):
            turn(number)
        done += 4
        synchronise(device)
    return done, done / (time.perf_counter() - begun)


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    wanted = "cuda" if config.device == "auto" else config.device
    device = torch.device(wanted)
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    config = override(config, {"cuda_graph": known.recorded, "compile": known.compile})
    group = Group(device=device)
    if known.distributed:  # the code of several workers, by one
        kind = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
        group.alone = False
    update, batches = bare(config, device, group, 16, config.augment)

    def step(number: int) -> None:
        update(batches[number % len(batches)], number, config.lr)

    begun = time.perf_counter()
    for number in range(WARM_UP_STEPS + 4):
        step(number)
    synchronise(device)
    warmup = time.perf_counter() - begun
    launches = getattr(update.run, "recorded", ())
    if known.recorded and not launches:
        raise SystemExit("the step was not recorded")

    def replay(number: int) -> None:
        for launch in launches:
            launch()

    done, turns = timed(replay if known.recorded else step, device, known.least)
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    Teller(known.told).say(
        images=done, rate=turns * config.global_batch_size, warmup=warmup, mib=used / 2**20, over=True
    )
    time.sleep(600)


if __name__ == "__main__":
    main()
