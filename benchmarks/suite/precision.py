"""--precision auto beside fp32 and bf16 on processors of several generations, emulated by limiting oneDNN."""

from __future__ import annotations

from functools import partial

from suite.accuracy import CAPS, GOALS, INSTANT, until
from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import rates, running
from suite.settings import JOBS, Settings
from suite.sides import TRAIN_ONLY, Command, endless, ours, peer

LIMITS: dict[str, dict[str, str]] = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512 without bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "native": {},
}
PRECISIONS = ("auto", "fp32", "bf16")


def limited(command: Command, limit: str) -> Command:
    words, env = command
    return words, env | LIMITS[limit]


def turns(settings: Settings, job: str, limit: str) -> dict[str, Figures]:
    """Images per second on one thread, so that only the instructions decide."""
    flags = [*endless(job), *TRAIN_ONLY, "--threads", "1", "--wandb", "off"]
    sides = {
        precision: limited(ours(settings, job, *flags, "--precision", precision), limit)
        for precision in PRECISIONS
    }
    turn = 2.0 if settings.quick else 6.0
    with running(sides) as started:
        found = rates(started, turns=1, turn=turn, settle=1.0)
    better = max(found["fp32"], found["bf16"])
    return {**{arm: {"images/s": rate} for arm, rate in found.items()}, "better": {"images/s": better}}


def cases(settings: Settings) -> list[Case]:
    made = [
        Case(
            f"{job}, {limit}",
            {"turns": partial(turns, settings, job, limit)},
            (Ratio("auto / the better one", "images/s", ("auto", "better"), target=0.95),),
            before=partial(prepare, settings, job),
        )
        for limit in LIMITS
        for job in JOBS
    ]
    for job, goals in GOALS.items():
        first, all_of_it = goals[:1], (0.3, 0.5) if settings.quick else goals
        arms = {
            "ours, instant, --workers 0": (ours(settings, job, *INSTANT), first),
            "ours, quick, --workers 0": (ours(settings, job), all_of_it),
            "plain loop, our network": (peer(settings, "plain", job, "--validate"), all_of_it),
        }
        cap = 60.0 if settings.quick else CAPS[job]
        parts = {
            # Ours gets twice the time, so that it can reach the second goal.
            arm: partial(until, arm, limited(command, "AVX2"), goals, cap * (2 if "ours" in arm else 1))
            for arm, (command, goals) in arms.items()
        }
        made.append(Case(f"{job} to accuracy, AVX2", parts, (), before=partial(prepare, settings, job)))
    return made


BENCHMARK = Benchmark(
    "precision",
    "--precision auto on processors with and without bf16",
    minutes=18,
    cases=cases,
    notes=(
        "AVX2 is `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`, AVX-512 without bf16 is "
        "`ONEDNN_MAX_CPU_ISA=AVX512_CORE`; native is the processor as it is.",
        "Images/s on one thread, in turns of 6 s. To accuracy: seconds since the process started, on all cores.",
    ),
)
