"""What a study's trials say: the sweep's own, and those that another program has entered, by Optuna's own means or a
dashboard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from crayon.config.settings import Scalar
from crayon.tuning.records import Plan, TrialRecord, Turn
from crayon.tuning.samplers import STATES

EPOCHS = "epochs"
"""User attribute that every trial of the sweep's own has: the length of its schedule."""
TURN = "turn"
"""User attribute of a trial that is a part of population based training."""
CONFIRMS = "confirms"
"""User attribute of a run that confirms a trial: the trial's number, and the run's seed."""
FIGURES, REFUSED = "figures", "refused"
"""User attributes, as `TrialRecord` has them."""


def asked(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial has, or, where it was enqueued, is to have."""
    enqueued = trial.system_attrs.get("fixed_params")  # Optuna has no other word for it
    return {**(enqueued if isinstance(enqueued, dict) else {}), **trial.params}


def objection(trial: FrozenTrial, plan: Plan) -> str:
    """Why another program's trial can't be one of the sweep; empty where it can."""
    params, finished = asked(trial), trial.state != TrialState.WAITING
    for name, value in params.items():
        if name not in plan.space:
            return f"{name} isn't searched"
        if plan.space[name].taken(value) is None:
            return f"{name} {value} isn't in {plan.space[name]}"
    if finished and (missing := [name for name in plan.space if name not in params]):
        return f"it has no {' and no '.join(missing)}"
    if finished and any(not math.isfinite(value) for value in _values(trial)):
        return "its value isn't a finite number"
    if finished and (trial.state == TrialState.FAIL or not _values(trial)):
        return "it has no value"
    return ""


def taken(params: Mapping[str, Any], plan: Plan) -> dict[str, Scalar]:
    """`params`, of a trial without objection, as values of the sweep's dimensions."""
    values = {name: plan.space[name].taken(params[name]) for name in plan.space if name in params}
    return {name: value for name, value in values.items() if value is not None}


def finished(trial: FrozenTrial, plan: Plan) -> TrialRecord:
    """What the search learns from. Its figures are the other program's word, and there is no model of it."""
    params = taken(asked(trial), plan)
    epochs = int(params.get("epochs") or plan.settings.get("epochs") or 0)
    value, *seconds = _values(trial)
    if not seconds and trial.datetime_start and trial.datetime_complete:
        seconds = [(trial.datetime_complete - trial.datetime_start).total_seconds()]
    return TrialRecord(
        number=trial.number,
        state=STATES[trial.state],
        params=params,
        value=value,
        seconds=sum(seconds),
        epoch=epochs if trial.state == TrialState.COMPLETE else min(trial.last_step or 0, epochs),
        epochs=epochs,
        curve=dict(trial.intermediate_values),
        outside=True,
    )


def record(trial: FrozenTrial, plan: Plan) -> TrialRecord:
    """Of one of the sweep's own trials."""
    found = _figures(trial, plan)
    if CONFIRMS not in trial.user_attrs:
        return found
    number, seed = map(int, trial.user_attrs[CONFIRMS])
    return dataclasses.replace(found, params={**found.params, "seed": seed}, confirms=number)


def _figures(trial: FrozenTrial, plan: Plan) -> TrialRecord:
    progress = trial.user_attrs.get("progress", {})
    if trial.state.is_finished() and not progress and not objection(trial, plan):
        return finished(trial, plan)  # it waited, and another program took it
    value = plan.best(trial.intermediate_values.values())
    # Another program may have ended it without a value, which is a failure, as it would be here.
    lost = value is None and trial.state.is_finished()
    return TrialRecord(
        number=trial.number,
        state="failed" if lost else STATES[trial.state],
        params={name: trial.params[name] for name in plan.space},
        value=value,
        seconds=float(progress.get("seconds", 0.0)),
        epoch=int(progress.get("epoch", 0)),
        epochs=int(trial.user_attrs.get(EPOCHS, 0)),
        metrics={name: float(value) for name, value in progress.get("metrics", {}).items()},
        curve=dict(trial.intermediate_values),
        figures=dict(trial.user_attrs.get(FIGURES, {})),
        refused=tuple(trial.user_attrs.get(REFUSED, ())),
        turn=Turn(**trial.user_attrs[TURN]) if TURN in trial.user_attrs else None,
    )


def _values(trial: FrozenTrial) -> list[float]:
    """[value] or [value, seconds]. A pruned trial may have only what it reported on its way."""
    last = [] if trial.last_step is None else [trial.intermediate_values[trial.last_step]]
    return list(trial.values or last)
