"""One worker on one core against two workers on a core each, on Ray; and what two cores allow at all."""

from __future__ import annotations

import statistics
import time
from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import Failed, rate_within, running
from suite.settings import JOBS, Settings
from suite.sides import TRAIN_ONLY, Command, endless, ours
from suite.steady import pass_first_epoch, turns

ONE, TWO, DOUBLE = "1 worker", "2 workers", "2 workers, twice the batch"
ALONE, PAIR = "1 process", "2 processes, each on its own"


def pair(settings: Settings, command: Command) -> dict[str, Figures]:
    """One process of one thread, and two at once that know nothing of each other, by turns."""
    count, turn, settle = (1, 3.0, 1.0) if settings.quick else (2, 8.0, 2.0)
    words, env = command
    alone = (words, {**env, "OMP_NUM_THREADS": "1"})
    found: dict[str, list[float]] = {ALONE: [], PAIR: []}
    with running({"first": alone, "second": alone}) as started:
        for side in started.values():
            pass_first_epoch(side)
        for _ in range(count):
            for arm, sides in ((ALONE, ["first"]), (PAIR, ["first", "second"])):
                for name in sides:
                    started[name].go()
                time.sleep(settle)
                begun = time.time()
                time.sleep(turn)
                window = (begun, time.time())
                for name in sides:
                    started[name].stop()
                rates = [rate_within(started[name].steps(), [window]) for name in sides]
                if None in rates:
                    raise Failed(f"{arm}: no two steps within {turn:g} s")
                found[arm].append(sum(rates))
    return {arm: {"images/s": statistics.mean(values)} for arm, values in found.items()}


def cases(settings: Settings) -> list[Case]:
    from crayon.cli.flags import parse

    made = []
    for job in JOBS[:1] if settings.quick else JOBS:
        batch = parse(job, settings.flags(job), job).global_batch_size
        flags = [*endless(job), *TRAIN_ONLY, "--ray.cpus-per-worker", "1"]
        sides = {
            ONE: ours(settings, job, *flags, workers="1"),
            TWO: ours(settings, job, *flags, workers="2"),
            DOUBLE: ours(settings, job, *flags, "--global-batch-size", str(2 * batch), workers="2"),
        }

        made.append(
            Case(
                f"{job} ({settings.data(job)})",
                {
                    "turns": lambda sides=sides: turns(settings, sides),
                    "pair": partial(pair, settings, ours(settings, job, *endless(job), *TRAIN_ONLY)),
                },
                (
                    Ratio("2 workers / 1", "images/s", (TWO, ONE), "more", 1.8),
                    Ratio("2 workers, twice the batch / 1", "images/s", (DOUBLE, ONE), "more", 1.8),
                    Ratio("what the cores allow: 2 processes / 1", "images/s", (PAIR, ALONE)),
                ),
                before=partial(prepare, settings, job),
            )
        )
    return made


BENCHMARK = Benchmark(
    "scaling",
    "images per second of 1 and 2 workers, one core each",
    minutes=17,
    cases=cases,
    notes=(
        "The same batch of a step for 1 and 2 workers, so half for each of 2; `twice the batch`: the same for each.",
        "All arms of a repetition live at once and take turns, as in `steady`. With one worker the other core idles.",
        "Two processes that each train a model of their own, without Ray, show how far one core slows the other down.",
    ),
)
