"""The GAN's quality against time: feature distance and recall after 1, 3 and 10 minutes, ours and a plain DCGAN."""

from __future__ import annotations

import time
from functools import partial

from suite.accuracy import evaluations
from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import Failed, Side
from suite.settings import Settings
from suite.sides import UNAUGMENTED, Command, ours, peer
from suite.tell import read

MARKS = (60, 180, 600)
EPOCHS = 200
"""More than ten minutes of them; the learning rate is constant but for its warm-up, set to the preset's length."""


def name(mark: int) -> str:
    return f"{mark // 60} min" if mark % 60 == 0 else f"{mark} s"


def last_before(rows: list[dict], marks: tuple[int, ...]) -> Figures:
    """Of each mark the figures of the last evaluation that was over by then."""
    figures: Figures = {}
    for mark in marks:
        done = [row for row in rows if row["seconds"] <= mark and any(k.startswith("val/fd_") for k in row)]
        if done:
            key = next(k for k in done[-1] if k.startswith("val/fd_") and not k.endswith("_floor"))
            figures |= {
                f"{key[4:]} at {name(mark)}": done[-1][key],
                f"recall at {name(mark)}": done[-1]["val/recall"],
            }
    return figures


def our_part(command: Command, marks: tuple[int, ...]) -> dict[str, Figures]:
    side = Side(*command)
    try:
        while time.time() - side.begun < marks[-1] and side.process.poll() is None:
            time.sleep(0.2)
        if side.process.poll():
            side.check()
        figures = last_before([row | {"seconds": at} for at, row in evaluations(side)], marks)
    finally:
        side.end()
    if not figures:
        raise Failed(f"no evaluation within {marks[-1]} s")
    return {"ours": figures}


def their_part(command: Command, marks: tuple[int, ...]) -> dict[str, Figures]:
    side = Side(*command)
    try:
        while side.process.poll() is None:
            if time.time() - side.begun > 2 * marks[-1] + 300:
                raise Failed(f"DCGAN: {side.said()}")
            time.sleep(0.5)
        rows = [line for line in read(side.told) if "val/recall" in line]
        if len(rows) < len(marks):
            raise Failed(f"DCGAN: {side.said()}")
        return {"plain DCGAN": last_before(rows, marks)}
    finally:
        side.end()


def cases(settings: Settings) -> list[Case]:
    marks = (60, 90) if settings.quick else MARKS
    preset = 18 * 0.02  # epochs of warm-up, see presets.gan
    flags = ["--epochs", str(EPOCHS), "--optim.warmup", str(preset / EPOCHS), "--eval.every-epochs", "1"]
    flags += UNAUGMENTED
    words = ",".join(map(str, marks))
    ratios = [
        Ratio(f"distance, DCGAN / ours, {name(m)}", f"fd_crayon64 at {name(m)}", ("plain DCGAN", "ours"))
        for m in marks
    ]
    ratios += [
        Ratio(f"recall, ours / DCGAN, {name(m)}", f"recall at {name(m)}", ("ours", "plain DCGAN"))
        for m in marks
    ]
    return [
        Case(
            settings.data("gan"),
            {
                "ours": partial(our_part, ours(settings, "gan", *flags), marks),
                "plain DCGAN": partial(their_part, peer(settings, "dcgan", "gan", "--marks", words), marks),
            },
            tuple(ratios),
            before=partial(prepare, settings, "gan"),
        )
    ]


BENCHMARK = Benchmark(
    "gan_quality",
    "feature distance and recall on the held-out images against seconds since the process started",
    minutes=22,
    cases=cases,
    notes=(
        "Ours is the command with `--workers 0`, evaluated at every epoch's end within its time; the last evaluation "
        "before a mark counts. The DCGAN's clock stands still while it is measured, at the mark itself.",
        "Both are measured by the same code, against the same held-out images, with the same latents' seeds.",
    ),
)
