"""When to stop a trial early.

Asynchronous successive halving (ASHA; Li et al. 2020), with two changes:

- Trials are compared at the same share of their own schedules, not at the same epoch. Where epochs are a dimension,
  the learning rate of a short trial has already fallen when a long one's is still at its peak; at the same epoch the
  short one therefore looks better than it will end, and at the same share both are judged in the same phase.
- With two objectives a trial is stopped when others dominate it: as good or better at that rung, and no slower as a
  whole at its pace. One such peer may be luck, so it takes `REDUCTION - 1` of them.

No trial is compared before it can have learned something (`grace`), and none with another one that can't.

`Plan.pruner` may ask for less. `median` stops what is worse than half of the trials at a rung. `hyperband` (Li et al.
2018) runs ASHA in three brackets, of which one begins at each rung: one of three trials is left alone until the last,
and may learn slowly. Both follow from the trials alone, as Optuna's Hyperband doesn't, and so go on after a kill.

The first trial is the preset and is never stopped, so that a sweep can't end worse than the preset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from crayon.tuning.records import Plan, TrialRecord

REDUCTION = 3
"""Of the trials that reach a rung, about the best third goes on."""
RUNGS = (1 / 9, 1 / 3, 2 / 3)
"""Shares of a trial's epochs after which it is compared with the others at that share."""
LEAST = 3
"""Trials that must have reached a rung before any is stopped there."""


FEW_STEPS = 50
"""Updates without which BatchNorm's running statistics (a tenth of them follows each batch) are the initial ones, and a
model of any settings guesses."""


def grace(trial: TrialRecord, plan: Plan, images: float) -> float:
    """Epochs, of `images` each, before which `trial` isn't compared: its learning rate still rises, its averaged
    weights are less than a half-life old, or it had hardly any updates."""
    settings: dict[str, Any] = {**plan.settings, **trial.params}
    batches = FEW_STEPS * settings.get("global_batch_size", 0)
    seen = max(settings.get("optim.ema_images", 0), batches) / images
    return max(seen, settings.get("optim.warmup", 0) * trial.epochs)


def value_at(trial: TrialRecord, share: float, plan: Plan) -> float | None:
    """The best value of `trial` in the first `share` of its epochs; None where it hasn't come that far, or had none."""
    if not trial.epochs or trial.epoch < share * trial.epochs - 1e-9:
        return None
    return plan.best(value for epoch, value in trial.curve.items() if epoch <= share * trial.epochs + 1e-9)


def should_stop(
    trial: TrialRecord, others: Iterable[TrialRecord], plan: Plan, images: float = math.inf
) -> bool:
    """Whether `trial`, which has just reported an epoch, should end. `others`: all other trials of the sweep; images:
    in an epoch."""
    if trial.number == 0 or trial.epoch >= trial.epochs or trial.epoch not in trial.curve:
        return False
    rungs: Sequence[float] = RUNGS
    if plan.pruner == "hyperband":
        bracket = trial.number % len(RUNGS)
        rungs, others = RUNGS[bracket:], [o for o in others if o.number % len(RUNGS) == bracket]
    before = max((epoch for epoch in trial.curve if epoch < trial.epoch), default=0)
    least = grace(trial, plan, images)
    if not any(before < max(rung * trial.epochs, least) <= trial.epoch for rung in rungs):
        return False  # between two rungs
    share = trial.epoch / trial.epochs
    mine = value_at(trial, share, plan)
    peers = [
        (value, other)
        for other in others
        if (value := value_at(other, share, plan)) is not None
        and grace(other, plan, images) <= share * other.epochs + 1e-9
    ]
    if mine is None or len(peers) + 1 < LEAST:
        return False
    if plan.objective == "pareto":
        as_good = [other for value, other in peers if not plan.better(mine, value)]
        return sum(whole_seconds(other) <= whole_seconds(trial) for other in as_good) >= REDUCTION - 1
    ahead = sum(plan.better(value, mine) for value, _ in peers)
    if plan.pruner == "median":
        return ahead > len(peers) / 2
    return ahead >= max(1, (len(peers) + 1) // REDUCTION)


def whole_seconds(trial: TrialRecord) -> float:
    """Seconds that all epochs of `trial` take at its pace."""
    return trial.seconds / max(trial.epoch, 1) * trial.epochs
