"""A sweep in words: what the terminal, the report and the pictures all say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from crayon.report.words import metric_text, plain, seconds_text
from crayon.tuning.records import OVER, STATES, SweepRecord, TrialRecord


def setting_text(value: Any) -> str:
    """A setting's value as people read it: four digits, and truth as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def value_text(record: SweepRecord, trial: TrialRecord) -> str:
    """A trial's value by the sweep's metric."""
    return metric_text(record.plan.metric, trial.value)


def counted(record: SweepRecord) -> tuple[int, str]:
    """How many trials are over, and how many there are in each state."""
    counts = Counter(t.state for t in record.trials)
    states = ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])
    return sum(counts[state] for state in OVER), states


def trial_table(record: SweepRecord, trials: Sequence[TrialRecord]) -> tuple[list[str], list[list[str]]]:
    """A table's head and its row for each of `trials`."""
    metric, beside, names = record.plan.metric, record.beside, list(record.plan.space)
    front = record.front if record.plan.objective == "pareto" else []
    head = ["trial", "state", "epoch", plain(metric), *map(plain, beside), "training time"]
    rows = [
        [
            str(t.number) if t.number else "preset 0",
            t.state,
            f"{t.epoch}/{t.epochs}",
            value_text(record, t),
            *(metric_text(name, t.metrics.get(name)) for name in beside),
            seconds_text(t.seconds) if t.seconds else "–",
            *(["front" if t in front else ""] if front else []),
            *(setting_text(t.params[name]) for name in names),
        ]
        for t in trials
    ]
    return [*head, *(["front"] if front else []), *names], rows
