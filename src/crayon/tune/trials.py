"""From a sweep's plan to its end: Ray Tune runs the trials, the study decides which, and this follows both.

The study, not Tune's own experiment state, is the record. Every command starts a new Tune experiment, gives it the
trials that an earlier command left unfinished, and then new ones until the budget is spent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from crayon.config.names import flatten
from crayon.config.settings import Experiment, Scalar
from crayon.errors import CrayonError
from crayon.launch import cluster
from crayon.launch.channel import Channel
from crayon.system.runfolder import RunFolder
from crayon.tune.actor import TrialActor
from crayon.tune.records import TrialRecord
from crayon.tune.slots import Slots
from crayon.tune.stopping import should_stop
from crayon.tune.study import Study

log = logging.getLogger("crayon")
TICK_SECONDS = 0.25
STOP_SECONDS = 120.0
"""How long trials may take to save and end when the sweep is asked to stop."""


@dataclass
class Budget:
    """When a sweep ends, beside Ctrl-C."""

    trials: int
    deadline: float | None = None
    """time.monotonic()"""
    target: float | None = None


@dataclass
class Following:
    """What Tune's callbacks and the driver's loop share."""

    study: Study
    budget: Budget
    slots: Slots
    early_stopping: bool
    first: Mapping[str, Scalar]
    """Parameters of trial 0: the preset's."""
    epochs_of: Callable[[Mapping[str, Scalar]], int]
    most_deaths: int
    """How often a trial whose process has died is gone on with."""
    tell: Callable[[str], None]
    """Receives a sentence for each trial that has failed."""
    stop: threading.Event
    """Ask all trials to save and end."""
    reason: str = ""
    """Why the sweep stopped before its trials were through."""
    error: BaseException | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    """By Tune's id of a trial under way, its number in the study."""
    pruned: set[int] = field(default_factory=set)
    deaths: dict[int, int] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    """Numbers of the trials that ended under this command, in order."""
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

    def next_trial(self) -> tuple[int, Mapping[str, Scalar]] | None:
        """The next trial to run, or None when there is none."""
        if self.left:
            trial = self.left.pop(0)
            self.study.start(trial.number)
            return trial.number, trial.params
        made = len(self.study.records())
        if made >= self.budget.trials:
            return None
        params = self.study.suggest() if made else self.first
        return self.study.add(params, self.epochs_of(params)), params

    def report(self, number: int, told: Mapping[str, Any]) -> None:
        """Keep what a trial has reached after an epoch."""
        row = {key[4:]: value for key, value in told.items() if key.startswith("row/")}
        if not row:
            return
        metrics = {k: float(v) for k, v in row.items() if k.startswith("val/") and k.count("/") == 1}
        self.study.report(
            number, int(row["epoch"]), row.get(self.study.plan.metric), row["train_seconds"], metrics
        )
        if not self.stop.is_set() and self._on_target(self._record(number).value):
            self.reason = f"Trial {number} has reached the target."
            self.stop.set()

    def _on_target(self, best: float | None) -> bool:
        target = self.budget.target
        if best is None or target is None:
            return False
        return best >= target if self.study.plan.direction == "max" else best <= target

    def falls_behind(self, number: int) -> bool:
        if not self.early_stopping:
            return False
        others = [r for r in self.study.records() if r.number != number and r.state != "failed"]
        plan = self.study.plan
        return should_stop(self._record(number), others, direction=plan.direction, objective=plan.objective)

    def end(self, number: int, told: Mapping[str, Any], error: bool) -> None:
        """A trial has ended, one way or another."""
        if told.get("interrupted"):
            self.study.suspend(number)
            return
        if number in self.pruned:
            self.study.finish(number, "pruned")
        elif error and self.deaths.setdefault(number, 0) < self.most_deaths:
            self.deaths[number] += 1
            self.study.suspend(number)
            self.left.insert(0, self._record(number))
            return
        elif error or told.get("failed"):
            why = str(told.get("failed") or "its process kept dying")
            self.study.finish(number, "failed", why)
            self.tell(f"Trial {number} failed: {why}")
        else:
            self.report(number, told)
            self.study.finish(number, "complete")
        self.ended.append(number)

    def overhead(self) -> float | None:
        """Seconds per trial beyond its steps, from Tune's start to its end. None where trials ran side by side."""
        if self.slots.count > 1 or not self.ended:
            return None
        return (self.seconds - self.step_seconds) / len(self.ended)

    def _record(self, number: int) -> TrialRecord:
        return next(r for r in self.study.records() if r.number == number)


class Suggestions(Searcher):
    """Tune's side of the study."""

    def __init__(self, following: Following):
        super().__init__()
        self.following = following

    def suggest(self, trial_id: str) -> Any:
        following = self.following
        if following.stop.is_set():
            return Searcher.FINISHED
        if len(following.numbers) >= following.slots.count:
            return None
        with following.guarded():
            found = following.next_trial()
            if found is not None:
                following.numbers[trial_id] = found[0]
                return {"number": found[0], "params": dict(found[1])}
        # One under way may yet die, and come back here.
        return None if following.numbers else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.following.numbers.pop(trial_id, None)
        if number is not None:
            with self.following.guarded():
                self.following.step_seconds += float((result or {}).get("step_seconds", 0.0))
                self.following.end(number, result or {}, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class EarlyStopping(FIFOScheduler):
    """Tune's side of `stopping`."""

    def __init__(self, following: Following):
        super().__init__()
        self.following = following

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self.following.numbers.get(trial.trial_id)
        with self.following.guarded():
            if number is not None:
                self.following.step_seconds += float(result.get("step_seconds", 0.0))
                self.following.report(number, result)
                if self.following.falls_behind(number):
                    self.following.pruned.add(number)
                    return FIFOScheduler.STOP
        return FIFOScheduler.CONTINUE


class Halt(tune.Stopper):
    """Ends Tune's experiment once the sweep was asked to stop and its trials had time to save."""

    def __init__(self, following: Following):
        self.following = following

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.following.stop.is_set() and not self.following.numbers


def _keep_keys_out_of_sight() -> None:
    """Tune copies this process's AWS keys into its actors' runtime_env, from where they get into command lines, Ray's
    logs and the dashboard. Nodes have credentials of their own; on one machine the environment is inherited anyway."""
    try:
        from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE as passed_on
    except ImportError:
        log.warning("Ray Tune may show this process's AWS keys in its logs and its dashboard.")
        return
    passed_on -= {name for name in passed_on if name.startswith("AWS_")}


def run_trials(
    config: Experiment,
    run: RunFolder,
    following: Following,
    look: Callable[[], None],
    interrupted: threading.Event,
) -> None:
    """Run trials until the budget is spent or `interrupted` is set; `look` is called a few times a second.

    Trials under way when it ends are suspended. Ray is connected.
    """
    _keep_keys_out_of_sight()
    own = not cluster.joins()
    channel = Channel()
    payload = {
        "job": config.job,
        "preset": config.preset,
        "config": flatten(config),
        "storage": run.storage,
        "name": run.name,
        "threads": following.slots.cpus,
        "gpus": following.slots.gpus,
        "channel": channel,
        "own": own,
    }
    # Of a trial of several workers, Ray Train's workers hold the cores, and would wait for ever for one held by an
    # actor that only listens to them. It has to ask for something: a byte of memory.
    resources: dict[str, float] = {"cpu": following.slots.cpus, "gpu": following.slots.gpus}
    if config.max_workers > 1:
        resources = {"memory": 1}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialActor, payload=payload), resources),
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(following),
            scheduler=EarlyStopping(following),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{run.name}-{time.time_ns()}",
            storage_path=str(cluster.scratch()),
            stop=Halt(following),
            # `Following.end` gives it to another process: Tune wouldn't where one died between two trials.
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
            following.error = following.error or error
        finally:
            ended.set()

    begun = time.perf_counter()
    # Not in the main thread, where Tune would take Ctrl-C for itself.
    threading.Thread(target=fit, daemon=True).start()
    asked = None
    while not ended.wait(TICK_SECONDS):
        deadline = following.budget.deadline
        if deadline is not None and time.monotonic() > deadline and not following.stop.is_set():
            following.reason = "The time is up."
            following.stop.set()
        if interrupted.is_set() and not following.stop.is_set():
            following.reason = "Interrupted."
            following.stop.set()
        if following.stop.is_set() and asked is None:
            asked = time.monotonic()
            channel.request("stop")
        if asked is not None and time.monotonic() - asked > STOP_SECONDS:
            break  # their checkpoints of before are whole
        look()
    following.seconds = time.perf_counter() - begun
    for record in following.study.unfinished():
        if record.state == "running":
            following.study.suspend(record.number)
    look()
    if following.error is not None:
        if isinstance(following.error, CrayonError):
            raise following.error
        raise RuntimeError("Ray Tune failed.") from following.error
