"""Time to accuracy, from the start of the process, on the same held-out images: ours, Keras' tutorials, a loop."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import Failed, Side
from suite.settings import Settings
from suite.sides import Command, installed, keras, ours, peer
from suite.tell import read

GOALS = {"mnist": (0.979, 0.994), "cifar10": (0.7038, 0.85)}
SPEEDUPS = {"mnist": 8.0, "cifar10": 3.0}
"""How many times sooner than Keras ours is meant to be at the first goal."""
INSTANT = ("--preset", "instant")
CAPS = {"mnist": 150.0, "cifar10": 420.0}
"""Seconds after which a side has given up."""


def epochs(side: Side) -> list[tuple[float, float]]:
    """(seconds since the process started, accuracy on the held-out images) at the end of each epoch so far."""
    told = [(line["at"] - side.begun, line["accuracy"]) for line in read(side.told) if "accuracy" in line]
    return told or [(at, row["val/accuracy"]) for at, row in evaluations(side) if "val/accuracy" in row]


def evaluations(side: Side) -> list[tuple[float, dict[str, Any]]]:
    """(seconds since the process started, row of metrics.jsonl) of each evaluation, where `side` is ours."""
    rows = [row for row in rows_of(side) if any(key.startswith("val/") for key in row)]
    ends = [line["at"] - side.begun for line in read(side.told) if line.get("what") == "evaluate"]
    return list(zip(ends, rows, strict=False))


def rows_of(side: Side) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl so far, where `side` is a command of ours."""
    path = side.folder / "runs" / "run" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def until(arm: str, command: Command, goals: tuple[float, ...], cap: float) -> dict[str, Figures]:
    """Run until the last goal is reached, the command ends or `cap` seconds are over."""
    side = Side(*command)
    try:
        while time.time() - side.begun < cap and side.process.poll() is None:
            if epochs(side) and epochs(side)[-1][1] >= goals[-1]:
                break
            time.sleep(0.2)
        done, spent = epochs(side), time.time() - side.begun
        ended = side.process.poll() is not None  # and will never get there
        if not done:
            raise Failed(f"{arm} finished no epoch in {spent:.0f} s: {side.said()}")
    finally:
        side.end()
    figures: Figures = {
        f"to {100 * goal:.4g} %, s": next((at for at, value in done if value >= goal), None) for goal in goals
    }
    return {
        arm: figures | {"best, %": 100 * max(v for _, v in done), "gave_up_after_s": None if ended else spent}
    }


def cases(settings: Settings) -> list[Case]:
    made = []
    for job in GOALS:
        goals = (0.3, 0.5) if settings.quick else GOALS[job]
        cap = 90.0 if settings.quick else CAPS[job]
        first = goals[:1]  # all that a first look is meant for
        arms = {
            "ours, instant, --workers 0": (ours(settings, job, *INSTANT), first),
            "ours, instant, on Ray": (ours(settings, job, *INSTANT, workers="1"), first),
            "ours, quick, --workers 0": (ours(settings, job), goals),
            "ours, quick, on Ray": (ours(settings, job, workers="1"), goals),
            "plain loop, our network": (peer(settings, "plain", job, "--validate"), goals),
        }
        if installed("keras_peer"):
            arms["Keras tutorial"] = (keras(settings, job, "--validate"), goals)
        parts = {arm: partial(until, arm, command, its, cap) for arm, (command, its) in arms.items()}
        ratios = []
        for goal in goals:
            figure = f"to {100 * goal:.4g} %, s"
            for other in ("Keras tutorial", "plain loop, our network"):
                for mine in (arm for arm, (_, its) in arms.items() if arm.startswith("ours") and goal in its):
                    aimed = other == "Keras tutorial" and "instant" in mine
                    ratios.append(
                        Ratio(
                            f"{other} / {mine}, {figure[:-3]}",
                            figure,
                            (other, mine),
                            "more",
                            SPEEDUPS[job] if aimed else None,
                        )
                    )
        made.append(
            Case(
                f"{job} ({settings.data(job)})",
                parts,
                tuple(ratios),
                before=partial(prepare, settings, job, npz="Keras tutorial" in arms),
            )
        )
    return made


BENCHMARK = Benchmark(
    "accuracy",
    "seconds from the start of the process to an accuracy on the held-out images",
    minutes=26,
    cases=cases,
    notes=(
        "All sides train on the same images and are measured at the end of every epoch on the same held-out ones (8 % "
        "of the training images); the test split isn't looked at. Images are decoded before; Keras reads a .npz.",
        "Ours runs its presets, `instant` for the first goal alone (MNIST: on 20,000 of the images), and measures "
        "averaged weights where the preset has them. Keras' networks, batch sizes and optimizer are the tutorials' "
        "(peers/keras_peer.py). A side that hadn't got there when its time was up counts as if it had got there then, "
        "so the ratio is a bound.",
    ),
)
