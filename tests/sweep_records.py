"""Records of sweeps that weren't run, usual and strange ones."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from crayon.tune.records import SweepRecord, TrialRecord
from crayon.tune.space import Dimension

EVIL = "<script>alert('x')</script>&\"'$x$_{"
SPACE = {
    "epochs": Dimension(name="epochs", kind="int", low=3, high=12),
    "lr": Dimension(name="lr", kind="float", low=5e-4, high=2e-2, log=True),
    "beta1": Dimension(name="beta1", kind="float", low=0.7, high=0.98),
}
WIDE = SPACE | {
    "flip": Dimension(name="flip", kind="choice", choices=(True, False, None)),
    "model.width": Dimension(name="model.width", kind="choice", choices=(1, True, "1", 64)),
    EVIL: Dimension(name=EVIL, kind="choice", choices=(EVIL, "", "日本\n\x07\udc80")),
    "a_very_long_name." * 9: Dimension(name="a_very_long_name." * 9, kind="int", low=1, high=2),
    "narrow": Dimension(name="narrow", kind="float", low=1e-3, high=1.0000001e-3, log=True),
}


def draw_params(space, rng):
    return {
        name: rng.choice(d.choices)
        if d.kind == "choice"
        else rng.randint(d.low, d.high)
        if d.kind == "int"
        else math.exp(rng.uniform(math.log(d.low), math.log(d.high)))
        if d.log
        else rng.uniform(d.low, d.high)
        for name, d in space.items()
    }


def record(count=12, space=SPACE, **changes) -> SweepRecord:
    """Trial 0 has 99.00 %, trial 5 is the best with 99.64 %; a third are pruned, trial 7 failed, the last runs."""
    rng = random.Random(0)
    trials = []
    for i in range(count):
        value = 0.99 if i == 0 else 0.9964 if i == 5 else rng.uniform(0.985, 0.996)
        state = "complete" if i % 3 or i == 0 else "pruned"
        state = "failed" if i == 7 else "running" if i == count - 1 else state
        done = 0 if state == "failed" else 4 if state == "complete" else 2
        curve = {e: value - 0.004 * (done - e) for e in range(1, done + 1)}
        trials.append(
            TrialRecord(
                number=i,
                state=state,
                params=draw_params(space, rng),
                value=value if done else None,
                seconds=10.0 * done + rng.random() if done else None,
                epoch=done,
                epochs=4,
                curve=curve,
            )
        )
    return SweepRecord(
        **{
            "name": "mnist-sweep",
            "job": "mnist",
            "metric": "val/accuracy",
            "direction": "max",
            "objective": "quality",
            "space": space,
            "trials": tuple(trials),
            "planned": 20,
            "importances": {"lr": 0.7, "epochs": 0.3},
            "settings": {"sampler": "tpe", "seed": 0},
        }
        | changes
    )


def changed(sweep: SweepRecord, number: int, **changes) -> SweepRecord:
    trials = tuple(replace(t, **changes) if t.number == number else t for t in sweep.trials)
    return replace(sweep, trials=trials)


def valueless(sweep: SweepRecord) -> SweepRecord:
    trials = (replace(t, value=None, seconds=None, curve={}) for t in sweep.trials)
    return replace(sweep, trials=tuple(trials), importances={})
