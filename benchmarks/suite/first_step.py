"""From the command to the first finished step: in one process, and on Ray beside the barest Ray Train launch."""

from __future__ import annotations

from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Bound, Case, Figures, Part, Ratio
from suite.processes import Side
from suite.settings import JOBS, Settings
from suite.sides import Command, bare_launch, endless, installed, keras, ours, peer

FIGURE = "first step, s"


def timed(arm: str, command: Command) -> Part:
    def part() -> dict[str, Figures]:
        side = Side(*command)
        try:
            return {arm: {FIGURE: side.first_step()}}
        finally:
            side.end()

    return part


def cases(settings: Settings) -> list[Case]:
    made = []
    for job in JOBS[:1] if settings.quick else JOBS:
        arms = {
            "ours, --workers 0": ours(settings, job, *endless(job)),
            "ours on Ray": ours(settings, job, *endless(job), workers="1"),
            "barest Ray Train launch": bare_launch(),
            "plain loop": peer(settings, "plain", job),
        }
        if installed("lightning_peer"):
            arms["Lightning"] = peer(settings, "lightning_peer", job)
        ratios = (
            Bound("--workers 0, seconds", FIGURE, "ours, --workers 0", 6.0),
            Ratio("on Ray / barest launch", FIGURE, ("ours on Ray", "barest Ray Train launch"), "less", 1.2),
            Ratio("--workers 0 / plain loop", FIGURE, ("ours, --workers 0", "plain loop"), "less"),
            Ratio("--workers 0 / Lightning", FIGURE, ("ours, --workers 0", "Lightning"), "less"),
        )

        if job in ("mnist", "cifar10") and installed("keras_peer"):
            arms["Keras"] = keras(settings, job)
        made.append(
            Case(
                f"{job} ({settings.data(job)})",
                {arm: timed(arm, command) for arm, command in arms.items()},
                ratios,
                before=partial(prepare, settings, job, npz="Keras" in arms),
            )
        )
    return made


BENCHMARK = Benchmark(
    "first_step",
    "seconds from the command to the first finished step",
    minutes=7,
    cases=cases,
    notes=(
        "Fresh processes of Python (no `uv run`), warm page cache, images decoded or rendered before. Plain "
        "loop and Lightning import our networks and data as well. The barest launch: one worker, one step of "
        "one layer (peers/ray_launch.py).",
    ),
)
