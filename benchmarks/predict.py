"""`crayon JOB predict` against the bare forward pass of the same model: images/s and processor time.

    python benchmarks/predict.py RUN [--files FOLDER] [--images 8192] [--threads 1] [--repetitions 5]

- bare: the network on float images that lie ready in batches of 1,000, probabilities thrown away.
- small: the same in batches as `predict` makes them, which a CPU's caches prefer.
- blocks: `model.classify` on uint8 images in memory.
- arrays: all that `predict` does with a data source in memory, up to a finished part of the table on the disk.
- files, with --files: the same with that folder's images; and `decoding`, which does nothing but read them.

The parts take turns, so that a busy machine slows all of them alike. Shares are of bare, by the same repetition.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import crayon
from crayon.fast.allocator import keep_freed_memory
from crayon.use import inputs, predict, table
from crayon.use.inputs import Inputs
from crayon.use.settings import SourceConfig

BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--files")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = crayon.load(options.run)
    size = (options.images, *model.form.shape)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8)
    keep_freed_memory()
    parts = {"bare": bare(model, pixels, BATCH), "small": bare(model, pixels, model.block)}
    parts["blocks"] = lambda: model.classify(pixels)
    parts["arrays"] = through(model, _Memory(pixels))
    if options.files:
        found = inputs.find([options.files], SourceConfig())
        found = Inputs(files=found.files[: options.images], here=found.here)
        reader = found.open(model)
        parts["files"] = through(model, found)
        parts["decoding"] = lambda: reader.start(0, len(reader))()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for repetition in range(options.repetitions + 1):
        for name, work in parts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if repetition:  # the first warms up
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"{options.run}: {options.images} images, {options.threads} threads, {model.device}")
    for name, times in spent.items():
        rate = options.images / statistics.median(wall for wall, _ in times)
        shares = [bare[0] / own[0] for bare, own in zip(spent["bare"], times, strict=True)]
        cpu = statistics.median(bare[1] / own[1] for bare, own in zip(spent["bare"], times, strict=True))
        text = ", ".join(f"{100 * share:.0f}" for share in shares)
        print(
            f"{name:9s} {rate:8,.0f} images/s  {100 * statistics.median(shares):5.1f} % of bare ({text}), "
            f"by processor time {100 * cpu:.1f} %"
        )


def bare(model: crayon.use.model.Model, pixels: torch.Tensor, size: int) -> Callable[[], object]:
    layout = torch.channels_last if model.config.channels_last else torch.contiguous_format
    batches = [
        (part.float() / 255).to(model.device).contiguous(memory_format=layout) for part in pixels.split(size)
    ]
    bf16 = model.precision == "bf16"

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                model.task.predict(model.networks["classifier"], batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


class _Memory:
    """As Inputs, of images in memory."""

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels

    def open(self, model: crayon.use.model.Model, progress: object = None) -> inputs.Reader:
        from crayon.data import ImageSet

        images = ImageSet("memory", self.pixels, torch.zeros(len(self.pixels), dtype=torch.int64))
        return inputs.from_set(images)


def through(model: crayon.use.model.Model, found: object) -> Callable[[], object]:
    size = table.block_size(model)
    make = table.blocks(lambda: model, found, size, predict.work)
    count = len(found.open(model))
    blocks = range(-(-count // size))
    folder = Path(tempfile.mkdtemp())

    def work() -> None:
        for k in blocks:
            made = make(k, k + 1 if k + 1 < len(blocks) else None)
            (folder / "part").write_bytes(made)

    return work


if __name__ == "__main__":
    main()
