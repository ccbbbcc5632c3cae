"""One worker on one core against two workers on a core each, on Ray."""

from __future__ import annotations

from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Case, Ratio
from suite.settings import JOBS, Settings
from suite.sides import TRAIN_ONLY, endless, ours
from suite.steady import turns

ONE, TWO, DOUBLE = "1 worker", "2 workers", "2 workers, twice the batch"


def cases(settings: Settings) -> list[Case]:
    from crayon.arguments import parse

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
                {"turns": lambda sides=sides: turns(settings, sides)},
                (
                    Ratio("2 workers / 1", "images/s", (TWO, ONE), "more", 1.8),
                    Ratio("2 workers, twice the batch / 1", "images/s", (DOUBLE, ONE), "more", 1.8),
                ),
                before=partial(prepare, settings, job),
            )
        )
    return made


BENCHMARK = Benchmark(
    "scaling",
    "images per second of 1 and 2 workers, one core each",
    minutes=10,
    cases=cases,
    notes=(
        "The same batch of a step for 1 and 2 workers, so half for each of 2; `twice the batch`: the same for each.",
        "All arms of a repetition live at once and take turns, as in `steady`. With one worker the other core idles.",
    ),
)
