"""Moments of sweeps, usual and strange ones, that a display is given to show."""

from __future__ import annotations

import sys

from crayon.tune.records import SweepRecord, TrialRecord
from crayon.tune.space import Dimension

SPACE = {
    "epochs": Dimension(name="epochs", kind="int", low=4, high=12),
    "lr": Dimension(name="lr", kind="float", low=5e-4, high=2e-2, log=True),
    "beta1": Dimension(name="beta1", kind="float", low=0.7, high=0.98),
}
COMMANDS = {"train the best": "crayon train mnist --epochs 9 --lr 0.0041324 " + "--and-more " * 20 + "--end"}

SCRIPT = """
import sys, threading, time
from math import inf, nan
from crayon.tune.terminal import SweepDisplay
from crayon.tune.records import SweepRecord, TrialRecord
from crayon.tune.space import Dimension
with SweepDisplay() as display:
    for i, record in enumerate(RECORDS):
        display.show(record, 133.2)
        if i == 0:
            display.message("Measuring [bold]x\\x1b[31m")
    time.sleep(0.4)
    if "fail" in sys.argv:
        raise ValueError
    if "result" in sys.argv:
        display.result(record, COMMANDS)
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


def trial(number: int, state: str = "complete", value: float | None = 0.99, **more) -> TrialRecord:
    params = {"epochs": 9, "lr": 0.0041324, "beta1": 0.871234}
    known = {"epoch": 9, "epochs": 9, "seconds": 40.0, "params": params}
    return TrialRecord(number=number, state=state, value=value, **known | more)


def sweep(*trials: TrialRecord, **more) -> SweepRecord:
    known = {
        "name": "s",
        "job": "mnist",
        "metric": "val/accuracy",
        "direction": "max",
        "objective": "quality",
    }
    return SweepRecord(trials=trials, **known | {"space": SPACE, "planned": 20} | more)


BEFORE = sweep(trial(0, "running", 0.95, epoch=3), trial(1, "running", None, epoch=0))
AFTER = sweep(
    trial(0, value=0.9954),
    trial(1, value=0.9962),
    trial(2, "pruned", 0.98713, epoch=2),
    trial(3, "failed", None, epoch=0),
    trial(4, "running", 0.971, epoch=3),
)
LONG = "model.a_rather_long_name_of_a_setting_number"
WIDE = {
    f"{LONG}{i}": Dimension(name=f"{LONG}{i}", kind="choice", choices=("a\x1b[31mb", True, None, "x" * 40))
    for i in range(8)
}
ODD = sweep(
    trial(0, value=float("nan"), seconds=float("nan"), params={}),
    trial(1, value=None, seconds=None, params=dict.fromkeys(WIDE)),
    trial(2, value=float("inf"), params=dict.fromkeys(WIDE, True), epochs=0),
    trial(
        3,
        value=0.5,
        params=dict(zip(WIDE, ("a\x1b[31mb", 3, 0.25, None, "x" * 40, False, "日本", ""), strict=True)),
    ),
    trial(4, "running", None, params=dict.fromkeys(WIDE, "x" * 40)),
    trial(5, "waiting", None, params={}),
    space=WIDE,
    metric="val/odd\x07name",
    planned=0,
)


def script(records) -> list[str]:
    text = SCRIPT.replace("RECORDS", repr(list(records))).replace("COMMANDS", repr(COMMANDS))
    return [sys.executable, "-c", text]
