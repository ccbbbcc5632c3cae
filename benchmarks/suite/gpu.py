"""One GPU: recorded steps, the code of several workers on one, many trials at once, CIFAR-10 to 94 %, the GAN at 64 px.
Needs no network, and ends in 10 minutes.

uv run benchmarks/run.py gpu --cifar10 DIR          # or without data, on what is rendered on the spot
uv run benchmarks/run.py gpu --device cpu --quick   # tries the benchmark on a machine without one
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from typing import Any

from suite.accuracy import until
from suite.arrays import prepare
from suite.gan_quality import our_part
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import Failed, Side, rate_within
from suite.settings import JOBS, Missing, Settings
from suite.sides import TRAIN_ONLY, Command, endless, ours, peer
from suite.tell import read

FULL = ["--preset", "full"]
VARIANTS = ("bf16", "bf16, recorded", "bf16, recorded, of several")
"""The last: with a process group of one (NCCL), whose all-reduce is part of the graph."""
TRIALS = (1, 2, 4, 8)
SHARING = {"in turns": [], "MPS": ["--mps"], "branches of one graph": ["--branches"]}
FIGURE = "images/s"


def has_gpu() -> bool:
    """Asked in a process of its own: the harness loads no torch."""
    code = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def ready(settings: Settings, *job_and_flags: str) -> None:
    """Raises Missing without a GPU, but for `--device cpu`."""
    if settings.device != "cpu" and not has_gpu():
        raise Missing(
            "torch sees no GPU on this machine; --device cpu --quick tries the benchmark without one."
        )
    prepare(settings, *job_and_flags)


def flags(settings: Settings, job: str) -> list[str]:
    """The full preset; small enough for a CPU with --quick."""
    few = ["--model.width", "8", "--global-batch-size", "32"] if settings.quick else []
    size = ["--data.image-size", "64"] if job == "gan" else []
    return [*FULL, *size, *few]


def bare(settings: Settings, job: str, variant: str) -> dict[str, Figures]:
    """The bare step; with the seconds that compiling took, if that was asked for."""
    options = ["--recorded"] * ("recorded" in variant) + ["--distributed"] * ("several" in variant)
    last = told(settings, variant, "gpu_step", job, *options)
    figures = {FIGURE: last["rate"], "warm-up, s": last["warmup"], "peak, MiB": last["mib"]}
    return {f"bare step, {variant}": figures}


def told(settings: Settings, what: str, name: str, job: str, *options: str) -> dict[str, Any]:
    """The last line that a peer tells; it is ended then."""
    words, env = peer(settings, name, job, *options)
    more = ["--precision", "bf16", "--device", settings.device]
    side = Side([*words, *flags(settings, job), *more], env)
    try:
        while not ((lines := read(side.told)) and lines[-1].get("over")):
            side.check()
            if time.time() - side.begun > 120:
                raise Failed(f"{what}: {side.said()}")
            time.sleep(0.2)
        return lines[-1]
    finally:
        side.end()


def trials(settings: Settings, job: str, way: str, count: int) -> dict[str, Figures]:
    """The images/s of `count` trials at once."""
    options = ["--trials", str(count), *SHARING[way], "--least", "1" if settings.quick else "4"]
    last = told(settings, way, "gpu_trials", job, *options)
    return {f"{count} at once, {way}": {FIGURE: last["rate"]}}


def system(arm: str, command: Command, seconds: float) -> dict[str, Figures]:
    side = Side(*command)
    try:
        first, rate = side.first_step(), None
        time.sleep(seconds / 2)
        begun = time.time()
        while rate is None or time.time() - begun < seconds:
            time.sleep(0.5)
            side.check()
            rate = rate_within(side.steps(), [(begun, time.time())])
            if time.time() - begun > 120 + seconds:
                raise Failed(f"no second step: {side.said()}")
        return {arm: {FIGURE: rate, "first step, s": first}}
    finally:
        side.end()


def cases(settings: Settings) -> list[Case]:
    made = []
    cpu, seconds = settings.device == "cpu", 2.0 if settings.quick else 8.0
    for job in ("cifar10", "gan") if settings.quick else JOBS:
        variants = (VARIANTS[0], "bf16, of several") if cpu else VARIANTS  # a CPU records nothing
        parts = {variant: partial(bare, settings, job, variant) for variant in variants}
        more = [*flags(settings, job), *endless(job), *TRAIN_ONLY, "--precision", "bf16"]
        parts["ours"] = partial(system, "ours", ours(settings, job, *more), seconds)
        limit, several = (f"bare step, {variant}" for variant in variants[-2:])
        made.append(
            Case(
                f"{job}, full ({settings.data(job)})",
                parts,
                (
                    Ratio("recorded / not", FIGURE, ("bare step, bf16, recorded", "bare step, bf16")),
                    Ratio("of several / alone", FIGURE, (several, limit)),
                    Ratio("ours / limit", FIGURE, ("ours", limit), target=0.95),
                ),
                before=partial(ready, settings, job, *flags(settings, job)),
            )
        )
    counts = TRIALS[:2] if settings.quick else TRIALS
    ways = [way for way in SHARING if not (cpu and way == "MPS")]
    made.append(
        Case(
            f"trials of mnist, full, at once ({settings.data('mnist')})",
            {f"{n}, {way}": partial(trials, settings, "mnist", way, n) for way in ways for n in counts},
            tuple(
                Ratio(f"{n} / 1, {way}", FIGURE, tuple(f"{i} at once, {way}" for i in (n, 1)))
                for way in ways
                for n in counts[1:]
            ),
            before=partial(ready, settings, "mnist", *flags(settings, "mnist")),
        )
    )
    goals, cap = ((0.3, 0.94), 60.0) if settings.quick else ((0.9, 0.94), 90.0)
    to_goal = ours(settings, "cifar10", *flags(settings, "cifar10"), "--precision", "bf16")
    made.append(
        Case(
            f"cifar10, full, time to accuracy ({settings.data('cifar10')})",
            {"ours": partial(until, "ours, --workers 0", to_goal, goals, cap)},
            before=partial(ready, settings, "cifar10", *flags(settings, "cifar10")),
        )
    )
    marks = (90,) if settings.quick else (60, 180)
    face = ours(settings, "gan", *flags(settings, "gan"), "--precision", "bf16", "--eval.every-epochs", "1")
    made.append(
        Case(
            f"gan, full, 64 px, quality against time ({settings.data('gan')})",
            {"ours": partial(our_part, face, marks)},
            before=partial(ready, settings, "gan", *flags(settings, "gan")),
        )
    )
    return made


BENCHMARK = Benchmark(
    "gpu",
    "one GPU: steps, trials at once, CIFAR-10 to 94 %, the GAN at 64 px (the `full` presets)",
    minutes=10,
    cases=cases,
    notes=(
        "Without --cifar10 and --faces on images rendered on the spot: accuracies are of procedural shapes then.",
        "Accuracy is measured on the held-out images (8 % of the training images), the time from the process's start.",
    ),
)
