"""When to stop a trial early.

Asynchronous successive halving (ASHA; Li et al. 2020), with two changes:

- A rung is a share of the trial's own schedule, not a number of epochs. Where epochs are a dimension, the learning
  rate of a short trial has already fallen when a long one's is still at its peak; at the same epoch the short one
  therefore looks better than it will end, and at the same share both are judged in the same phase.
- With two objectives a trial is stopped when others dominate it: as good or better at that rung, and no slower as a
  whole at its pace. One such peer may be luck, so it takes `REDUCTION - 1` of them.

The first trial is the preset and is never stopped, so that a sweep can't end worse than the preset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from crayon.sweep.records import TrialRecord

REDUCTION = 3
"""Of the trials that reach a rung, about the best third goes on."""
RUNGS = (1 / 9, 1 / 3)
"""Shares of a trial's epochs after which it is compared."""
LEAST = 3
"""Trials that must have reached a rung before any is stopped there."""


def rung_value(trial: TrialRecord, rung: float, direction: Literal["max", "min"]) -> float | None:
    """The best value of `trial` up to the first epoch that is at least the share `rung` of all; None before."""
    if not trial.epochs or not trial.curve:
        return None
    due = [epoch for epoch in sorted(trial.curve) if epoch >= rung * trial.epochs]
    if not due:
        return None
    values = [value for epoch, value in trial.curve.items() if epoch <= due[0]]
    return max(values) if direction == "max" else min(values)


def should_stop(
    trial: TrialRecord,
    others: Iterable[TrialRecord],
    *,
    direction: Literal["max", "min"],
    objective: Literal["quality", "pareto"],
) -> bool:
    """Whether `trial`, which has just reported an epoch, should end. `others`: all other trials of the sweep."""
    if trial.number == 0 or trial.epoch >= trial.epochs:
        return False
    for rung in RUNGS:
        due = [epoch for epoch in sorted(trial.curve) if epoch >= rung * trial.epochs]
        if not due or due[0] != trial.epoch:
            continue  # not there yet, or judged there before
        mine = rung_value(trial, rung, direction)
        peers = [
            (value, other) for other in others if (value := rung_value(other, rung, direction)) is not None
        ]
        if mine is None or len(peers) + 1 < LEAST:
            continue
        if objective == "pareto":
            if (
                sum(_dominates(value, other, mine, trial, direction) for value, other in peers)
                >= REDUCTION - 1
            ):
                return True
        elif _rank(mine, [value for value, _ in peers], direction) > max(1, (len(peers) + 1) // REDUCTION):
            return True
    return False


def _rank(mine: float, others: list[float], direction: str) -> int:
    """1 = the best. Equals share a rank."""
    return 1 + sum(value > mine if direction == "max" else value < mine for value in others)


def _dominates(value: float, other: TrialRecord, mine: float, trial: TrialRecord, direction: str) -> bool:
    as_good = value >= mine if direction == "max" else value <= mine
    return as_good and whole_seconds(other) <= whole_seconds(trial)


def whole_seconds(trial: TrialRecord) -> float:
    """Seconds that all epochs of `trial` take at its pace."""
    return (trial.seconds or 0.0) / max(trial.epoch, 1) * trial.epochs
