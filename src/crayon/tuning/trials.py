"""From a sweep's plan to its end: Ray Tune runs the trials, the study decides which, and this follows both.

The study, not Tune's own experiment state, is the record. Every command starts a new Tune experiment, gives it the
trials that an earlier command left unfinished, and then new ones until the sweep's end.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from crayon.errors import CrayonError
from crayon.launch import cluster, memory, shared
from crayon.launch.channel import Channel
from crayon.system.runfolder import RunFolder
from crayon.tuning import mps
from crayon.tuning.actor import TrialActor
from crayon.tuning.slots import Growth, hint
from crayon.tuning.state import LESS, SweepState

log = logging.getLogger("crayon")
TICK_SECONDS = 0.25
STOP_SECONDS = 120.0
"""How long trials may take to save and end when the sweep is asked to stop."""


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
                trial = state.study.record(found[0])
                turn = {"turn": dataclasses.asdict(trial.turn)} if trial.turn else {}
                params = {"number": trial.number, "params": dict(trial.settings)}
                return {**params, "cpus": state.slots.cpus, **turn}
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
        "gpus": state.slots.gpus,
        "channel": channel,
        "mark": shared.mark(RunFolder.of(config), own=not cluster.joins()),
        "versions": shared.versions(),
        "own": not cluster.joins(),
        "keep": state.sweep.keep_trials,
        "mps": sharing,
    }
    gpus = state.slots.gpus

    def resources(trial: dict[str, Any]) -> tune.PlacementGroupFactory:
        # Of a trial of several workers, Ray Train's workers hold the cores, and would wait for ever for one held by an
        # actor that only listens to them. It has to ask for something: a byte of memory.
        several = {"memory": 1.0}
        return tune.PlacementGroupFactory(
            [
                several
                if config.max_workers > 1
                else {"CPU": float(trial["cpus"])} | ({"GPU": gpus} if gpus else {})
            ]
        )

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
