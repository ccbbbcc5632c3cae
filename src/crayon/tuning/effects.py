"""What each setting does to the value at the end of a trial's schedule, for pictures and tables; the search has no part
in it.

How long a trial ran says more of what it had reached than its settings do. So a trial that was stopped early, or ended
at the target, counts with what it would probably have reached: its last value, plus what trials gain from there to the
end by all learning curves. Which form that gain has (by the share of the schedule, by the epoch, or both; the same for
all trials, or not) is what foretells the ends of other trials' curves best.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crayon.tuning.records import SweepRecord, TrialRecord
from crayon.tuning.space import Dimension

LEAST = 6
"""Trials without which nothing is said."""
MOST = 1_000
"""Of more trials a sample is taken, so that it takes seconds for any number."""
RESAMPLES, TREES, DRAWS = 16, 16, 128
FORMS = tuple(itertools.product(((True, False), (False, True), (True, True)), (False, True)))
"""Whether the gain goes by the share and by the epoch, and whether it differs with the settings."""
NEAR = 1.25
"""How much worse than the best another form may foretell, and still be taken in some of the resamples."""
SHARES = (0, 1 / 9, 2 / 9, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)
Array = Any


def with_effects(record: SweepRecord) -> SweepRecord:
    """`record` with `ends`, and with `importances`, their `margins` and their `basis`, as far as these can be told."""
    if record.plan.population:
        return record  # whose trials have no ends of their own
    whole = [t for t in record.ranked if t.whole]
    cut = [t for t in record.ranked if not t.whole and t.curve]
    told = f"{len(whole):,} trials that ran to their end"
    if sum(len(t.curve) > 1 for t in (*whole, *cut)) < LEAST:  # which tell what is gained
        told, cut = told + (f", without {len(cut):,} that were stopped early" if cut else ""), []
    elif cut:
        told += f" and {len(cut):,} that were stopped early, at what they would probably have reached"
    trials = [*whole, *cut]
    ends = _ends(trials, record)
    record = dataclasses.replace(record, ends={t.number: float(v) for t, v in zip(trials, ends, strict=True)})
    if len(trials) < LEAST or len({*ends.tolist()}) < 2:
        return record
    random = np.random.default_rng(0)
    if len(trials) > MOST:
        trials = [trials[i] for i in random.permutation(len(trials))[:MOST]]
        told = f"a sample of {MOST:,} of {told}"
    found = np.array([_shares(trials, record, random) for _ in range(RESAMPLES)])
    shares = dict(zip(record.plan.space, found.mean(0).tolist(), strict=True))
    margins = dict(zip(record.plan.space, (2 * found.std(0)).tolist(), strict=True))
    names = sorted(shares, key=lambda name: -shares[name])
    return dataclasses.replace(
        record,
        basis=told,
        importances={name: shares[name] for name in names},
        margins={name: margins[name] for name in names},
    )


def height(dimension: Dimension, value: Any) -> float:
    """Where a setting's value lies between the ends of its range, from 0 to 1."""
    if dimension.kind == "choice":
        return dimension.choices.index(value) / (len(dimension.choices) - 1)
    low, high, at = np.log([*dimension.ends, value]) if dimension.log else (*dimension.ends, value)
    return float((at - low) / (high - low))


def _settings(trials: Sequence[TrialRecord], record: SweepRecord) -> Array:
    """(trials, dimensions), each from 0 to 1; -1 where a trial hasn't got it."""
    space = record.plan.space.values()
    return np.array(
        [[height(d, t.params[d.name]) if d.name in t.params else -1.0 for d in space] for t in trials]
    )


def _shares(trials: Sequence[TrialRecord], record: SweepRecord, random: Any) -> Array:
    """Of each dimension the share of the variation of a random forest over the space, main effects alone (fANOVA;
    Hutter et al. 2014), which has learned from a resample of the trials."""
    from sklearn.ensemble import RandomForestRegressor

    chosen = [trials[i] for i in random.integers(0, len(trials), len(trials))]
    settings, draws = _settings(chosen, record), random.random((DRAWS, len(record.plan.space)))
    forest = RandomForestRegressor(TREES, random_state=int(random.integers(1 << 31)))
    forest.fit(settings, _ends(chosen, record, random))
    effects = []
    for place, dimension in enumerate(record.plan.space.values()):
        levels = np.array(_levels(dimension))
        asked = np.repeat(draws[None], len(levels), 0)
        asked[:, :, place] = levels[:, None]
        means = forest.predict(asked.reshape(-1, draws.shape[1])).reshape(len(levels), -1).mean(1)
        effects.append(means.var())
    return np.array(effects) / (sum(effects) or 1.0)


def _levels(dimension: Dimension, most: int = 32) -> list[float]:
    """Equally likely values of a dimension, from 0 to 1."""
    if dimension.kind == "choice":
        return [height(dimension, choice) for choice in dimension.choices]
    if dimension.kind == "int" and not dimension.log and dimension.ends[1] - dimension.ends[0] < most:
        return [
            height(dimension, value) for value in range(int(dimension.ends[0]), int(dimension.ends[1]) + 1)
        ]
    return [(place + 0.5) / most for place in range(most)]


def _ends(trials: Sequence[TrialRecord], record: SweepRecord, random: Any = None) -> Array:
    """(trials,) the metric at the end of their schedules; with `random`, those foretold are off by as much as they may
    be."""
    direction, reached = record.plan.direction, np.array([t.reached for t in trials])
    if all(t.whole for t in trials):
        return reached
    # A loss falls by a share of itself.
    falls = direction == "min" and all(v > 0 for t in trials for v in (*t.curve.values(), t.reached))
    sign = 1.0 if direction == "max" else -1.0

    def better(value: float) -> float:
        return sign * (math.log(value) if falls else value)

    curves = _Curves(trials, _settings(trials, record), [better(v) for v in reached.tolist()], better)
    ends = sign * curves.ends(random)
    return np.exp(ends) if falls else ends


class _Curves:
    """What trials gain from one epoch to another, by the learning curves of all. `better`: makes the metric rise."""

    def __init__(self, trials: Sequence[TrialRecord], settings: Array, reached: Sequence[float], better: Any):
        self.settings, self.reached = settings, np.array(reached)
        self.schedule = np.array([max(t.epochs, 1) for t in trials])
        last = [t.epochs if t.whole else max(t.curve) for t in trials]
        self.last = np.array(last).clip(1)
        self.fold = np.array([t.number % 4 for t in trials])
        points = [
            (i, epoch, value)
            for i, t in enumerate(trials)
            for epoch, value in zip(
                sorted(t.curve),
                itertools.accumulate((better(t.curve[epoch]) for epoch in sorted(t.curve)), max),
                strict=True,
            )
        ]
        self.trial, self.epoch = np.array([p[:2] for p in points]).T
        self.value = np.array([p[2] for p in points])
        self.knots = np.unique(np.geomspace(1, self.schedule.max(), 12).round())

    def ends(self, random: Any = None) -> Array:
        every = np.ones(len(self.trial), bool)
        missed = {form: self._missed(form) for form in FORMS}
        errors = [float(np.abs(missed[form]).mean()) for form in FORMS]
        form = FORMS[int(np.argmin(errors))]
        if random is not None:  # what is about as good may be the right one
            near = [form for form, error in zip(FORMS, errors, strict=True) if error <= NEAR * min(errors)]
            form = near[random.integers(len(near))]
        gain = self._gain(form, every, np.arange(len(self.last)), self.last, self.schedule)
        if random is not None:
            gain = gain + random.normal(0, missed[form].std(), len(gain)) * (self.last < self.schedule)
        return self.reached + gain

    def _missed(self, form: Any) -> Array:
        """By how much the last points of curves are foretold too high from each point before, without these curves."""
        missed = [np.zeros(1)]
        for k in range(4):
            held = self.fold[self.trial] == k
            asked = held & (self.epoch < self.last[self.trial])
            i = self.trial[asked]
            gain = self._gain(form, ~held, i, self.epoch[asked], self.last[i])
            missed.append(self.value[asked] + gain - self.reached[i])
        return np.concatenate(missed)

    def _gain(self, form: Any, known: Array, trial: Array, start: Array, end: Array) -> Array:
        """What these trials gain between these epochs, by least squares over the points `known` with a constant for
        each curve."""
        whose = self.trial[known]
        basis = _centred(self._basis(form, whose, self.epoch[known]), whose)
        scale = basis.std(0) + 1e-9
        basis = basis / scale
        damped = basis.T @ basis + 1e-4 * (len(basis) + 1) * np.eye(basis.shape[1])
        weights = np.linalg.solve(damped, basis.T @ _centred(self.value[known][:, None], whose)[:, 0]) / scale
        return ((self._basis(form, trial, end) - self._basis(form, trial, start)) @ weights).clip(0)

    def _basis(self, form: Any, trial: Array, epoch: Array) -> Array:
        (by_share, by_epoch), differs = form
        share = epoch / self.schedule[trial]
        parts = [_hats(share, SHARES)] if by_share else []
        parts += [_hats(np.log(epoch), np.log(self.knots))] if by_epoch else []
        if differs:
            both = np.stack([share, np.log(epoch)], -1)
            every = both[:, :, None] * self.settings[trial][:, None, :]
            parts.append(every.reshape(len(trial), 2 * self.settings.shape[1]))
        return np.concatenate(parts, -1)


def _hats(at: Array, knots: Any) -> Array:
    """(points, knots) weights by which values at the knots are interpolated."""
    return np.stack([np.interp(at, knots, row) for row in np.eye(len(knots))], -1)


def _centred(points: Array, whose: Array) -> Array:
    """(points, n) without the mean of the points of the same curve."""
    count = np.bincount(whose).clip(1)
    means = [np.bincount(whose, column) / count for column in points.T]
    return points - np.stack(means, -1)[whose] if len(points) else points
