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
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput, CrayonError
from crayon.launch import cluster, shared
from crayon.launch.channel import Channel
from crayon.tuning import mps
from crayon.tuning.actor import TrialActor, folder
from crayon.tuning.settings import SweepConfig
from crayon.tuning.slots import Growth, Slots, hint
from crayon.tuning.space import clipped
from crayon.tuning.stopping import should_stop
from crayon.tuning.study import Study

log = logging.getLogger("crayon")
TICK_SECONDS = 0.25
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
    ended: int = 0
    """How many trials ended under this command."""
    step_seconds: float = 0.0
    """Spent in the steps of all trials."""
    seconds: float = 0.0
    """That Tune ran for."""

    def __post_init__(self) -> None:
        self.left = self.study.unfinished()

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

    def waiting(self) -> int:
        """How many trials are still to start, or to go on."""
        if self.stop.is_set():
            return 0
        return len(self.left) + max(0, self.sweep.trials - len(self.study.records()))

    def next_trial(self) -> tuple[int, Mapping[str, Scalar]] | None:
        """The next trial to run, or None when there is none."""
        if self.left:
            trial = self.left.pop(0)
            self.study.set_state(trial.number, "running")
            return trial.number, trial.params
        made = len(self.study.records())
        if made >= self.sweep.trials:
            return None
        params = self.study.suggest() if made else clipped(self.config, self.study.plan.space)
        return self.study.add(params, int(params.get("epochs") or self.config.epochs)), params

    def report(self, number: int, row: Mapping[str, Any]) -> None:
        """Enter what a trial has reached after an epoch, whose row of metrics.jsonl that is."""
        plan, target, self.images = self.study.plan, self.sweep.target, row["images"] / row["epoch"]
        metrics = {k: float(v) for k, v in row.items() if k.startswith("val/") and k.count("/") == 1}
        self.study.report(number, int(row["epoch"]), row.get(plan.metric), row["train_seconds"], metrics)
        best = self.study.records()[number].value
        if best is not None and target is not None and (best == target or plan.better(best, target)):
            self.request_stop(f"Trial {number} has reached the target.")

    def falls_behind(self, number: int) -> bool:
        """Whether early stopping ends the trial now."""
        others = [r for r in self.study.records() if r.number != number and r.state != "failed"]
        mine, plan = self.study.records()[number], self.study.plan
        if self.sweep.early_stopping and should_stop(mine, others, plan, self.images):
            self.pruned.add(number)
        return number in self.pruned

    def end(self, number: int, result: Mapping[str, Any], error: bool) -> None:
        """Enter that a trial has ended, or waits to go on."""
        if result.get("interrupted"):
            self.study.set_state(number, "waiting")
            if why := result.get("hopeless"):
                raise BadInput(why)
            return
        if number in self.pruned:
            self.study.finish(number, "pruned")
        elif error and self.restarts[number] < self.config.ray.max_failures:
            self.restarts[number] += 1
            self.study.set_state(number, "waiting")
            record = self.study.records()[number]
            self.left.insert(0, record)
            self.emit(f"Trial {number} lost its process or its node; it goes on after epoch {record.epoch}.")
            return
        elif error or result.get("failed"):
            why = str(result.get("failed") or "its process kept dying")
            self.study.finish(number, "failed", why)
            self.emit(f"Trial {number} failed: {why}")
        else:
            self.study.finish(number, "complete")
        self.ended += 1

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
                return state.falls_behind(number)
        return False

    def stop_all(self) -> bool:
        return self.state.stop.is_set() and not self.state.numbers


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
    if text := hint(state.slots.count, state.sweep):
        state.emit(text)
    config, channel = state.config, Channel()
    sharing = state.sweep.mps and 0 < state.slots.gpus < 1
    if state.sweep.mps and not sharing:
        state.emit("--mps does nothing: the trials share no GPU.")
    payload = {
        "config": config,
        "threads": state.slots.cpus,
        "gpus": state.slots.gpus,
        "channel": channel,
        "mark": shared.mark(folder(config), own=not cluster.joins()),
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
        if state.deadline is not None and time.monotonic() > state.deadline:
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
    for record in state.study.unfinished():
        if record.state == "running":
            state.study.set_state(record.number, "waiting")
    refresh()
    if isinstance(state.error, CrayonError):
        raise state.error
    if state.error is not None:
        raise RuntimeError("Ray Tune failed.") from state.error
