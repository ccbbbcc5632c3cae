"""One trial after the other in a process that stays: what a trial costs beyond its training is milliseconds.

Ray Tune hands a finished trial's actor to the next one (`reuse_actors`), so Python, torch and the images are loaded
once per slot. Images are memory-mapped, so all slots of a node share one copy of them.

A trial is an ordinary run in `<sweep>/trials/<number>`, trained by the ordinary loop. It goes on from its newest
checkpoint wherever it is opened again: after a killed actor, a lost node, or in the next command.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ray import tune

from crayon.config.names import flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import CrayonError, Stopped
from crayon.fast import garbage
from crayon.launch import cluster
from crayon.report.events import EpochEnd, Event
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get


def trial_config(base: Experiment, sweep: RunFolder, number: int, params: Mapping[str, Scalar]) -> Experiment:
    """The experiment that trial `number` of the sweep is."""
    places = {"name": f"{number:04d}", "storage": inside(sweep, "trials"), "wandb": "off"}
    return override(base, {**params, **places})


def inside(sweep: RunFolder, *folders: str) -> str:
    """A folder of the sweep as the storage of runs."""
    base, mark, query = sweep.storage.partition("?")
    return "/".join([base.rstrip("/"), sweep.name, *folders]) + mark + query


class Training(Protocol):
    """A trial under way."""

    def next(self) -> dict[str, Any]:
        """Train one epoch. Returns what Tune is told: `row` (of metrics.jsonl) and `done`, or `interrupted`."""
        ...

    def close(self) -> None: ...


class TrialActor(tune.Trainable):
    """Ray Tune's Trainable: a step is an epoch. `payload` is the same for all trials, `config` is one's own."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """given: what `tune.with_parameters` adds, the payload."""
        garbage.relax()
        import torch

        self.payload: dict[str, Any] = given["payload"]
        self.stop_event = threading.Event()
        self.splits: Any = None
        self.training: Training | None = None
        torch.set_num_threads(self.payload["threads"])
        threading.Thread(target=self._listen, daemon=True).start()
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._open(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch. What would end the trial again is told, not raised: only a dead process is tried again."""
        started = time.perf_counter()
        try:
            if self.training is None:
                assert self.mistake is not None
                raise self.mistake
            told = self._old.pop() if self._old else self.training.next()
        except Stopped:
            told = {"done": True, "interrupted": True}
        except CrayonError as error:
            told = {"done": True, "failed": str(error)}
        except Exception as error:
            self.run.write_bytes("error.txt", traceback.format_exc().encode())
            told = {"done": True, "failed": f"{type(error).__name__}: {error} (see {self.run.uri}/error.txt)"}
        return {"number": self.number, "step_seconds": time.perf_counter() - started} | told

    def cleanup(self) -> None:
        self._close()

    def _open(self, config: dict[str, Any]) -> None:
        self._close()
        self.number = config["number"]
        base = override(get(self.payload["job"], self.payload["preset"]), self.payload["config"])
        sweep = RunFolder(self.payload["storage"], self.payload["name"])
        experiment = trial_config(base, sweep, self.number, config["params"])
        self.run = RunFolder(experiment.storage, str(experiment.name))
        self.mistake: Exception | None = None
        self._old: list[dict[str, Any]] = []
        try:
            self.run.create()
            self.training = (OnWorkers if experiment.max_workers > 1 else Here)(experiment, self.run, self)
            # The newest epoch of an interrupted trial is told first: it may have been killed before it could be.
            rows = self.run.read_rows("metrics.jsonl")[-1:]
            self._old = [{"row": row, "done": row["epoch"] >= experiment.epochs} for row in rows]
        except Exception as error:  # told by the first step
            self.mistake = error

    def _close(self) -> None:
        if self.training is not None:
            self.training.close()
            self.training = None

    def _listen(self) -> None:
        if self.payload["channel"].wait() == "stop":
            self.stop_event.set()


class Here:
    """A trial in the actor's own process."""

    def __init__(self, config: Experiment, run: RunFolder, actor: TrialActor):
        from crayon.system import devices
        from crayon.training import worker
        from crayon.training.collectives import Group

        self.config, self.run = config, run
        self.trainer = None
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.run.lock())
        try:
            self.run.pull()
            self.run.write_json("config.json", flatten(config))
            if actor.splits is None:
                actor.splits = worker.load_data(config)
            self.trainer = worker.build(
                config,
                actor.splits,
                self.run,
                group=Group(device=devices.chosen(config.device)),
                should_stop=actor.stop_event.is_set,
            )
            self.trainer.restore()
        except BaseException:
            self.close()
            raise

    def next(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        trainer.train_epoch()
        rows = self.run.read_rows("metrics.jsonl")
        done = trainer.step >= trainer.total_steps
        return {"row": rows[-1], "done": done}

    def close(self) -> None:
        if self.trainer is not None:
            with contextlib.suppress(CrayonError):
                self.trainer.saver.wait()
        self._open.close()


class OnWorkers:
    """A trial on several Ray Train workers. The actor only listens to them, and needs no core of its own."""

    def __init__(self, config: Experiment, run: RunFolder, actor: TrialActor):
        from crayon.launch.channel import Channel
        from crayon.launch.workers import Workers

        cluster.prepare_environment()
        self.config, self.run = config, run
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(self.run.lock())
        self.run.pull()
        self.run.write_json("config.json", flatten(config))
        self.run.push("config.json")
        payload = actor.payload
        self._stop = actor.stop_event
        self._mine = threading.Event()
        self.workers = Workers(
            config,
            Channel(),
            own=payload["own"],
            use_gpu=payload["gpus"] > 0,
            cpus=payload["threads"],
            started=time.time(),
            measure=False,
        )
        self._events = self._told()

    def _told(self) -> Iterator[Event]:
        class Either:
            """Set when the whole sweep stops, or this trial does."""

            is_set = staticmethod(lambda: self._stop.is_set() or self._mine.is_set())

        for events in self.workers.run(Either()):  # type: ignore[arg-type]
            yield from events

    def next(self) -> dict[str, Any]:
        for event in self._events:
            if isinstance(event, EpochEnd):
                row = event.metrics
                done = row["epoch"] >= self.config.epochs
                if done:
                    self._drain()
                return {"row": row, "done": done}
        if self._stop.is_set():
            raise Stopped("The sweep was asked to stop.")
        self.workers.check()
        # All epochs were trained before this command.
        return {"row": self.run.read_rows("metrics.jsonl")[-1], "done": True}

    def _drain(self) -> None:
        for _ in self._events:
            pass
        self.workers.check()

    def close(self) -> None:
        self._mine.set()
        with contextlib.suppress(CrayonError):
            self._drain()
        self._lock.close()
