"""The record of a sweep: an Optuna study, in a file of its own or in a database that a team shares.

Everything that decides what comes next is in the study, so a sweep goes on after a kill as if nothing had happened:
a suggestion is a function of (seed, number of the trial, trials before it), where Optuna's own samplers carry hidden
state from one suggestion to the next, and a trial enters the study in one transaction, with all its parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import optuna
import psutil
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from crayon.config.settings import Scalar
from crayon.errors import BadInput
from crayon.system.lease import BEAT_SECONDS, DEAD_SECONDS
from crayon.system.secrets import shown
from crayon.tuning.database import errors, open_storage
from crayon.tuning.past import Past
from crayon.tuning.records import Plan, State, TrialRecord
from crayon.tuning.space import Dimension
from crayon.tuning.stopping import whole_seconds

STARTUP = 6
"""Trials drawn at random, the preset among them, before the search learns from them. Fixed: a sweep that is made longer
must go on with the suggestions that it would have had."""
IDENTITY = "crayon:sweep"
DRIVER = "crayon:driver"
IMAGES = "crayon:images"


class Study:
    """The trials of a sweep. One process writes (the sweep's driver), any may read.

    Raises BadInput where the storage can't be reached, is locked, is no study, or is the study of another sweep.
    """

    def __init__(self, url: str, name: str, plan: Plan):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.url, self.plan = url, plan
        self._distributions = {n: _distribution(d) for n, d in plan.space.items()}
        try:
            self._open(url, name, plan)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise BadInput(
                f"The study {name!r} in {shown(url)} holds what crayon can't have written ({type(error).__name__}); "
                "put a copy in its place, or choose another --name."
            ) from None

    def _open(self, url: str, name: str, plan: Plan) -> None:
        directions = [StudyDirection.MAXIMIZE if plan.direction == "max" else StudyDirection.MINIMIZE]
        if plan.objective == "pareto":
            directions.append(StudyDirection.MINIMIZE)
        with errors(self.url):
            self.storage = open_storage(url)
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, directions=directions, load_if_exists=True
            )
            trials, known = self.study.get_trials(deepcopy=False), self.study.user_attrs.get(IDENTITY)
            if known is not None:
                plan.check(known, name)
            elif trials:
                raise BadInput(
                    f"The study {name!r} in {shown(url)} was not made by crayon; choose another --name."
                )
            else:
                self.study.set_user_attr(IDENTITY, plan.as_json())
            self._refuse_company(name)
            self._announce()
        self._ids = {t.number: t._trial_id for t in trials}
        # Nobody else writes, so what is read once needn't be read again.
        self._records = {t.number: _record(t, plan) for t in trials}

    @property
    def images(self) -> list[Mapping[str, Any]]:
        """The images that trials have learned from (crayon.training.data_history); empty until it is set."""
        with errors(self.url):
            return list(self.study.user_attrs.get(IMAGES, ()))

    @images.setter
    def images(self, history: list[Mapping[str, Any]]) -> None:
        with errors(self.url):
            self.study.set_user_attr(IMAGES, history)

    # One driver at a time

    def _refuse_company(self, name: str) -> None:
        """The lock on the sweep's folder doesn't reach another machine, which may use the same database."""
        other = self.study.user_attrs.get(DRIVER)
        if not other or time.time() - other["at"] > DEAD_SECONDS:
            return
        here, pid = other["host"] == socket.gethostname(), other["pid"]
        if not here or (pid != os.getpid() and _lives(pid, other["began"])):
            raise BadInput(
                f"The sweep {name!r} in {shown(self.url)} is being run by process {pid} on {other['host']}; "
                f"end that one and wait {DEAD_SECONDS:g} s, or choose another --name."
            )

    def _announce(self) -> None:
        began = psutil.Process().create_time()
        me = {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "at": time.time()}
        self._announced = time.monotonic()
        self.study.set_user_attr(DRIVER, me)

    def beat(self) -> None:
        """Say now and then that this process runs the sweep. A database that is away for a moment is no error here."""
        if time.monotonic() - self._announced > BEAT_SECONDS:
            with contextlib.suppress(BadInput), errors(self.url):
                self._announce()

    def close(self) -> None:
        """This process no longer runs the sweep."""
        with contextlib.suppress(BadInput), errors(self.url):
            self.study.set_user_attr(DRIVER, None)

    # Reading

    def records(self) -> tuple[TrialRecord, ...]:
        return tuple(self._records.values())

    def unfinished(self) -> list[TrialRecord]:
        """Trials that a sweep which was interrupted or killed has left: they go on from their checkpoints."""
        return [r for r in self.records() if r.state in ("running", "waiting")]

    # Writing

    def add(self, params: Mapping[str, Scalar], epochs: int) -> int:
        """Enter a running trial with these parameters. Returns its number."""
        given: dict[str, Any] = {"params": dict(params), "distributions": self._distributions}
        trial = create_trial(state=TrialState.RUNNING, user_attrs={"epochs": epochs}, **given)
        with errors(self.url):
            made = self.storage.create_new_trial(self.study._study_id, template_trial=trial)
            trial = self.storage.get_trial(made)
        self._ids[trial.number] = made
        self._records[trial.number] = _record(trial, self.plan)
        return trial.number

    def suggest(self) -> dict[str, Scalar]:
        """Parameters for the next trial: what the sampler makes of the trials so far."""
        with errors(self.url):
            past = self.study.get_trials(deepcopy=False)
        digest = hashlib.sha256(f"{self.plan.seed}/{len(past)}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # until version 5 it counts as experimental
            # Trials under way count as bad ones, so that those that run at once are not all alike.
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, constant_liar=True
            )
        if self.plan.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        # A copy in memory: nothing is written before the parameters are complete.
        before = Past([self._as_evidence(trial) for trial in past])
        copy = optuna.create_study(storage=before, directions=self.study.directions, sampler=sampler)
        return copy.ask(self._distributions).params

    def _as_evidence(self, trial: FrozenTrial) -> FrozenTrial:
        """`trial` as samplers can take it."""
        given: dict[str, Any] = {"params": trial.params, "distributions": trial.distributions}
        if trial.state == TrialState.WAITING:  # else it would be what `ask` returns
            return create_trial(state=TrialState.RUNNING, **given)
        if trial.state == TrialState.PRUNED and self.plan.objective == "pareto":
            # Optuna's samplers know no pruned trials of two objectives. As far as it came, at the cost of the whole.
            record = self._records[trial.number]
            return create_trial(values=[record.reached, whole_seconds(record)], **given)
        return trial

    def report(
        self, number: int, epoch: int, value: float | None, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """What trial `number` has reached after `epoch` epochs, `seconds` of them spent training."""
        before, curve = self._records[number], dict(self._records[number].curve)
        with errors(self.url):
            if value is not None and math.isfinite(value):
                self.storage.set_trial_intermediate_value(self._ids[number], epoch, value)
                curve[epoch] = value
            best = self.plan.best(curve.values())
            kept = dict(before.metrics if best == before.value else metrics)
            progress = {"epoch": epoch, "seconds": seconds, "metrics": kept}
            self.storage.set_trial_user_attr(self._ids[number], "progress", progress)
        self._change(number, **progress, curve=curve, value=best)

    def finish(self, number: int, state: Literal["complete", "pruned", "failed"], why: str = "") -> None:
        """End trial `number`. Its value is the best it reported; without any it has failed."""
        record = self._records[number]
        state = "failed" if record.value is None else state
        # Optuna's convention is one value for a pruned trial of one objective, and none for one of several.
        single, values = self.plan.objective == "quality", None
        if state == "complete" or (state == "pruned" and single):
            values = [record.reached] if single else [record.reached, record.seconds]
        with errors(self.url):
            if why:
                self.storage.set_trial_user_attr(self._ids[number], "why", why)
            self.storage.set_trial_state_values(self._ids[number], _OPTUNA_STATES[state], values)
        self._change(number, state=state)

    def set_state(self, number: int, state: Literal["running", "waiting"]) -> None:
        """Trial `number` goes on, or was interrupted and waits: none stays "running" when nothing runs."""
        with errors(self.url):
            self.storage.set_trial_state_values(self._ids[number], _OPTUNA_STATES[state])
        self._change(number, state=state)

    def _change(self, number: int, **changes: Any) -> None:
        self._records[number] = dataclasses.replace(self._records[number], **changes)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.choices)
    low, high = dimension.ends
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)


def _lives(pid: int, began: float) -> bool:
    """Whether that process is there, and no later one of the same number."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - began) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_OPTUNA_STATES: dict[State, TrialState] = {
    "waiting": TrialState.WAITING,
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_STATES = {theirs: ours for ours, theirs in _OPTUNA_STATES.items()}


def _record(trial: FrozenTrial, plan: Plan) -> TrialRecord:
    progress = trial.user_attrs.get("progress", {})
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        params={name: trial.params[name] for name in plan.space},
        value=plan.best(trial.intermediate_values.values()),
        seconds=float(progress.get("seconds", 0.0)),
        epoch=int(progress.get("epoch", 0)),
        epochs=int(trial.user_attrs.get("epochs", 0)),
        metrics={name: float(value) for name, value in progress.get("metrics", {}).items()},
        curve=dict(trial.intermediate_values),
    )


def open_study(url: str, name: str) -> optuna.Study:
    """Optuna's study of a sweep, to look at. Raises BadInput where it can't be reached."""
    with errors(url):
        return optuna.load_study(study_name=name, storage=open_storage(url))
