"""Images per second beside busy processes: ours, with a fixed number of threads, a plain loop, Lightning, Keras."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from crayon.system.host import usable_cores
from suite.arrays import keras_network, prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import rates, running
from suite.settings import JOBS, Settings
from suite.sides import TRAIN_ONLY, Command, endless, installed, keras, ours, peer
from suite.steady import AIMS

LOADS = (0, 1, 2)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Beside `count` processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def commands(settings: Settings, job: str) -> dict[str, Command]:
    """The arms of `job` whose libraries are installed. `threads N`: ours with the number fixed."""
    flags = [*endless(job), *TRAIN_ONLY, "--wandb", "off"]
    sides = {
        "ours, --workers 0": ours(settings, job, *flags),
        "ours on Ray": ours(settings, job, *flags, workers="1"),
        **{f"threads {n}": ours(settings, job, *flags, "--threads", str(n)) for n in {1, usable_cores()}},
        "plain loop": peer(settings, "plain", job),
    }
    if installed("lightning_peer"):
        sides["Lightning"] = peer(settings, "lightning_peer", job)
    if job in AIMS and installed("keras_peer"):
        network, batch = keras_network(settings, job)
        sides["Keras"] = keras(settings, job, "--own-network", network, "--batch", str(batch))
    return sides


def turns(settings: Settings, job: str, load: int) -> dict[str, Figures]:
    with busy(load), running(commands(settings, job)) as started:
        found = rates(started, turns=1, turn=3.0 if settings.quick else 8.0, settle=3.0)
    best = max(rate for arm, rate in found.items() if arm.startswith("threads "))
    return {
        **{arm: {"images/s": rate} for arm, rate in found.items()},
        "best number": {"images/s": best},
    }


def cases(settings: Settings) -> list[Case]:
    made = []
    for job in JOBS:
        for load in LOADS:
            target = 0.8 if load else 0.99
            ratios = [
                Ratio(f"{arm} / best number of threads", "images/s", (arm, "best number"), target=target)
                for arm in ("ours, --workers 0", "ours on Ray")
            ]
            ratios += [
                Ratio(f"--workers 0 / {arm}", "images/s", ("ours, --workers 0", arm))
                for arm in ("plain loop", "Lightning", "Keras")
            ]
            made.append(
                Case(
                    f"{job}, {load or 'no'} busy process{'' if load == 1 else 'es'}",
                    {"turns": partial(turns, settings, job, load)},
                    tuple(ratios),
                    before=partial(prepare, settings, job, npz=job in AIMS and installed("keras_peer")),
                )
            )
    return made


BENCHMARK = Benchmark(
    "busy",
    "images per second beside busy processes",
    minutes=40,
    cases=cases,
    notes=(
        "A busy process is `while True: pass`; on two cores, two of them leave half of the machine.",
        "All arms of a repetition live at once and take turns of 8 s, while the busy processes go on.",
        "`threads N` is ours, --workers 0, with the number fixed; `best number` is the faster one of those.",
    ),
)
