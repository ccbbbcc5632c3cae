"""cost_model.py, fed with what two local workers measure, beside what those two really do."""

from __future__ import annotations

import statistics
import time
from functools import partial

from cost_model import Costs, assumptions, line_fit, predict, tables
from suite.arrays import prepare
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.processes import Failed, Side
from suite.settings import JOBS, Settings
from suite.sides import Command, peer
from suite.tell import read

FIGURE = "images/s"


def costs(told: list[dict]) -> Costs:
    """From the rounds that cost_probe.py told of: medians."""
    batch = told[0]["batch"]

    def median(pick) -> float:
        return statistics.median(pick(line) for line in told)

    fixed, per_image = line_fit(
        [(batch / 2, median(lambda t: t["steps"]["half"])), (batch, median(lambda t: t["steps"]["whole"]))]
    )
    sizes = told[0]["sums"]
    latency, per_byte = line_fit(
        [(float(size), median(lambda t, size=size: t["sums"][size])) for size in sizes]
    )
    return Costs(
        fixed=fixed,
        per_image=per_image,
        overlap=0.0,  # summing needs the cores that compute
        buckets=told[0]["networks"],
        gradient_bytes=told[0]["gradient_bytes"],
        bandwidth=1 / max(per_byte, 1e-15),  # with N = 2 each link carries the array's bytes once
        latency=latency / 2,
        contention=max(
            0.0, median(lambda t: t["steps"]["beside"]) / median(lambda t: t["steps"]["half"]) - 1
        ),
        jitter=median(lambda t: t["jitter"]),
        batch=batch,
        strong_batch=batch,
        report=0.0,
        report_per_worker=0.0,
        storage=1e15,
        images=10**9,
    )


def measure(command: Command) -> dict[str, Figures]:
    side = Side(*command)
    try:
        begun = time.time()
        while side.process.poll() is None:
            if time.time() - begun > 600:
                raise Failed(f"cost_probe: {side.said()}")
            time.sleep(0.2)
        told = [line for line in read(side.told) if "sums" in line]
        if side.process.returncode or not told:
            raise Failed(f"cost_probe: {side.said()}")
    finally:
        side.end()
    c = costs(told)
    one, two = (statistics.median(t["steps"][k] for t in told) for k in ("whole", "together"))
    return {
        "measured, 1 worker": {FIGURE: c.batch / one},
        "measured, 2 workers": {FIGURE: c.batch / two},
        "predicted, 1 worker": {FIGURE: predict(c, 1, strong=True).images_per_second},
        "predicted, 2 workers": {FIGURE: predict(c, 2, strong=True).images_per_second},
        "model": {
            "step: fixed, ms": 1000 * c.fixed,
            "step: per image, us": 1e6 * c.per_image,
            "gradients, MB": c.gradient_bytes / 1e6,
            "averaging, GB/s": c.bandwidth / 1e9,
            "averaging, us per message": 1e6 * c.latency,
            "slower beside another, %": 100 * c.contention,
            "steps vary by, %": 100 * c.jitter,
        },
    }


def cases(settings: Settings) -> list[Case]:
    rounds, least = ("1", "0.2") if settings.quick else ("5", "1.0")
    made = []
    for job in JOBS[:1] if settings.quick else JOBS:
        command = peer(settings, "cost_probe", job, "--epochs", rounds, "--least", least)
        made.append(
            Case(
                f"{job} ({settings.data(job)})",
                {"probe": partial(measure, command)},
                tuple(
                    Ratio(f"predicted / measured, {n}", FIGURE, (f"predicted, {n}", f"measured, {n}"), "less")
                    for n in ("1 worker", "2 workers")
                ),
                before=partial(prepare, settings, job),
            )
        )
    return made


def many() -> str:
    """What the model says of 8 to 1,024 GPUs."""
    return f"{assumptions(Costs())}\n\n{tables(Costs())}"


BENCHMARK = Benchmark(
    "cost",
    "the cost model's prediction for 1 and 2 workers beside what they do",
    minutes=4,
    cases=cases,
    notes=(
        "Bare steps, one thread each, the batch shared, gradients averaged in shared memory. Its parts are measured "
        "apart: step time against batch, averaging against size, how much slower a worker is beside another. One "
        "worker's prediction is nearly the measurement itself; that for two is the test.",
    ),
    appendix=many,
)
