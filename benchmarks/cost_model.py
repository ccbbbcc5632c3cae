#!/usr/bin/env python
"""What a step costs on N workers, and what becomes the bottleneck. Predicts images/s; checked at 1 and 2 workers here.

    uv run benchmarks/cost_model.py                       # the table, for the figures assumed below
    uv run benchmarks/cost_model.py --images-per-second 25000 --parameters 11e6 --bandwidth-gbytes 20
    uv run benchmarks/cost_model.py --jobs                # recorded steps of `full` on 1 to 512 GPUs

A step of N workers: every worker computes its share of the batch, gradients are summed in a ring or a tree, part of
that beside the backward pass; all wait for the slowest. Once an epoch the workers report, and rank 0 writes a
checkpoint. At the start every node reads the images once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the prediction starts from. Times in seconds, sizes in bytes.

    The defaults are assumptions about a data centre, not measurements: GPUs of one node share a link to the network.
    """

    fixed: float = 0.002
    """Of a step, whatever the batch: launching kernels, optimizer."""
    per_image: float = 4e-5
    """Of one image's forward and backward pass on one worker: 25,000 images/s."""
    backward: float = 0.67
    """Share of the compute time in which gradients come in and can be summed meanwhile."""
    overlap: float = 0.0
    """Share of the backward pass that summing can really hide in. Gradients are summed after it, in one message: 0."""
    buckets: int = 1
    """Collective operations of a step: one for each network."""
    gradient_bytes: float = 4 * 11e6
    """float32 gradients of all networks."""
    bandwidth: float = 20e9
    """Bytes per second over the slowest link of the ring."""
    latency: float = 10e-6
    """Of one message between neighbours, software included."""
    contention: float = 0.0
    """By what share two or more workers on one machine compute slower than one: memory bandwidth, shared caches."""
    jitter: float = 0.02
    """Relative standard deviation of a worker's step; the slowest of N is waited for."""
    batch: int = 256
    """Images per worker and step: weak scaling."""
    strong_batch: int = 8192
    """Images per step over all workers: strong scaling."""
    images: int = 1_200_000
    """Of an epoch."""
    image_bytes: int = 3 * 64 * 64
    """uint8, in memory."""
    loader_rate: float = 2e5
    """Images per second that one worker's process can gather and hand to its device; it does so beside the step."""
    report: float = 1.0
    """Interval of the controller's looks at its workers: an epoch's report waits half of it on average, ..."""
    report_per_worker: float = 0.001
    """... which asks every worker: seconds each. Unmeasured beyond two workers."""
    report_every: float = 2.0
    """Epochs are reported no more often than this (trainer.REPORT_SECONDS)."""
    checkpoint_every: float = 0.0
    """Epochs' checkpoints are no closer than this. 0 = one every epoch."""
    storage: float = 5e8
    """Bytes per second of the storage that checkpoints go to."""
    storage_read: float = 2e9
    """Bytes per second of the shared storage that all nodes read the images from at the start."""
    node: int = 8
    """Workers per node, which hold one copy of the images between them."""
    epochs: int = 90


@dataclass(frozen=True)
class Prediction:
    workers: int
    images_per_second: float
    """Over a whole run without its start."""
    efficiency: float
    """Of `workers` times one worker's rate."""
    shares: dict[str, float]
    """What an epoch's time goes into, by name; adds up to 1."""
    start: float
    """Seconds in which the nodes read the images."""

    @property
    def bottleneck(self) -> str:
        """What takes most beside computing, or "computing" where all else together is under a tenth."""
        rest = {name: share for name, share in self.shares.items() if name != "computing"}
        return max(rest, key=rest.__getitem__) if sum(rest.values()) >= 0.1 else "computing"


def all_reduce(c: Costs, workers: int) -> float:
    """Seconds of summing the gradients: in a ring, or in a tree where that is faster, as NCCL chooses.

    Ring: 2 (N - 1) / N bytes over each link, in 2 (N - 1) messages. Tree: 2 bytes, in 2 log2 N messages.
    """
    if workers == 1:
        return 0.0
    send, message = c.gradient_bytes / c.bandwidth, c.buckets * c.latency
    ring = 2 * (workers - 1) * (send / workers + message)
    return min(ring, 2 * send + 2 * math.ceil(math.log2(workers)) * message)


def predict(c: Costs, workers: int, *, strong: bool = False) -> Prediction:
    """strong: a step has `c.strong_batch` images over all workers, not `c.batch` for each."""
    share = c.strong_batch / workers if strong else c.batch
    alone = c.fixed + c.per_image * share
    compute = alone * (1 + c.contention if workers > 1 else 1)
    # The expected largest of N normal values lies about sqrt(2 ln N) deviations above the mean.
    waiting = compute * c.jitter * math.sqrt(2 * math.log(workers)) if workers > 1 else 0.0
    exposed = max(0.0, all_reduce(c, workers) - c.overlap * c.backward * compute)
    loading = max(0.0, share / c.loader_rate - compute - waiting - exposed)
    steps = c.images / (share * workers)
    parts = {
        "computing": steps * compute,
        "slowest worker": steps * waiting,
        "gradients": steps * exposed,
        "loader": steps * loading,
    }
    trained = sum(parts.values())
    saved = 3 * c.gradient_bytes / c.storage  # weights and two moments
    parts["checkpoint"] = saved * min(1.0, trained / c.checkpoint_every if c.checkpoint_every else 1.0)
    each = c.report / 2 + c.report_per_worker * workers if workers > 1 else 0.0
    # Of several short epochs one is reported: r / (epoch + r) = each / report_every at most.
    parts["report"] = each * min(1.0, sum(parts.values()) / max(c.report_every - each, 1e-9))
    epoch = sum(parts.values())
    best = (
        1 / (c.fixed / share + c.per_image)
        if not strong
        else c.strong_batch / (c.fixed + c.per_image * c.strong_batch)
    )
    nodes = math.ceil(workers / c.node)
    return Prediction(
        workers,
        c.images / epoch,
        c.images / epoch / (workers * best),
        {name: seconds / epoch for name, seconds in parts.items()},
        nodes * c.images * c.image_bytes / c.storage_read,
    )


@dataclass(frozen=True)
class Recorded:
    """A step of a job's `full`, recorded on one H200 (LOG.md, the replay)."""

    seconds: float
    images: int
    parameters: int
    messages: int
    """All-reduces of a step: one for each network."""
    scales_to: int
    """As in crayon.tasks.jobs.Job."""


STEPS = {
    "mnist": Recorded(1.33e-3, 256, 797_898, 1, 4),
    "cifar10": Recorded(2.25e-3, 512, 1_972_490, 1, 2),
    "autoencoder": Recorded(1.72e-3, 256, 1_513_924, 1, 4),
    "gan": Recorded(4.10e-3, 128, 6_572_612, 2, 1),
}
FIXED = 0.4
"""Share of a recorded step that doesn't shrink with its batch: assumed, from 2.5 us for each of 224 or 741 kernels."""
INSIDE = 300e9, 20e-6
"""Bytes per second and latency of an all-reduce of one node's GPUs: assumed."""
LINKS = 25, 100, 400
"""Gbit/s of a node."""
GPUS = tuple(2**i for i in range(10))
WORTH = 1.2
"""A job should stop where twice the GPUs are not this many times as fast."""


def recorded_step(job: Recorded, gpus: int, gbit: float, weak: bool) -> tuple[float, float]:
    """(seconds, images over all GPUs) of a step. The all-reduce follows the backward pass: nothing hides it. weak: each
    GPU keeps the preset's images whatever `scales_to` is."""
    c, share = Costs(), 1.0 if weak else min(1.0, job.scales_to / gpus)
    compute = job.seconds * (FIXED + (1 - FIXED) * share)
    waiting = compute * c.jitter * math.sqrt(2 * math.log(gpus)) if gpus > 1 else 0.0
    size = 4 * job.parameters / job.messages
    nodes = math.ceil(gpus / c.node)
    between = replace(c, gradient_bytes=size, bandwidth=gbit * 1e9 / 8, latency=20e-6)
    inside = INSIDE[1] + 2 * size / INSIDE[0] if gpus > 1 else 0.0
    return compute + waiting + job.messages * (inside + all_reduce(between, nodes)), job.images * share * gpus


def jobs_table() -> str:
    """Markdown: for each job and link the share of linear speed where each GPU keeps its images, and as `full` has it
    how many times one GPU's images/s; and where it should stop."""
    lines = []
    for name, job in STEPS.items():
        alone = job.images / job.seconds
        lines += [
            f"{name}, {job.images} images a step on one GPU, {alone:,.0f} images/s:",
            "",
            "| GPUs | each keeps its images: "
            + " | ".join(f"{gbit} Gbit/s" for gbit in LINKS)
            + " | as `full`: "
            + " | ".join(f"{gbit} Gbit/s" for gbit in LINKS)
            + " |",
            "|---" * 7 + "|",
        ]

        def times(gpus: int, gbit: float, weak: bool, job: Recorded = job, alone: float = alone) -> float:
            seconds, images = recorded_step(job, gpus, gbit, weak)
            return images / seconds / alone

        for gpus in GPUS:
            shares = [f"{times(gpus, gbit, True) / gpus:.2f}" for gbit in LINKS]
            rates = [f"{times(gpus, gbit, False):.1f}" for gbit in LINKS]
            lines.append(f"| {gpus} | {' | '.join([*shares, *rates])} |")
        stops = [
            next((n for n in GPUS if times(2 * n, gbit, False) < WORTH * times(n, gbit, False)), GPUS[-1])
            for gbit in LINKS
        ]
        lines += ["", f"It should stop at {', '.join(map(str, stops))} GPUs.", ""]
    return "\n".join(lines)


def line_fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of y = a + b x by least squares of the relative errors, neither below 0."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
    slope = max(0.0, slope)
    return max(0.0, mean_y - slope * mean_x), slope


def tables(c: Costs, sizes: Sequence[int] = SIZES) -> str:
    """Markdown: weak and strong scaling, and both with a report and a checkpoint a minute."""
    rare = replace(c, report_every=60.0, checkpoint_every=60.0)
    return "\n".join(
        f"{heading}\n\n{table(costs, sizes)}"
        for heading, costs in (
            ("A report (at most every 2 s) and a checkpoint at every epoch's end, as it is:", c),
            ("Both at most once a minute:", rare),
        )
    )


def table(c: Costs, sizes: Sequence[int] = SIZES) -> str:
    """Markdown: weak and strong scaling."""
    lines = []
    for strong in (False, True):
        batch = (
            f"{c.strong_batch:,} images over all workers" if strong else f"{c.batch:,} images for each worker"
        )
        lines += [
            f"{'Strong' if strong else 'Weak'} scaling, {batch}:",
            "",
            "| workers | images/s | efficiency | computing | slowest worker | gradients | report, checkpoint | start "
            "| bottleneck |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for n in sizes:
            if strong and c.strong_batch < n:
                lines.append(f"| {n:,} | | | | | | | | fewer images than workers |")
                continue
            p = predict(c, n, strong=strong)
            s = p.shares
            end = s["report"] + s["checkpoint"]
            lines.append(
                f"| {n:,} | {p.images_per_second:,.0f} | {p.efficiency:.0%} | {s['computing']:.0%} | "
                f"{s['slowest worker']:.0%} | {s['gradients']:.0%} | {end:.0%} | {p.start:,.0f} s | {p.bottleneck} |"
            )
        lines.append("")
    return "\n".join(lines)


def assumptions(c: Costs) -> str:
    return (
        f"Assumed: {1 / c.per_image:,.0f} images/s per worker beyond {1000 * c.fixed:.2g} ms a step, "
        f"{c.gradient_bytes / 1e6:,.3g} MB of gradients, {c.bandwidth / 1e9:.3g} GB/s and {1e6 * c.latency:.3g} us per "
        f"message between neighbours, {c.overlap:.0%} of the backward pass hides it, steps vary by {c.jitter:.0%}, "
        f"{c.images:,} images an epoch, a controller that looks every {c.report:.2g} s and asks each worker for "
        f"{1000 * c.report_per_worker:.2g} ms, {c.storage / 1e6:,.0f} MB/s for checkpoints, "
        f"{c.storage_read / 1e9:.3g} GB/s for reading the images."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images-per-second", type=float, help="of one worker, e.g. from gpu.py")
    parser.add_argument("--parameters", type=float, help="trained, of all networks")
    parser.add_argument("--batch", type=int, help="of a worker, weak scaling")
    parser.add_argument("--strong-batch", type=int, help="over all workers, strong scaling")
    parser.add_argument("--bandwidth-gbytes", type=float, help="of the ring's slowest link, per second")
    parser.add_argument("--latency-us", type=float, help="of a message between neighbours")
    parser.add_argument("--images", type=int, help="of an epoch")
    parser.add_argument("--jobs", action="store_true", help="our jobs' recorded steps instead")
    known = parser.parse_args()
    if known.jobs:
        print(jobs_table())
        return
    asked = {
        "per_image": known.images_per_second and 1 / known.images_per_second,
        "gradient_bytes": known.parameters and 4 * known.parameters,
        "batch": known.batch,
        "strong_batch": known.strong_batch,
        "bandwidth": known.bandwidth_gbytes and 1e9 * known.bandwidth_gbytes,
        "latency": known.latency_us and 1e-6 * known.latency_us,
        "images": known.images,
    }
    for name, value in asked.items():
        if value is not None and value <= 0:
            parser.error(f"{name} is {value:g}; it must be more than 0")
    costs = replace(Costs(), **{name: value for name, value in asked.items() if value is not None})
    print(assumptions(costs), end="\n\n")
    print(tables(costs))


if __name__ == "__main__":
    main()
