"""`crayon gan generate` against the bare forward pass of the same generator: images/s and processor time.

    python benchmarks/inference.py RUN [--images 16384] [--threads 1] [--repetitions 5]

- bare N: the network, in float32, on latents that lie ready, in batches of N; images thrown away.
- sample: `model.generate`: latents drawn, images made in blocks as the command makes them, as uint8.
- npy, png: all that the command does for a block, up to finished files on the disk.

The parts take turns, so that a busy machine slows all of them alike. Shares are of the bare pass in batches of 1,024,
by the same repetition.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch

import crayon
from crayon.fast.allocator import keep_freed_memory
from crayon.use.generate import blocks
from crayon.use.model import Model
from crayon.use.output import Output
from crayon.use.seeds import Seeds

LARGE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    model = crayon.load(options.run)
    seeds = torch.arange(options.images)
    parts: dict[str, Callable[[], object]] = {
        f"bare {LARGE}": bare(model, seeds, LARGE),
        "bare 64": bare(model, seeds, 64),
        "bare 16": bare(model, seeds, 16),
        "sample": partial(model.generate, seeds),
        "npy": whole(model, options.images, "npy"),
        "png": whole(model, options.images, "png"),
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for repetition in range(options.repetitions + 1):
        for name, work in parts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if repetition:  # the first warms up
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"{options.run}: {options.images} images, {options.threads} threads, {model.device}")
    base = spent[f"bare {LARGE}"]
    for name, times in spent.items():
        rate, cpu_rate = (options.images / statistics.median(t[i] for t in times) for i in (0, 1))
        shares, cpu = ([100 * b[i] / o[i] for b, o in zip(base, times, strict=True)] for i in (0, 1))
        print(
            f"{name:10s} {rate:8,.0f} images/s, {cpu_rate:8,.0f} a processor second; of bare "
            f"{statistics.median(shares):5.1f} % ({', '.join(f'{s:.0f}' for s in shares)}), "
            f"by processor time {statistics.median(cpu):5.1f} %"
        )


def bare(model: Model, seeds: torch.Tensor, size: int) -> Callable[[], object]:
    network = model.networks["generator"]
    batches = model.latents(seeds).to(model.device).split(size)

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            network(batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def whole(model: Model, count: int, format: str) -> Callable[[], object]:
    output = Output(tempfile.mkdtemp(), {})
    make = blocks(lambda: model, Seeds(f"0..{count - 1}"), LARGE, format)

    def run() -> None:
        for k in range(-(-count // LARGE)):
            output.write(f"block-{k}", make(k, None))

    return run


if __name__ == "__main__":
    main()
