"""How long training waits for checkpoints, evaluation and the other work at an epoch's end, as a share of the epoch."""

from __future__ import annotations

import statistics
import time
from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Bound, Case, Figures, Ratio
from suite.processes import Failed, Side
from suite.settings import JOBS, Settings
from suite.sides import Command, ours, peer
from suite.tell import read


def shares(lines: list[dict]) -> Figures | None:
    """From what the probe told, but for the first epoch, which also starts things: medians over the epochs."""
    found: dict[str, list[float]] = {"epoch": [], "checkpoint": [], "end": [], "evaluation": []}
    saves = evaluations = 0.0
    ends: list[float] = []
    for line in lines:
        what, seconds = line.get("what"), line.get("seconds", 0.0)
        saves += seconds if what == "save" else 0.0
        evaluations += seconds if what == "evaluate" else 0.0
        if what == "end_epoch":
            ends.append(seconds)
        if what == "train_epoch":
            if line["epoch"] > 1 and ends:
                found["epoch"].append(seconds)
                found["checkpoint"].append(saves)
                found["evaluation"].append(evaluations)
                found["end"].append(ends[-1])
            saves = evaluations = 0.0
    if not found["epoch"]:
        return None
    epoch, saved, evaluated, end = (
        statistics.median(found[k]) for k in ("epoch", "checkpoint", "evaluation", "end")
    )
    return {
        "epoch, s": epoch,
        "checkpoint, ms": 1000 * saved,
        "checkpoint, % of the epoch": 100 * saved / epoch,
        "logging and the rest, ms": 1000 * (end - saved - evaluated),
        "logging and the rest, % of the epoch": 100 * (end - saved - evaluated) / epoch,
        "evaluation, % of the epoch": 100 * evaluated / epoch,
        "epochs measured": float(len(found["epoch"])),
    }


def watched(arm: str, command: Command, epochs: int) -> dict[str, Figures]:
    side = Side(*command)
    try:
        while sum(line.get("what") == "train_epoch" for line in read(side.told)) < epochs + 1:
            if side.process.poll() is not None:
                break
            if time.time() - side.begun > 600:
                break
            time.sleep(0.2)
        figures = shares(read(side.told))
        if figures is None:
            raise Failed(f"{arm} finished no two epochs: {side.said()}")
        if arm == "torch.save":  # whose epochs are nothing else
            figures = {"checkpoint, ms": figures["checkpoint, ms"]}
        return {arm: figures}
    finally:
        side.end()


def cases(settings: Settings) -> list[Case]:
    made = []
    for job in JOBS[:1] if settings.quick else JOBS:
        epochs = 3 if settings.quick else 5
        # The schedule is the preset's; what ends the run is that it was watched for long enough. With 50 epochs the GAN
        # would augment, which it doesn't in its preset.
        flags = ["--epochs", "40", "--eval.every-epochs", "1"]
        arms = {
            "ours, --workers 0": ours(settings, job, *flags),
            "ours on Ray": ours(settings, job, *flags, workers="1"),
            "torch.save": peer(settings, "torch_save", job, "--epochs", str(epochs + 1)),
        }
        share = "checkpoint, % of the epoch"
        made.append(
            Case(
                f"{job} ({settings.data(job)})",
                {arm: partial(watched, arm, command, epochs) for arm, command in arms.items()},
                (
                    Bound("checkpoint, --workers 0", share, "ours, --workers 0", 2.0),
                    Bound("checkpoint, on Ray", share, "ours on Ray", 2.0),
                    Ratio(
                        "checkpoint / torch.save",
                        "checkpoint, ms",
                        ("ours, --workers 0", "torch.save"),
                        "less",
                    ),
                ),
                before=partial(prepare, settings, job),
            )
        )
    return made


BENCHMARK = Benchmark(
    "stalls",
    "how long training waits for checkpoints and logging, per epoch",
    minutes=11,
    cases=cases,
    notes=(
        "Time inside Trainer.save and Trainer.end_epoch in the training process (suite/probe), median over the epochs "
        "after the first. Ours writes checksums and syncs to disk; `torch.save` writes networks and Adam's state.",
        "With data made on the spot epochs are far shorter than real ones, and the shares larger.",
    ),
)
