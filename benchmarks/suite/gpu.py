"""One GPU: throughput by precision and compilation, CIFAR-10 to 94 %, the GAN at 64 px. Needs no network.

uv run benchmarks/run.py gpu --cifar10 DIR          # or without data, on what is rendered on the spot
uv run benchmarks/run.py gpu --device cpu --quick   # tries the benchmark on a machine without one
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from suite.accuracy import until
from suite.arrays import prepare
from suite.gan_quality import our_part
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import Failed, Side, rate_within
from suite.settings import JOBS, Missing, Settings
from suite.sides import TRAIN_ONLY, Command, endless, ours, peer

FULL = ["--preset", "full"]
VARIANTS = ("fp32", "bf16", "bf16, compiled", "bf16, recorded", "bf16, compiled and recorded")
SYSTEMS = {"ours": [], "ours, --compile": ["--compile"], "ours, --no-cuda-graph": ["--no-cuda-graph"]}
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
    precision = ["--precision", variant.partition(",")[0]]
    options = ["--compile"] * ("compiled" in variant) + ["--recorded"] * ("recorded" in variant)
    words, env = peer(settings, "gpu_step", job, *options)
    side = Side([*words, *flags(settings, job), *precision, "--device", settings.device], env)
    try:
        while not (side.steps() and side.steps()[-1].get("over")):
            side.check()
            if time.time() - side.begun > 400:
                raise Failed(f"{variant}: {side.said()}")
            time.sleep(0.2)
        last = side.steps()[-1]
        return {
            f"bare step, {variant}": {
                FIGURE: last["rate"],
                "warm-up, s": last["warmup"],
                "peak, MiB": last["mib"],
            }
        }
    finally:
        side.end()


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
    seconds = 2.0 if settings.quick else 15.0
    for job in ("cifar10", "gan") if settings.quick else JOBS:
        # A CPU records nothing, and its compiler is none of what is asked here.
        variants, systems = (
            (VARIANTS[:2], ["ours"]) if settings.device == "cpu" else (VARIANTS, list(SYSTEMS))
        )
        parts = {variant: partial(bare, settings, job, variant) for variant in variants}
        for arm in systems:
            more = [*flags(settings, job), *endless(job), *TRAIN_ONLY, "--precision", "bf16", *SYSTEMS[arm]]
            parts[arm] = partial(system, arm, ours(settings, job, *more), seconds)
        made.append(
            Case(
                f"{job}, full ({settings.data(job)})",
                parts,
                (
                    Ratio("bf16 / fp32", FIGURE, ("bare step, bf16", "bare step, fp32")),
                    Ratio("compiled / not", FIGURE, ("bare step, bf16, compiled", "bare step, bf16")),
                    Ratio("recorded / not", FIGURE, ("bare step, bf16, recorded", "bare step, bf16")),
                    Ratio("ours / limit", FIGURE, ("ours", "bare step, bf16, recorded"), target=0.95),
                    Ratio(
                        "ours, --compile / limit",
                        FIGURE,
                        ("ours, --compile", "bare step, bf16, compiled and recorded"),
                        target=0.95,
                    ),
                ),
                before=partial(ready, settings, job, *flags(settings, job)),
            )
        )
    goals, cap = ((0.3, 0.94), 60.0) if settings.quick else ((0.9, 0.94), 300.0)
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
    "one GPU: throughput, CIFAR-10 to 94 %, the GAN at 64 px (the `full` presets)",
    minutes=20,
    cases=cases,
    notes=(
        "Without --cifar10 and --faces on images rendered on the spot: accuracies are of procedural shapes then.",
        "Accuracy is measured on the held-out images (8 % of the training images), the time from the process's start.",
    ),
)
