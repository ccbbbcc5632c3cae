"""What cost_model.py needs, measured between two local workers of one thread each; JSON lines from rank 0.

In every round: rank 0 alone steps with the whole batch and with half of it; both step at once with half of it, each for
itself; both average gradients of several sizes, as the workers of one machine do; both step with half of it together.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing

from crayon import data, tasks
from crayon.data.types import Batch
from crayon.fast.allocator import keep_freed_memory
from crayon.system.host import computes_bf16
from crayon.training.collectives import Gradients, Group
from crayon.training.optimizer import adam
from crayon.training.step import TrainStep
from peers import torch_data
from suite.tell import Teller

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22)
"""float32 values per array."""


def stepper(config, splits, group: Group) -> Callable[[int], None]:
    """A function that does one step on so many images, with the gradients of all of `group`."""
    task = tasks.build(config, splits.info())
    if config.channels_last:
        task.networks.to(memory_format=torch.channels_last)
    optimizers = {name: adam(net, config) for name, net in task.networks.items()}
    update = TrainStep(config, task, task.networks, optimizers, group)
    images = splits.train.gather(torch.arange(config.global_batch_size)).float() / 255
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels, positions = splits.train.labels[: len(images)], torch.arange(len(images))
    task.networks.train()

    def step(count: int) -> None:
        update(Batch(images[:count], labels[:count], positions[:count]), 0, config.lr)

    step.gradient_bytes = 4 * sum(p.numel() for ps in update.trainable.values() for p in ps)
    step.networks = len(optimizers)
    return step


def averager(size: int, group: Group) -> Callable[[], None]:
    """Adds up gradients of `size` values."""
    parameter = torch.zeros(size)
    gradients = Gradients([parameter], group)

    def average() -> None:
        parameter.grad = torch.zeros(size)
        gradients.gather()
        gradients.add_up()

    return average


def seconds(work: Callable[[], None], least: float) -> list[float]:
    """The time of each call, for at least `least` seconds and three calls. The first isn't counted."""
    work()
    found, begun = [], time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begun < least:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def agreed(work: Callable[[], None], least: float) -> list[float]:
    """As `seconds`, with the same number of calls on both workers."""
    work()
    dist.barrier()
    found, begun, more = [], time.perf_counter(), torch.ones(1)
    while more.item():
        for _ in range(3):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
        more.fill_(float(time.perf_counter() - begun < least))
        dist.broadcast(more, 0)
    return found


def worker(rank: int, port: int, known, config) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    splits = data.load(config.data, labels=config.needs_labels)
    if config.precision == "auto":
        computes = computes_bf16(torch.device("cpu"))
        config = dataclasses.replace(config, precision="bf16" if computes else "fp32")
    torch.manual_seed(0)
    alone, both = stepper(config, splits, Group()), stepper(config, splits, Group(rank, 2))
    averages = {size: averager(size, Group(rank, 2)) for size in SIZES}
    whole, half = config.global_batch_size, config.global_batch_size // 2
    tell = Teller(known.told) if rank == 0 else None
    for _ in range(known.epochs):
        dist.barrier()
        found = {}
        if rank == 0:
            found |= {"whole": seconds(lambda: alone(whole), known.least)}
            found |= {"half": seconds(lambda: alone(half), known.least)}
        dist.barrier()
        found["beside"] = agreed(lambda: alone(half), known.least)
        sums = {
            4 * size: statistics.median(agreed(average, known.least / 4))
            for size, average in averages.items()
        }
        found["together"] = agreed(lambda: both(half), known.least)
        if tell:
            tell.say(
                steps={name: statistics.median(values) for name, values in found.items()},
                # Rank 0 waits for rank 1 in `ddp`, so only what it does by itself tells how much a step varies.
                jitter=statistics.pstdev(found["half"]) / statistics.mean(found["half"]),
                sums=sums,
                gradient_bytes=alone.gradient_bytes,
                networks=alone.networks,
                batch=whole,
            )
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, known, config), 2)


if __name__ == "__main__":
    main()
