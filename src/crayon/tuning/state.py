"""Where a sweep stands while its trials run: which is next, how each ends, and why no more of them start."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput
from crayon.launch import memory
from crayon.tuning import winner
from crayon.tuning.records import OVER, TrialRecord
from crayon.tuning.settings import SweepConfig
from crayon.tuning.slots import Slots
from crayon.tuning.stopping import should_stop
from crayon.tuning.study import Study

WELCOME_SECONDS = 1.0
"""How often a study is looked at for trials of other programs."""
FAULTS = 2
"""Faults of the machine in a row, no trial having ended between them, that suspend the sweep."""
LESS = "a smaller --concurrent or --global-batch-size needs less"


@dataclass
class SweepState:
    """What Tune's callbacks and the driver's loop share."""

    config: Experiment
    sweep: SweepConfig
    study: Study
    slots: Slots
    emit: Callable[[str], None]
    """Receives a sentence for each trial that has failed or was lost, and where the room for trials has changed."""
    deadline: float | None
    """When to end, by time.monotonic()."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Ask all trials to save and end."""
    reason: str = ""
    """Why the sweep stopped before its trials were through."""
    limit: str = ""
    """The setting that has stopped it, and would again."""
    error: BaseException | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    """By Tune's id of a trial under way, its number in the study."""
    pruned: set[int] = field(default_factory=set)
    restarts: Counter[int] = field(default_factory=Counter)
    """How often each trial went on after its process had died."""
    images: float = math.inf
    """In an epoch, by the newest row."""
    welcomed: float = -math.inf
    """When the study was last looked at for other programs' trials, by time.monotonic()."""
    faults: int = 0
    """Of the machine, since a trial has ended."""
    fault: str = ""
    """Why the sweep can't go on now."""
    ended: int = 0
    """How many trials ended under this command."""
    kills: memory.Kills = field(default_factory=memory.Kills)
    step_seconds: float = 0.0
    """Spent in the steps of all trials."""
    seconds: float = 0.0
    """That Tune ran for."""
    searches: ClassVar[bool] = True
    """Whether what runs is the search's."""

    def __post_init__(self) -> None:
        for run in self.study.confirmations():
            if run.state == "running":
                self.study.set_state(run.number, "waiting")
        for trial in self.unfinished():
            if self.reached_target(trial):
                self.study.finish(trial.number, "complete")
            else:  # those of a driver that was killed are called running
                self.study.set_state(trial.number, "waiting")
        if won := [r for r in self.study.records() if r.state in OVER and self.reached_target(r)]:
            self.request_stop(f"Trial {won[0].number} has reached the target.", "target")
        self.look_at_patience()

    def __reduce__(self) -> Any:
        """Tune writes its parts to disk, to restore them one day. The study is our record: there is nothing to keep."""
        return (object, ())

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """An error of the study ends the sweep in order, where in Tune's own thread it would be lost."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            self.stop.set()

    def request_stop(self, reason: str, limit: str = "") -> None:
        """Have all trials save and end; only the first reason, and its `limit`, counts."""
        if not self.stop.is_set():
            self.reason, self.limit = reason, limit
            self.stop.set()

    def reserved(self) -> float:
        """Seconds before the deadline at which this ends, for what is still to come."""
        sweep, study = self.sweep, self.study
        if not (self.searches and sweep.confirm and sweep.minutes):
            return 0.0
        runs = study.confirmations()
        least = winner.reserve(study.records(), runs, study.plan, sweep.confirm, self.slots.count)
        return min(least, winner.SHARE * 60 * sweep.minutes)

    def unfinished(self) -> list[TrialRecord]:
        """Those that are to run, or do."""
        return self.study.unfinished()

    def waiting(self) -> int:
        """How many trials are still to start, or to go on."""
        if self.stop.is_set():
            return 0
        records = self.study.records()
        return sum(r.state == "waiting" for r in records) + max(0, self.sweep.trials - len(records))

    def next_trial(self) -> tuple[int, Mapping[str, Scalar]] | None:
        """The next trial to run, or None when there is none."""
        if time.monotonic() - self.welcomed > WELCOME_SECONDS:  # Tune asks often
            self.welcomed = time.monotonic()
            for text in self.study.welcome():
                self.emit(text)
        if found := self.next_unfinished():
            return found
        if len(self.study.records()) >= self.sweep.trials:
            return None
        params = self.study.suggest()
        if refused := self.study.refused:
            count = f"{len(refused)} draw{'s' if len(refused) > 1 else ''}"
            self.emit(f"Left out, and not counted: {count}, the last since {refused[-1][1]}.")
        if not params:
            self.reason = "All points of the grid were tried."
            return None
        return self.study.add(params, int(params.get("epochs") or self.config.epochs)), params

    def next_unfinished(self) -> tuple[int, Mapping[str, Scalar]] | None:
        """The first that waits, and runs from now on."""
        for trial in self.unfinished():
            if trial.state == "waiting":
                self.study.set_state(trial.number, "running")
                return trial.number, trial.params
        return None

    def report(self, number: int, row: Mapping[str, Any]) -> None:
        """Enter what a trial has reached after an epoch, whose row of metrics.jsonl that is."""
        plan, self.images = self.study.plan, row["images"] / row["epoch"]
        metrics = {k: float(v) for k, v in row.items() if k.startswith("val/") and k.count("/") == 1}
        self.study.report(number, int(row["epoch"]), row.get(plan.metric), row["train_seconds"], metrics)
        if self.reached_target(self.study.record(number)):
            self.request_stop(f"Trial {number} has reached the target.", "target")

    def reached_target(self, trial: TrialRecord) -> bool:
        """Whether a trial of the sweep's own is as good as the sweep is to become."""
        best, target = trial.value, self.sweep.target
        if best is None or target is None or trial.outside:
            return False
        return best == target or self.study.plan.better(best, target)

    def ends(self, number: int) -> bool:
        """Whether the trial ends now: it has reached the target, or falls behind."""
        if self.reached_target(self.study.record(number)):
            return True
        records = self.study.records()
        others = [r for r in records if r.number != number and r.state != "failed" and not r.outside]
        mine, plan = self.study.record(number), self.study.plan
        if self.sweep.early_stopping and should_stop(mine, others, plan, self.images):
            self.pruned.add(number)
        return number in self.pruned

    def end(self, number: int, result: Mapping[str, Any], error: bool) -> None:
        """Enter that a trial has ended, or waits to go on."""
        if self.reached_target(self.study.record(number)):
            self.study.finish(number, "complete")
        elif result.get("interrupted"):
            self.study.set_state(number, "waiting")
            if why := result.get("hopeless"):
                raise BadInput(why)
            return
        elif result.get("fault"):
            self.suspend(number, str(result["fault"]))
            return
        elif number in self.pruned:
            self.study.finish(number, "pruned")
        elif error and self.restarts[number] < self.config.ray.max_failures:
            self.restarts[number] += 1
            self.study.set_state(number, "waiting")
            epoch = self.study.record(number).epoch
            why = f" ({memory.KILLED}; {LESS})" if self.kills.any_new() else ""
            self.emit(f"Trial {number} lost its process or its node{why}; it goes on after epoch {epoch}.")
            return
        elif error or result.get("failed"):
            why = str(result.get("failed") or "its process kept dying")
            self.study.finish(number, "failed", why)
            self.emit(f"Trial {number} failed: {why}")
        else:
            self.study.finish(number, "complete")
        self.ended += 1
        self.faults = 0
        self.look_at_patience()

    def look_at_patience(self) -> None:
        """End the sweep where much was spent since its best trial, by epochs, which are the same on every machine."""
        over = [r for r in self.study.records() if r.state in OVER and not r.outside]
        ranked = sorted((r for r in over if r.value is not None), key=lambda r: r.number)
        best = self.study.plan.best(r.reached for r in ranked)
        first = next((r.number for r in ranked if r.value == best), None)
        epochs = sum(r.epoch for r in over if first is not None and r.number > first)
        worth, most = epochs / self.config.epochs, self.sweep.patience
        if most is not None and worth >= most:
            spent = f"The {epochs} epochs since trial {first}, as many as {worth:.3g} presets have"
            self.request_stop(f"{spent}, brought nothing better.", "patience")

    def suspend(self, number: int, why: str) -> None:
        """Have a trial that the machine failed wait for another try; after the second fault in a row, the sweep."""
        self.study.set_state(number, "waiting")
        self.faults += 1
        self.emit(f"Trial {number} is suspended: {why}")
        if self.faults >= FAULTS:
            self.request_stop("The machine failed the trials.")
            self.fault = (
                f"Trials were suspended {self.faults} times in a row because of the machine, at last with: "
                f"{why.rstrip('.')}. Mend that; the same command goes on with the sweep."
            )

    def overhead(self) -> float | None:
        """Seconds per trial beyond its steps, from Tune's start to its end. None where trials ran side by side."""
        if self.slots.most > 1 or not self.ended:
            return None
        return (self.seconds - self.step_seconds) / self.ended
