"""Peak memory of all of a command's processes together, while it starts and trains."""

from __future__ import annotations

import time
from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Part, Ratio
from suite.processes import Side, Watch
from suite.settings import JOBS, Settings
from suite.sides import Command
from suite.steady import commands

FIGURE = "peak, MiB"


def peak(arm: str, command: Command, seconds: float) -> Part:
    def part() -> dict[str, Figures]:
        side = Side(*command)
        watch = Watch(side)
        try:
            side.first_step()
            time.sleep(seconds)
            side.check()
            return {arm: {FIGURE: watch.end()}}
        finally:
            watch.end()
            side.end()

    return part


def cases(settings: Settings) -> list[Case]:
    made = []
    for job in JOBS[:1] if settings.quick else JOBS:
        arms = commands(settings, job)
        parts = {arm: peak(arm, command, 3 if settings.quick else 10) for arm, command in arms.items()}
        others = [arm for arm in arms if arm not in ("ours on Ray", "ours, --workers 0", "limit")]
        ratios = [Ratio(f"{o} / ours, --workers 0", FIGURE, (o, "ours, --workers 0")) for o in others]
        ratios.append(
            Ratio("ours on Ray / --workers 0", FIGURE, ("ours on Ray", "ours, --workers 0"), "less")
        )
        ready = partial(prepare, settings, job, npz="Keras" in arms)
        made.append(Case(f"{job} ({settings.data(job)})", parts, tuple(ratios), before=ready))
    return made


BENCHMARK = Benchmark(
    "memory",
    "peak memory of all processes of a command, shared pages by their share (PSS)",
    minutes=9,
    cases=cases,
    notes=(
        "Sampled four times a second from the start to 10 s after the first step. DataLoader workers count.",
    ),
)
