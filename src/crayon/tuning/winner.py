"""Which trial a sweep ends with: one that other seeds tell apart from the preset, or the preset.

The best value of many trials is partly luck. So the preset and the best trials are trained anew with other seeds, the
same ones, and compared on validation with these runs alone, seed by seed: by a paired t interval of 95 %, for all
comparisons together (Bonferroni). It takes the differences for normal, which few seeds can't show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtrit

from crayon.tuning.records import OVER, Comparison, Plan, TrialRecord, Verdict, ranked
from crayon.tuning.stopping import whole_seconds

MOST = 3
"""Trials that are compared with the preset."""
LEVEL = 0.95
"""How often no difference's interval misses the true one."""
SHARE = 0.5
"""Of a sweep's time, what is kept for this at most."""


def candidates(trials: Sequence[TrialRecord], plan: Plan) -> list[TrialRecord]:
    """The preset and, after it, the best trials with other settings that ran to their ends; empty where there are none,
    or the preset didn't end."""
    found = [t for t in trials[:1] if t.state == "complete" and t.value is not None and not t.outside]
    for trial in ranked(trials, plan) if found else ():
        if trial.state == "complete" and all(trial.params != other.params for other in found):
            found.append(trial)
    return found[: MOST + 1] if len(found) > 1 else []


def lacking(
    those: Iterable[TrialRecord], runs: Iterable[TrialRecord], plan: Plan, seeds: int
) -> list[tuple[TrialRecord, int]]:
    """The (trial, seed) of which there is no run yet, seed by seed: where time ends, there are whole pairs."""
    there, after = {(r.confirms, r.params["seed"]) for r in runs}, range(plan.seed + 1, plan.seed + 1 + seeds)
    those = list(those)
    return [(t, seed) for seed in after for t in those if (t.number, seed) not in there]


def asked(
    those: Iterable[TrialRecord], runs: Iterable[TrialRecord], plan: Plan, seeds: int
) -> list[TrialRecord]:
    """Those of `runs` that are of these trials, and of as many seeds."""
    numbers = {t.number for t in those}
    return [
        r
        for r in runs
        if r.confirms in numbers and r.params["seed"] in range(plan.seed + 1, plan.seed + 1 + seeds)
    ]


def verdict(
    trials: Sequence[TrialRecord], runs: Sequence[TrialRecord], plan: Plan, seeds: int
) -> Verdict | None:
    """What the runs that have ended say; None where there is nothing to compare."""
    those = candidates(trials, plan)
    if not those:
        return None
    runs = asked(those, runs, plan, seeds)
    preset, *others = those
    compared = tuple(_compared(preset, trial, runs, plan, len(others)) for trial in others)
    better = [c for c in compared if c.better]
    winner = max(better, key=lambda c: c.difference or 0.0).trial if better else preset.number
    missing = seeds * len(those) - sum(r.state in OVER for r in runs)
    return Verdict(winner=winner, seeds=seeds, missing=missing, comparisons=compared)


def reserve(
    trials: Sequence[TrialRecord], runs: Sequence[TrialRecord], plan: Plan, seeds: int, at_once: int
) -> float:
    """Seconds that the runs which are to come train for, so many at once."""
    those = candidates(trials, plan)
    over = sum(whole_seconds(r) for r in asked(those, runs, plan, seeds) if r.state in OVER)
    return max(0.0, seeds * sum(map(whole_seconds, those)) - over) / max(at_once, 1)


def _compared(
    preset: TrialRecord, trial: TrialRecord, runs: Sequence[TrialRecord], plan: Plan, comparisons: int
) -> Comparison:
    mine, other = ({r.params["seed"]: r for r in runs if r.confirms == t.number} for t in (trial, preset))
    ended = [
        s
        for s in mine
        if s in other and all(r.state == "complete" and not r.outside for r in (mine[s], other[s]))
    ]
    a, b = (np.array([of[seed].reached for seed in ended]) for of in (mine, other))
    sign = 1.0 if plan.direction == "max" else -1.0
    failed = sum(r.state == "failed" for r in mine.values())
    return Comparison(
        trial=trial.number,
        seeds=len(ended),
        failed=failed,
        value=float(a.mean()) if ended else None,
        preset=float(b.mean()) if ended else None,
        difference=float(sign * (a - b).mean()) if ended else None,
        margin=_margin(a - b, comparisons),
    )


def _margin(differences: np.ndarray, comparisons: int) -> float | None:
    """Half of the interval of their mean; None where their spread isn't known: there are less than two, or they are
    equal, as figures of few images often are."""
    n = len(differences)
    if n < 2 or np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return None
    quantile = float(stdtrit(n - 1, 1 - (1 - LEVEL) / (2 * comparisons)))
    return quantile * float(differences.std(ddof=1)) / math.sqrt(n)
