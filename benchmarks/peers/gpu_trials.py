"""One to several trials of a job on one device, all at once: recorded bare steps of N processes, which the driver gives
turns (or, with --mps, NVIDIA's Multi-Process Service runs together), or, with --branches, of one process, as parallel
branches of one CUDA graph. Tells one line with the images/s of all, then waits to be ended. A CPU records nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch
import torch.multiprocessing as mp

from crayon.fast.allocator import keep_freed_memory
from crayon.fast.cuda_graph import WARM_UP_STEPS, GraphRandomness, record
from crayon.rng import Randomness
from crayon.training.collectives import Group
from crayon.training.step import TrainStep
from crayon.tuning import mps
from peers import torch_data
from peers.gpu_step import bare, synchronise, timed
from suite.tell import Teller


def trial(config, device: torch.device) -> tuple[TrainStep, Callable[[], None]]:
    """A step, warmed up, and what does its work on one batch, to be recorded."""
    update, (batch,) = bare(config, device, Group(device=device))
    rng = GraphRandomness(Randomness(config.seed, "trial"), device)
    terms: dict[str, torch.Tensor] = {}

    def work() -> None:
        for part in update.parts(batch, rng, terms):
            part()

    for _ in range(WARM_UP_STEPS):
        work()
    return update, work


def branches(works: list[Callable[[], None]], device: torch.device) -> Callable[[], None]:
    """All of `works` at once: on a GPU one graph with a branch for each."""

    def together() -> None:
        if device.type != "cuda":
            for work in works:
                work()
            return
        main = torch.cuda.current_stream()
        streams = [torch.cuda.Stream() for _ in works]
        for stream, work in zip(streams, works, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                work()
        for stream in streams:
            main.wait_stream(stream)

    return record(together) if device.type == "cuda" else together


def rate(launch: Callable[[], None], images: int, device: torch.device, least: float) -> float:
    launch()
    synchronise(device)
    return images * timed(lambda number: launch(), device, least)[1]


def one_of_several(number: int, config, device_name: str, least: float, ready, found) -> None:
    device = torch.device(device_name)
    keep_freed_memory()
    _, work = trial(config, device)
    launch = branches([work], device)
    ready.wait(300)
    found[number] = rate(launch, config.global_batch_size, device, least)
    ready.wait(300)  # until then the others are busy, too


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    wanted = "cuda" if config.device == "auto" else config.device
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    device = torch.device(wanted)
    with contextlib.ExitStack() as stack:
        if known.mps:
            mps.use()
            stack.callback(mps._quit)
        begun = time.perf_counter()
        if known.branches:
            kept = [trial(config, device) for _ in range(known.trials)]
            launch = branches([work for _, work in kept], device)
            total = rate(launch, known.trials * config.global_batch_size, device, known.least)
        else:
            context = mp.get_context("spawn")
            ready, found = context.Barrier(known.trials), context.Array("d", known.trials)
            args = (config, wanted, known.least, ready, found)
            processes = [context.Process(target=one_of_several, args=(i, *args)) for i in range(known.trials)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                raise SystemExit("a trial failed")
            total = sum(found)
        Teller(known.told).say(rate=total, seconds=time.perf_counter() - begun, over=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
