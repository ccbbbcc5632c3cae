"""A sweep in words: what the terminal, the report and the pictures all say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from crayon.report.words import metric_text, plain, seconds_text
from crayon.tuning.records import OVER, STATES, SweepRecord, TrialRecord
from crayon.tuning.requirements import figure_text


def setting_text(value: Any) -> str:
    """A setting's value as people read it: four digits, and truth as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def called(trial: TrialRecord) -> str:
    """A trial's number; of a run that confirms one, that one's and the run's seed."""
    return str(trial.number) if trial.confirms is None else f"{trial.confirms} seed {trial.params['seed']}"


def value_text(record: SweepRecord, trial: TrialRecord) -> str:
    """A trial's value by the sweep's metric."""
    return metric_text(record.plan.metric, trial.value)


def counted(record: SweepRecord) -> tuple[int, str]:
    """How many trials are over, and how many there are in each state."""
    counts = Counter(t.state for t in record.trials)
    states = ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])
    return sum(counts[state] for state in OVER), states


def difference_text(metric: str, value: float, sign: str = "+") -> str:
    """A difference of two values of a metric.

    >>> difference_text("val/accuracy", 0.0051)
    '+0.51 points'
    """
    if metric_text(metric, 0.5).endswith("%"):
        return f"{100 * value:{sign}.2f} points"
    return f"{value:{sign}.3g}"


def confirming_text(record: SweepRecord) -> str:
    """What is about to run with other seeds."""
    assert record.verdict is not None
    *first, last = [f"trial {c.trial}" for c in record.verdict.comparisons]
    names = f"{', '.join(['the preset', *first])} and {last}"
    return f"Confirming the best: {names} with {record.verdict.seeds} other seeds each."


def verdict_text(record: SweepRecord) -> str:
    """Which trial is the best by runs with other seeds, or that none is told apart from the preset."""
    verdict, metric = record.verdict, record.plan.metric
    assert verdict is not None
    won = next((c for c in verdict.comparisons if c.trial == verdict.winner), None)
    more = f" Of the runs {verdict.missing} are still to come." if verdict.missing else ""
    if won is None or won.difference is None or won.margin is None:
        if verdict.missing:
            return f"no trial is told apart from the preset so far.{more}"
        return (
            f"no trial is told apart from the preset with {verdict.seeds} other seeds, so the preset is kept."
        )
    by = difference_text(metric, won.difference).removesuffix(" points")
    gain = f"{by} ± {difference_text(metric, won.margin, '')}"
    return f"trial {won.trial} is better than the preset, by {gain} with {won.seeds} other seeds.{more}"


def verdict_table(record: SweepRecord) -> tuple[list[str], list[list[str]]]:
    """A table's head and its row for each trial that was compared with the preset."""
    metric = record.plan.metric
    head = [
        "trial",
        "pairs of runs",
        f"{plain(metric)}, mean",
        "preset, mean",
        "better by",
        "95 % interval",
        "",
    ]
    rows = []
    for c in record.verdict.comparisons if record.verdict else ():
        interval, told = "–", "told apart, better" if c.better else "not told apart"
        if c.difference is not None and c.margin is not None:
            ends = (difference_text(metric, c.difference + side * c.margin) for side in (-1, 1))
            interval = " to ".join(end.removesuffix(" points") for end in ends)
            told = "told apart, worse" if c.difference < -c.margin else told
        if c.failed:
            told = f"{c.failed} failed"
        by = "–" if c.difference is None else difference_text(metric, c.difference)
        means = [metric_text(metric, value) for value in (c.value, c.preset)]
        rows.append([str(c.trial), str(c.seeds), *means, by, interval, told])
    return head, rows


def trial_table(record: SweepRecord, trials: Sequence[TrialRecord]) -> tuple[list[str], list[list[str]]]:
    """A table's head and its row for each of `trials`."""
    metric, beside, names = record.plan.metric, record.beside, list(record.plan.space)
    front = record.front if record.plan.objective == "pareto" else []
    turns = ["goes on from"] if record.plan.population else []
    figures = [*dict.fromkeys(name for t in record.trials for name in t.figures)]
    head = [
        "trial",
        "state",
        "epoch",
        plain(metric),
        *map(plain, beside),
        "training time",
        *map(plain, figures),
    ]
    rows = [
        [
            called(t) if t.number else "preset 0",
            t.state,
            f"{t.epoch}/{t.epochs}",
            value_text(record, t),
            *(metric_text(name, t.metrics.get(name)) for name in beside),
            seconds_text(t.seconds) if t.seconds else "–",
            *(figure_text(name, t.figures[name]) if name in t.figures else "–" for name in figures),
            *(["front" if t in front else ""] if front else []),
            *(_parent(t) for _ in turns),
            *(setting_text(t.params[name]) for name in names),
        ]
        for t in trials
    ]
    return [*head, *(["front"] if front else []), *turns, *names], rows


def _parent(trial: TrialRecord) -> str:
    return "–" if trial.turn is None or trial.turn.parent is None else str(trial.turn.parent)
