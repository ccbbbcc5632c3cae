"""How start, speed and memory grow with the number of images and with their size: ours and a plain loop."""

from __future__ import annotations

import time
from functools import partial

from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Part, Ratio
from suite.processes import Failed, Side, Watch, rate_within
from suite.settings import Settings
from suite.sides import TRAIN_ONLY, Command, endless, ours, peer

COUNTS = (10_000, 40_000, 160_000)
SIZES = (32, 64, 96, 128)


def grown(arm: str, command: Command, seconds: float) -> Part:
    """Seconds to the first step, images per second in the `seconds` after it, peak memory."""

    def part() -> dict[str, Figures]:
        side = Side(*command)
        watch = Watch(side)
        try:
            first = side.first_step()
            begun = time.time()
            rate = None
            while rate is None or time.time() - begun < seconds:
                time.sleep(0.5)
                side.check()
                rate = rate_within(side.steps(), [(begun, time.time())])
                if time.time() - begun > 120 + seconds:
                    raise Failed(f"{arm}: no second step")
            return {arm: {"first step, s": first, "images/s": rate, "peak, MiB": watch.end()}}
        finally:
            watch.end()
            side.end()

    return part


def cases(settings: Settings) -> list[Case]:
    counts, sizes = ((500, 1_000), (32, 48)) if settings.quick else (COUNTS, SIZES)
    points = [("images", n, ["--data.size", str(n)]) for n in counts]
    points += [
        ("pixels a side", s, ["--data.size", str(counts[0]), "--data.image-size", str(s)]) for s in sizes
    ]
    made = []
    bare = Settings(
        quick=settings.quick, device=settings.device
    )  # only what is rendered comes in any number and size
    for what, amount, flags in points:
        arms = {
            "ours, --workers 0": ours(bare, "cifar10", *endless("cifar10"), *TRAIN_ONLY, *flags),
            "plain loop": with_flags(peer(bare, "plain", "cifar10"), flags),
        }
        made.append(
            Case(
                f"{amount:,} {what}",
                {a: grown(a, command, 3 if settings.quick else 15) for a, command in arms.items()},
                (
                    Ratio("images/s, ours / plain loop", "images/s", ("ours, --workers 0", "plain loop")),
                    Ratio(
                        "first step, ours / plain loop",
                        "first step, s",
                        ("ours, --workers 0", "plain loop"),
                        "less",
                    ),
                ),
                before=partial(prepare, bare, "cifar10", *flags),
            )
        )
    return made


def with_flags(command: Command, flags: list[str]) -> Command:
    return [*command[0], *flags], command[1]


BENCHMARK = Benchmark(
    "growth",
    "how start, speed and memory grow with the number of images and their size",
    minutes=7,
    cases=cases,
    notes=("The cifar10 job on procedural shapes, RGB.",),
)
