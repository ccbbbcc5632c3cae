"""One trial after the other in a process that stays: what a trial costs beyond its training is milliseconds.

Ray Tune hands a finished trial's actor to the next one (`reuse_actors`), so Python, torch and the images are loaded
once per slot. Images are memory-mapped, so all slots of a node share one copy of them.

A trial is an ordinary run in `<sweep>/trials/<number>`, trained by the ordinary loop. It goes on from its newest
checkpoint wherever it is opened again: after a killed actor, a lost node, or in the next command.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from ray import tune

from crayon.config.names import flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput, CrayonError, Stopped, with_type
from crayon.fast import garbage
from crayon.launch import cluster, shared
from crayon.report.events import EpochEnd
from crayon.system.runfolder import CHECKPOINTS, RunFolder
from crayon.tuning import mps


def trial_config(sweep: Experiment, number: int, params: Mapping[str, Scalar]) -> Experiment:
    """The experiment that trial `number` is. `sweep`: what all trials share, with the sweep's own name and storage."""
    places = {"name": f"{number:04d}", "storage": RunFolder.of(sweep).inside("trials"), "wandb": "off"}
    return override(sweep, {**params, **places})


class TrialActor(tune.Trainable):
    """Ray Tune's Trainable: a step is an epoch. `payload` is the same for all trials, `config` is one's own."""

    def setup(self, config: dict[str, Any], payload: Any = None) -> None:
        garbage.relax()
        self.payload: dict[str, Any] = payload
        self.stop_event = threading.Event()
        self.splits: Any = None
        self.training: InProcess | OnRayTrain | None = None
        self.goes_on = True
        """Whether the trial may be opened again: it was interrupted, or has failed."""
        self._lock = contextlib.ExitStack()
        threading.Thread(target=self._listen, daemon=True).start()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave a trial for another one, which the next step opens."""
        import torch

        self.cleanup()
        self.cpus: int = new_config["cpus"]
        torch.set_num_threads(self.cpus)
        self.experiment = trial_config(self.payload["config"], new_config["number"], new_config["params"])
        self.run = RunFolder.of(self.experiment)
        turn = new_config.get("turn") or {}
        self.parent, self.until = turn.get("parent"), turn.get("until", self.experiment.epochs)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch. Returns `done` with the epoch's `row` of metrics.jsonl, `interrupted`, `failed`, or `fault`,
        which is the machine's; or `hopeless`, where no trial can run on this node.

        What would end the trial again is reported, not raised: only a trial whose process died is tried again.
        """
        try:
            report = self._open() if self.training is None else None
            started = time.perf_counter()
            if report is None and self.training is not None:
                trained = self.training.train_epoch()
                report = {"step_seconds": time.perf_counter() - started, **trained}
        except Stopped:
            report = {"done": True, "interrupted": True}
        except CrayonError as error:
            report = {"done": True, "fault" if error.of_machine else "failed": str(error)}
        except OSError as error:
            report = {"done": True, "fault": with_type(error)}
        except Exception as error:
            self.run.write_bytes("error.txt", traceback.format_exc().encode())
            text = f"{type(error).__name__}: {error} (see {self.run.uri}/error.txt)"
            report = {"done": True, "failed": text}
        self.goes_on = bool(report and {"interrupted", "failed", "fault"} & report.keys())
        return report or {}

    def cleanup(self) -> None:
        if self.training is not None:
            with contextlib.suppress(CrayonError):
                self.training.close()
                if not self.goes_on and not self.payload["keep"]:
                    from crayon.training import checkpoint

                    checkpoint.keep_needed(self.run)
            self.training = None
        self._lock.close()

    def _open(self) -> dict[str, Any] | None:
        """Open the trial. Returns a report where it can't be, and that of its newest epoch, if it was interrupted: it
        may have been killed before that was heard."""
        try:
            shared.compare(self.payload["versions"])
            shared.check(RunFolder.of(self.payload["config"]), self.payload["mark"])
        except BadInput as error:
            return {"done": True, "interrupted": True, "hopeless": str(error)}
        self.run.create()
        self._lock.enter_context(self.run.lock())
        self.run.pull()
        self._begin()
        self.run.write_json("config.json", flatten(self.experiment))
        self.training = (OnRayTrain if self.experiment.max_workers > 1 else InProcess)(self)
        rows = self.run.read_rows("metrics.jsonl")[-1:]
        return {"row": rows[0], "done": rows[0]["epoch"] >= self.until} if rows else None

    def _begin(self) -> None:
        """Have a trial that goes on from another one begin with what that has left; where that isn't here, it is
        trained from the first epoch on."""
        if self.parent is None or self.run.holds(CHECKPOINTS):
            return
        from crayon.training import checkpoint

        parent = RunFolder(self.experiment.storage, f"{self.parent:04d}")
        parent.pull()
        if parent.holds(CHECKPOINTS):
            checkpoint.fork(parent, self.run)
            self.run.push(CHECKPOINTS)

    def _listen(self) -> None:
        if self.payload["channel"].wait() == "stop":
            self.stop_event.set()


class InProcess:
    """A trial in the actor's own process."""

    def __init__(self, actor: TrialActor):
        from crayon.system import devices
        from crayon.training import worker
        from crayon.training.collectives import Group

        config = actor.experiment
        if actor.payload["mps"]:
            mps.use()
        if actor.splits is None:
            actor.splits = worker.load_data(config)
        group, should_stop = Group(device=devices.chosen(config.device)), actor.stop_event.is_set
        self.trainer = worker.build(config, actor.splits, actor.run, group=group, should_stop=should_stop)
        self.trainer.restore()
        self.until = actor.until

    def train_epoch(self) -> dict[str, Any]:
        trainer = self.trainer
        trainer.train_epoch()
        done = trainer.epoch >= self.until
        if done and trainer.step < trainer.total_steps:  # others go on from here
            from crayon.training import checkpoint

            trainer.saver.wait()
            entry = checkpoint.latest(trainer.run)
            if entry is None or entry.step < trainer.step:
                trainer.save()
        return {"row": trainer.run.read_rows("metrics.jsonl")[-1], "done": done}

    def close(self) -> None:
        self.trainer.saver.wait()


class OnRayTrain:
    """A trial on several Ray Train workers. The actor only listens to them, and needs no core of its own."""

    def __init__(self, actor: TrialActor):
        from crayon.launch.channel import Channel
        from crayon.launch.workers import Workers

        cluster.prepare_environment()
        self.run, self.epochs, self._closed = actor.run, actor.experiment.epochs, False
        self.run.push("config.json")
        payload, self._stop = actor.payload, actor.stop_event
        self.workers = Workers(
            actor.experiment,
            Channel(),
            own=payload["own"],
            use_gpu=payload["gpus"] > 0,
            cpus=actor.cpus,
            started=time.time(),
            measure=False,
        )
        batches = self.workers.run(lambda: self._closed or self._stop.is_set())
        self._events = itertools.chain.from_iterable(batches)

    def train_epoch(self) -> dict[str, Any]:
        for event in self._events:
            if isinstance(event, EpochEnd):
                done = event.metrics["epoch"] >= self.epochs
                if done:
                    self._drain()
                row = event.metrics  # the first step is waited for until the workers are there
                spent = row["images"] / row["epoch"] / row["images_per_second"] + row["eval_seconds"]
                return {"row": row, "done": done, "step_seconds": spent}
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
        self._closed = True
        self._drain()
