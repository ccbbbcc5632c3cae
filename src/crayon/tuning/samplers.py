"""What to try next: Optuna's samplers, as functions of (seed, number of the trial, trials before it).

A sampler carries hidden state from one suggestion to the next. Made anew for each, it has none to lose, and a sweep
that was killed goes on with the suggestions of one left in peace.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from crayon.config.settings import Scalar
from crayon.errors import BadInput
from crayon.tuning.past import Past
from crayon.tuning.records import OVER, Plan, State, TrialRecord
from crayon.tuning.settings import Sampler
from crayon.tuning.space import Dimension, settled
from crayon.tuning.stopping import whole_seconds

STARTUP = 6
"""Trials drawn at random, the preset among them, before the search learns from them. Fixed: a sweep that is made longer
must go on with the suggestions that it would have had."""
DRAWS = 100
"""How often parameters are drawn for a trial until they can be trained."""
POPULATION = 10
"""Trials of a generation of NSGA-II."""
REPLAYED = ("cmaes", "nsga2")
"""Samplers whose state isn't the trials alone. Optuna keeps it in the study, for one of them as pickles: here it is
computed anew from the trials, each time."""


def check(sampler: Sampler, objective: str, space: Mapping[str, Dimension]) -> None:
    """Raise BadInput where `sampler` can't search `space`, or not for this objective."""
    ranges = [name for name, dimension in space.items() if dimension.kind == "float"]
    choices = [name for name, dimension in space.items() if dimension.kind == "choice"]
    if sampler == "grid" and ranges:
        name = ranges[0]
        raise BadInput(
            f"--sampler grid goes through lists and whole numbers, and {name} {space[name]} is a range; write its "
            f"points as --space.{name.replace('_', '-')} a,b,c, or one to fix it."
        )
    if sampler != "cmaes":
        return
    if objective == "pareto":
        raise BadInput(
            "--sampler cmaes knows one objective; take tpe, gp, nsga2 or random with --objective pareto."
        )
    if choices or len(space) < 2:
        what = f"{choices[0]} is a choice" if choices else "there is one dimension"
        raise BadInput(f"--sampler cmaes searches several ranges of numbers, and {what}; take tpe or gp.")
    if importlib.util.find_spec("cmaes") is None:
        raise BadInput("--sampler cmaes needs the package cmaes; install crayon[cmaes], or take tpe or gp.")


def suggest(
    plan: Plan,
    past: Sequence[TrialRecord],
    number: int,
    fixed: Mapping[str, Scalar] | None = None,
    objection: Callable[[Mapping[str, Scalar]], str] = lambda params: "",
) -> dict[str, Scalar]:
    """Parameters for trial `number`: what the sampler makes of the trials so far, around those that are `fixed`. Empty
    where a grid is through.

    objection: says why parameters can't be trained; then others are drawn. Raises BadInput where that is in vain.
    """
    if plan.sampler == "grid":
        return _next_of_grid(plan, past, fixed or {}, objection)
    why, past = "", [*past]
    for draw in range(DRAWS):
        params = _draw(plan, past, f"{plan.seed}/{number}" + (f"/{draw}" if draw else ""), fixed)
        if not (why := objection(params)):
            return params
        past.append(refused(params))
    raise BadInput(f"Of {DRAWS} draws for trial {number} none can be trained: of the last, {why}.")


def refused(params: Mapping[str, Scalar]) -> TrialRecord:
    """Settings that no trial may have, as evidence: samplers keep away from those of a trial under way."""
    return TrialRecord(number=-1, state="running", params=params)


def _is_refused(trial: TrialRecord) -> bool:
    return trial.number < 0 and trial.state == "running"


def _draw(
    plan: Plan, past: Sequence[TrialRecord], key: str, fixed: Mapping[str, Scalar] | None
) -> dict[str, Scalar]:
    distributions = {name: distribution(dimension) for name, dimension in plan.space.items()}
    digest = hashlib.sha256(key.encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. that an interface is experimental
        startup = STARTUP + sum(map(_is_refused, past))
        sampler = _sampler(plan, int.from_bytes(digest[:4], "little"), startup)
        replayed = plan.sampler in REPLAYED
        known = [] if replayed else [_as_evidence(trial, plan, distributions) for trial in past]
        # In memory: nothing is written before the parameters are complete.
        copy = optuna.create_study(storage=Past(known), directions=plan.directions, sampler=sampler)
        if replayed:
            _replay(copy, past, plan, distributions)
        if fixed:
            copy.enqueue_trial(dict(fixed))
        return settled(copy.ask(distributions).params, plan.space, plan.settings)


def _sampler(plan: Plan, seed: int, startup: int) -> BaseSampler:
    match plan.sampler:
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            others = RandomSampler(seed=seed)
            return GPSampler(seed=seed, n_startup_trials=STARTUP, independent_sampler=others)
        case "cmaes":
            return CmaEsSampler(seed=seed)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=POPULATION)
    # Trials under way count as bad ones, so that those that run at once are not all alike.
    return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def _replay(
    copy: optuna.Study,
    past: Iterable[TrialRecord],
    plan: Plan,
    distributions: dict[str, BaseDistribution],
) -> None:
    """Lead a sampler that evolves a population through the trials so far, in their order."""
    for trial in past:
        if _is_refused(trial):
            continue
        copy.enqueue_trial(dict(trial.params))
        asked = copy.ask(distributions)
        # It would be left out, as nothing has to be drawn, and with it what the sampler notes of a generation.
        noted = copy.get_trials(deepcopy=False)[-1]
        copy.sampler.sample_relative(copy, noted, copy.sampler.infer_relative_search_space(copy, noted))
        if trial.state == "failed":
            copy.tell(asked, state=TrialState.FAIL)
        elif trial.state in OVER:
            copy.tell(asked, _values(trial, plan))


def _next_of_grid(
    plan: Plan,
    past: Iterable[TrialRecord],
    fixed: Mapping[str, Scalar],
    objection: Callable[[Mapping[str, Scalar]], str],
) -> dict[str, Scalar]:
    """The grid's points in an order that the seed decides."""
    axes = [d.choices or range(int(d.ends[0]), int(d.ends[1]) + 1) for d in plan.space.values()]
    drawn = ({**dict(zip(plan.space, values, strict=True)), **fixed} for values in itertools.product(*axes))
    points = [settled(point, plan.space, plan.settings) for point in drawn]
    random.Random(plan.seed).shuffle(points)
    own = [trial for trial in past if trial.number >= 0 or _is_refused(trial)]
    known = [dict(trial.params) for trial in own]
    left = (point for point in points if point not in known and not objection(point))
    return next(left, dict(points[0]) if fixed else {})


def _values(trial: TrialRecord, plan: Plan) -> list[float]:
    """One value for each objective. A trial that was stopped early has what it reached, at the cost of the whole."""
    if plan.objective != "pareto":
        return [trial.reached]
    return [trial.reached, whole_seconds(trial) if trial.state == "pruned" else trial.seconds]


def _as_evidence(
    trial: TrialRecord, plan: Plan, distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    """`trial` as samplers can take it."""
    params = {name: value for name, value in trial.params.items() if plan.space[name].active(trial.params)}
    given: dict[str, Any] = {
        "params": params,
        "distributions": {name: distributions[name] for name in params},
    }
    if trial.state in ("running", "waiting"):  # one that waits would be what `ask` returns
        return create_trial(state=TrialState.RUNNING, **given)
    if trial.state == "failed":
        return create_trial(state=TrialState.FAIL, **given)
    if plan.objective == "pareto" or plan.sampler == "gp":  # to which pruned trials are none
        return create_trial(values=_values(trial, plan), **given)
    given["intermediate_values"] = dict(trial.curve)
    return create_trial(state=OPTUNA_STATES[trial.state], value=trial.reached, **given)


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's name for a dimension."""
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.choices)
    low, high = dimension.ends
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)


OPTUNA_STATES: dict[State, TrialState] = {
    "waiting": TrialState.WAITING,
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
STATES = {theirs: ours for ours, theirs in OPTUNA_STATES.items()}
