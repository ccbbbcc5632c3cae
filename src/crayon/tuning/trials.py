"""From a sweep's plan to its end: Ray Tune runs the trials, the study decides which, and this follows both.

The study, not Tune's own experiment state, is the record. Every command starts a new Tune experiment, gives it the
trials that an earlier command left unfinished, and then new ones until the sweep's end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ray import tune
from ray.tune.search import Searcher

from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput, CrayonError
from crayon.launch import cluster, memory, shared
from crayon.launch.channel import Channel
from crayon.system.runfolder import RunFolder
from crayon.tuning import mps, winner
from crayon.tuning.actor import TrialActor
from crayon.tuning.records import OVER, TrialRecord
from crayon.tuning.settings import SweepConfig
from crayon.tuning.slots import Growth, Slots, hint
from crayon.tuning.stopping import should_stop
from crayon.tuning.study import Study

log = logging.getLogger("crayon")
TICK_SECONDS = 0.25
WELCOME_SECONDS = 1.0
"""How often a study is looked at for trials of other programs."""
FAULTS = 2
"""Faults of the machine in a row, no trial having ended between them, that suspend the sweep."""
LESS = "a smaller --concurrent or --global-batch-size needs less"
STOP_SECONDS = 120.0
"""How long trials may take to save and end when the sweep is asked to stop."""


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
            self.request_stop(f"Trial {won[0].number} has reached the target.")
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

    def request_stop(self, reason: str) -> None:
        """Have all trials save and end; only the first reason counts."""
        if not self.stop.is_set():
            self.reason = reason
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
            self.request_stop(f"Trial {number} has reached the target.")

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
        """End the sweep where nothing has become better for long."""
        over = [r for r in self.study.records() if r.state in OVER and not r.outside]
        ranked = sorted((r for r in over if r.value is not None), key=lambda r: r.number)
        best = self.study.plan.best(r.reached for r in ranked)
        first = next((r.number for r in ranked if r.value == best), None)
        since = sum(r.number > first for r in over) if first is not None else 0
        if self.sweep.patience is not None and since >= self.sweep.patience:
            self.request_stop(f"{since} trials in a row were no better than trial {first}.")

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


class StudySearcher(Searcher):
    """Has Tune run the trials that the study wants, and enters how they end."""

    def __init__(self, state: SweepState):
        super().__init__()
        self.state = state

    def suggest(self, trial_id: str) -> Any:
        state = self.state
        if state.stop.is_set():
            return Searcher.FINISHED
        if len(state.numbers) >= state.slots.count:
            return None
        with state.guarded():
            found = state.next_trial()
            if found is not None:
                state.numbers[trial_id] = found[0]
                return {"number": found[0], "params": dict(found[1])}
        # One under way may yet die, and come back here.
        return None if state.numbers else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.state.numbers.pop(trial_id, None)
        if number is not None:
            with self.state.guarded():
                self.state.end(number, result or {}, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class SweepStopper(tune.Stopper):
    """Enters every epoch in the study, and ends trials that fall behind; ends Tune's experiment once the sweep was
    asked to stop and its trials had time to save."""

    def __init__(self, state: SweepState):
        self.state = state

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        state, number = self.state, self.state.numbers.get(trial_id)
        with state.guarded():
            if number is not None and "row" in result:
                state.step_seconds += result.get("step_seconds", 0.0)
                state.report(number, result["row"])
                return state.ends(number)
        return False

    def stop_all(self) -> bool:
        return self.state.stop.is_set() and not self.state.numbers


class Memory(tune.Callback):
    """Tells where Ray has ended a trial's process since its machine ran out of memory."""

    def __init__(self, emit: Callable[[str], None]):
        self.emit = emit

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if memory.ended(str(trial.get_error())):
            self.emit(f"A trial was ended since its machine ran out of memory; {LESS}.")

    def __reduce__(self) -> Any:  # as SweepState's
        return (object, ())


def _keep_keys_out_of_sight() -> None:
    """Tune copies this process's AWS keys into its actors' runtime_env, from where they get into command lines, Ray's
    logs and the dashboard. Nodes have credentials of their own; on one machine the environment is inherited anyway."""
    try:
        from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE as passed_on
    except ImportError:
        log.warning("Ray Tune may show this process's AWS keys in its logs and its dashboard.")
        return
    passed_on -= {name for name in passed_on if name.startswith("AWS_")}


def run_trials(state: SweepState, refresh: Callable[[], None], interrupted: threading.Event) -> None:
    """Run trials until the sweep's end or until `interrupted` is set; `refresh` is called a few times a second.

    Trials under way when it ends are suspended. Ray is connected.
    """
    _keep_keys_out_of_sight()
    if state.searches and (text := hint(state.slots.count, state.sweep)):
        state.emit(text)
    config, channel = state.config, Channel()
    sharing = state.sweep.mps and 0 < state.slots.gpus < 1
    if state.sweep.mps and not sharing and state.searches:
        state.emit("--mps does nothing: the trials share no GPU.")
    payload = {
        "config": config,
        "threads": state.slots.cpus,
        "gpus": state.slots.gpus,
        "channel": channel,
        "mark": shared.mark(RunFolder.of(config), own=not cluster.joins()),
        "own": not cluster.joins(),
        "keep": state.sweep.keep_trials,
        "mps": sharing,
    }
    # Of a trial of several workers, Ray Train's workers hold the cores, and would wait for ever for one held by an
    # actor that only listens to them. It has to ask for something: a byte of memory.
    resources: dict[str, float] = {"cpu": state.slots.cpus, "gpu": state.slots.gpus}
    if config.max_workers > 1:
        resources = {"memory": 1}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialActor, payload=payload), resources),
        tune_config=tune.TuneConfig(search_alg=StudySearcher(state), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"{config.name}-{time.time_ns()}",
            storage_path=str(cluster.scratch()),
            stop=SweepStopper(state),
            callbacks=[Memory(state.emit)],
            # `SweepState.end` gives it to another process: Tune wouldn't where one died between two trials.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )
    ended = threading.Event()

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            state.error = state.error or error
        finally:
            ended.set()

    growth = Growth(config, state.sweep, state.slots, state.emit)
    begun, asked = time.monotonic(), None
    # Not in the main thread, where Tune would take Ctrl-C for itself.
    threading.Thread(target=fit, daemon=True).start()
    while not ended.wait(TICK_SECONDS):
        if state.deadline is not None and time.monotonic() > state.deadline - state.reserved():
            state.request_stop("The time is up.")
        if interrupted.is_set():
            state.request_stop("Interrupted.")
        if state.stop.is_set() and asked is None:
            asked = time.monotonic()
            channel.request("stop")
        if asked is not None and time.monotonic() - asked > STOP_SECONDS:
            break  # their checkpoints of before are whole
        with state.guarded():
            growth.follow(len(state.numbers), state.waiting())
        refresh()
    growth.close()
    state.seconds = time.monotonic() - begun
    if sharing:
        mps.end()
    for record in state.unfinished():
        if record.state == "running":
            state.study.set_state(record.number, "waiting")
    refresh()
    if isinstance(state.error, CrayonError):
        raise state.error
    if state.error is not None:
        raise RuntimeError("Ray Tune failed.") from state.error
