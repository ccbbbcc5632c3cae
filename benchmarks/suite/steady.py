"""Images per second in steady state, each model: the limit, ours, a plain PyTorch loop, Lightning, Keras."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from crayon.system.host import usable_cores
from suite.arrays import keras_network, prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import PATIENCE, Failed, Side, rates, running
from suite.settings import JOBS, Settings
from suite.sides import TRAIN_ONLY, Command, endless, installed, is_ours, keras, ours, peer

AIMS = {"mnist": 1.5, "cifar10": 1.5}
"""Times the plain loop's images per second."""
EACH = "ours on Ray, a worker per core"


def workers(settings: Settings, job: str) -> int:
    """As many as there are cores, or fewer where the batch can't be shared among so many."""
    from crayon.cli.flags import parse

    batch = parse(job, settings.flags(job), job).global_batch_size
    return next(n for n in range(usable_cores(), 0, -1) if batch % n == 0)


def commands(settings: Settings, job: str) -> dict[str, Command]:
    """The arms of `job` whose libraries are installed."""
    sides = {
        "limit": peer(settings, "limit", job),
        "ours, --workers 0": ours(settings, job, *endless(job), *TRAIN_ONLY),
        "ours on Ray": ours(settings, job, *endless(job), *TRAIN_ONLY, workers="1"),
        EACH: ours(settings, job, *endless(job), *TRAIN_ONLY, workers=str(workers(settings, job))),
        "plain loop": peer(settings, "plain", job),
    }
    if installed("lightning_peer"):
        sides["Lightning"] = peer(settings, "lightning_peer", job)
    if job in AIMS and installed("keras_peer"):
        network, batch = keras_network(settings, job)
        sides["Keras"] = keras(settings, job, "--own-network", network, "--batch", str(batch))
    return sides


def turns(settings: Settings, sides: Mapping[str, Command]) -> dict[str, Figures]:
    length = (
        {"turns": 1, "turn": 3.0, "settle": 1.0}
        if settings.quick
        else {"turns": 2, "turn": 8.0, "settle": 2.0}
    )
    with running(sides) as started:
        for arm, side in started.items():
            if is_ours(sides[arm]):
                pass_first_epoch(side)
        found = rates(started, **length)
    return {arm: {"images/s": rate} for arm, rate in found.items()}


def pass_first_epoch(side: Side) -> None:
    """Let `side`, a stopped command of ours, run to the end of its first epoch, and until W&B, which is imported then,
    has started: that comes once in a run."""
    side.go()
    deadline = time.time() + PATIENCE
    while not list((side.folder / "runs" / "run" / "wandb").glob("*run-*")):
        side.check()
        if time.time() > deadline:
            raise Failed(f"no epoch ended within {PATIENCE:.0f} s: {side.said()}")
        time.sleep(0.2)
    side.stop()


def cases(settings: Settings) -> list[Case]:
    made = []
    for job in JOBS:
        sides = commands(settings, job)
        ratios = [
            Ratio("share of the limit, --workers 0", "images/s", ("ours, --workers 0", "limit"), target=0.95),
            Ratio("share of the limit, on Ray", "images/s", ("ours on Ray", "limit"), target=0.95),
            Ratio("share of the limit, on Ray, a worker per core", "images/s", (EACH, "limit"), target=0.95),
            Ratio(
                "--workers 0 / plain loop",
                "images/s",
                ("ours, --workers 0", "plain loop"),
                target=AIMS.get(job),
            ),
            Ratio("on Ray / plain loop", "images/s", ("ours on Ray", "plain loop"), target=AIMS.get(job)),
            Ratio("on Ray / Lightning", "images/s", ("ours on Ray", "Lightning")),
            Ratio("on Ray / Keras", "images/s", ("ours on Ray", "Keras")),
        ]
        made.append(
            Case(
                f"{job} ({settings.data(job)})",
                {"turns": lambda sides=sides: turns(settings, sides)},
                tuple(ratios),
                before=partial(prepare, settings, job, npz="Keras" in sides),
            )
        )
    return made


BENCHMARK = Benchmark(
    "steady",
    "images per second in steady state, the same network and batch on all sides",
    minutes=19,
    cases=cases,
    notes=(
        "All arms of a repetition live at once and take turns of 8 s; while one computes, the others are stopped.",
        "The limit is one process whose threads share each step; `a worker per core` has the same batch in as many "
        "processes of one thread, which average their gradients.",
        "Ours and the limit use the preset's bf16; plain loop and Lightning float32 with two DataLoader workers, Keras "
        "float32 from arrays in memory, without augmentation.",
        "Ours is measured from its second epoch on: W&B, whose import takes seconds, starts at the end of the first.",
        "Ours logs, shows its progress and writes checkpoints meanwhile, and doesn't validate; nor do the others.",
    ),
)
