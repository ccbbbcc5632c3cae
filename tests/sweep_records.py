"""Records of sweeps that weren't run, and a program that shows some."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace

from crayon.tuning.records import Plan, SweepRecord, TrialRecord
from crayon.tuning.space import Dimension

SPACE = {
    "epochs": Dimension(name="epochs", kind="int", low=4, high=12),
    "lr": Dimension(name="lr", kind="float", low=5e-4, high=2e-2, log=True),
    "beta1": Dimension(name="beta1", kind="float", low=0.7, high=0.98),
}
WIDE = SPACE | {
    "task.flip": Dimension(name="task.flip", kind="choice", choices=(True, False)),
    "model.width": Dimension(name="model.width", kind="choice", choices=(16, 32, 64)),
    "optim.schedule": Dimension(
        name="optim.schedule", kind="choice", choices=("linear", "cosine", "constant")
    ),
    "a_rather_long_name_of_a_setting": Dimension(
        name="a_rather_long_name_of_a_setting", kind="float", low=1e-3, high=1.0000001e-3, log=True
    ),
}
COMMANDS = {"train the best": "crayon train mnist --epochs 9 --lr 0.0041324 " + "--and-more " * 20 + "--end"}


def plan(**changes) -> Plan:
    known = {
        "settings": {},
        "space": SPACE,
        "metric": "val/accuracy",
        "direction": "max",
        "objective": "quality",
    }
    return Plan(**known | {"sampler": "tpe", "early_stopping": True, "seed": 0} | changes)


def trial(number: int, state: str = "complete", value: float | None = 0.99, **more) -> TrialRecord:
    params = {"epochs": 9, "lr": 0.0041324, "beta1": 0.871234}
    known = {"epoch": 9, "epochs": 9, "seconds": 40.0, "params": params}
    return TrialRecord(number=number, state=state, value=value, **known | more)


def sweep(*trials: TrialRecord, beside: tuple[str, ...] = (), **changes) -> SweepRecord:
    """The sweep of these trials, whose plan has these changes."""
    about = {"name": "mnist-sweep", "job": "mnist", "planned": 20, "beside": beside}
    return SweepRecord(plan=plan(**changes), trials=trials, **about)


BEFORE = sweep(trial(0, "running", 0.95, epoch=3), trial(1, "running", None, epoch=0))
AFTER = sweep(
    trial(0, value=0.9954),
    trial(1, value=0.9962),
    trial(2, "pruned", 0.98713, epoch=2),
    trial(3, "failed", None, epoch=0),
    trial(4, "running", 0.971, epoch=3),
)


def drawn(space, rng):
    """Random parameters."""
    low_high = {name: (d.low, d.high) for name, d in space.items()}
    return {
        name: rng.choice(d.choices)
        if d.kind == "choice"
        else rng.randint(*low_high[name])
        if d.kind == "int"
        else math.exp(rng.uniform(*map(math.log, low_high[name])))
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
        more = {
            "params": drawn(space, rng),
            "seconds": 10.0 * done + rng.random() if done else 0.0,
            "curve": {e: value - 0.004 * (done - e) for e in range(1, done + 1)},
        }
        trials.append(trial(i, state, value if done else None, epoch=done, epochs=4, **more))
    return replace(sweep(*trials, space=space, **changes), importances={"lr": 0.7, "epochs": 0.3})


def changed(sweep: SweepRecord, number: int, **changes) -> SweepRecord:
    trials = tuple(replace(t, **changes) if t.number == number else t for t in sweep.trials)
    return replace(sweep, trials=trials)


def valueless(sweep: SweepRecord) -> SweepRecord:
    trials = (replace(t, value=None, seconds=0.0, curve={}) for t in sweep.trials)
    return replace(sweep, trials=tuple(trials), importances={})


SCRIPT = """
import sys, threading, time
from crayon.tuning.terminal import SweepDisplay
from crayon.tuning.records import Plan, SweepRecord, TrialRecord
from crayon.tuning.space import Dimension
with SweepDisplay() as display:
    for i, record in enumerate(RECORDS):
        display.show(record, 133.2)
        if i == 0:
            display.message("Measuring [bold]x\\x1b[31m")
    time.sleep(0.4)
    if "fail" in sys.argv:
        raise ValueError
    if "result" in sys.argv:
        display.result(record, {}, COMMANDS)
    if "often" in sys.argv:
        for _ in range(100):
            display.show(record)
            time.sleep(0.01)
    if "threads" in sys.argv:
        def work():
            for i in range(40):
                display.show(record, i)
                display.message(f"line {i}")
                time.sleep(0.01)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
"""


def script(records) -> list[str]:
    text = SCRIPT.replace("RECORDS", repr(list(records))).replace("COMMANDS", repr(COMMANDS))
    return [sys.executable, "-c", text]
