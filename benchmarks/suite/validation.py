"""Peak memory of the end of a run, by the number of validation images."""

from __future__ import annotations

import time
from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Part, Ratio
from suite.processes import Failed, Side, Watch, private_mib
from suite.settings import Settings
from suite.sides import Command, peer
from suite.tell import read

JOBS = ("mnist", "autoencoder", "gan")
COUNTS = (2_000, 8_000, 32_000)
TRAIN = 2_000
"""Training images, always the same ones: probes are fitted on them, and copies are looked for among them."""
LIMIT_S = 1_800.0
FIGURE = "peak, MiB"


def sized(job: str, count: int) -> list[str]:
    """Crayon's settings that hold out `count` images."""
    source = "faces" if job == "gan" else "shapes"
    whole = TRAIN + count
    flags = ["--data.source", source, "--data.size", str(whole), "--data.val-fraction", str(count / whole)]
    return [
        *flags,
        "--data.image-size",
        "28" if job == "mnist" else "32",
        "--eval.batch-size",
        "100",
        "--device",
        "cpu",
    ]


def measured(arm: str, command: Command) -> Part:
    def part() -> dict[str, Figures]:
        side = Side(*command)
        watch = Watch(side, every=0.005, of=private_mib)
        try:
            side.first_step()
            begun = time.time()
            while not any("measured" in line for line in read(side.told)):
                side.check()
                if time.time() - begun > LIMIT_S:
                    raise Failed(f"{arm}: not measured after {LIMIT_S:.0f} s")
                time.sleep(0.2)
            return {arm: {FIGURE: watch.end()}}
        finally:
            watch.end()
            side.end()

    return part


def cases(settings: Settings) -> list[Case]:
    counts = (200, 800) if settings.quick else COUNTS
    bare = Settings(quick=settings.quick)  # only what is rendered comes in any number
    arms = [f"{count:,} images" for count in counts]
    ratio = Ratio(f"{arms[-1]} / {arms[0]}", FIGURE, (arms[-1], arms[0]), "less", 1.1)
    made = []
    for job in JOBS[:1] if settings.quick else JOBS:
        plain, env = peer(bare, "measuring_probe", job)
        start = plain[: plain.index("--") + 1]
        parts, ready = {}, []
        for arm, count in zip(arms, counts, strict=True):
            parts[arm] = measured(arm, ([*start, *sized(job, count)], env))
            ready.append(partial(prepare, bare, job, *sized(job, count)))
        made.append(Case(job, parts, (ratio,), before=lambda ready=ready: [make() for make in ready]))
    return made


BENCHMARK = Benchmark(
    "validation",
    "peak memory of measuring a model, by the number of validation images",
    minutes=6,
    cases=cases,
    notes=(
        "What training ends with, batches of 100: figures and pictures of the validation split, with 2,000 training "
        "images, on procedural shapes (28 px grey, 32 px grey) and faces (32 px RGB). The process's own memory "
        "(RssAnon), sampled 200 times a second; images that are mapped from a file aren't in it.",
        "What does grow is one row an image: 20 bytes for a classifier, 128 floats of features for a GAN (4,096 with "
        "Inception), the code and up to 3,072 bytes of pixels for an autoencoder on labelled images.",
    ),
)
