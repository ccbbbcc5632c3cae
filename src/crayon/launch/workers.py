"""The Ray Train workers of a run. With `lean`, the only module that imports Ray Train."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray.train
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, get_device

from crayon.config.names import flatten, override
from crayon.config.settings import Experiment
from crayon.errors import BadInput, CrayonError, RunFailed, Stopped, last_line
from crayon.fast import garbage
from crayon.launch import capacity, cluster, elastic, interface, lean, loopback, mailbox
from crayon.launch.mailbox import LOOK_SECONDS, Mailbox
from crayon.report.events import Event, Failed, Message, from_dict, to_dict
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get

SILENCE_SECONDS = 20.0
"""When nothing was heard of the workers for so long, the driver looks whether there is room for them."""


class Workers:
    """The Ray Train workers of one run of `config`, whose storage and name must be set; Ray is connected.

    own: whether the cluster is our own and ends with this command.
    measure: whether they evaluate the final model on every split and write results and pictures, or only train.
    """

    def __init__(
        self,
        config: Experiment,
        *,
        own: bool,
        use_gpu: bool,
        cpus: int,
        started: float,
        command: str,
        measure: bool = True,
    ):
        self.config, self.use_gpu, self.cpus = config, use_gpu, cpus
        self.mailbox = mailbox.create(own)
        payload = {
            "job": config.job,
            "preset": config.preset,
            "config": flatten(config),
            "started": started,
            "command": command,
            "mailbox": self.mailbox,
            "threads": cpus,
            "measure": measure,
        }
        trainer = (lean.OwnTrainer if own else lean.Trainer)(
            worker,
            train_loop_config=payload,
            scaling_config=ScalingConfig(
                num_workers=config.workers
                if isinstance(config.workers, int)
                else (config.min_workers, config.max_workers),
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus},
            ),
            torch_config=_torch_config(config, own),
            mailbox=self.mailbox,
            global_batch_size=config.global_batch_size,
            run_config=RunConfig(
                name=f"{config.name}-{time.time_ns()}",
                storage_path=str(cluster.scratch()),
                failure_config=FailureConfig(
                    max_failures=config.ray.max_failures, controller_failure_limit=3
                ),
            ),
        )
        # How long each of four attempts waits for its nodes.
        more = None if own else capacity.growth()
        patience = more.seconds if more else capacity.JOIN_SECONDS
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(patience))
        self._outcome: BaseException | None = None
        self._failure: dict[str, Any] | None = None
        self._ended = threading.Event()

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                self._outcome = error
            finally:
                self._ended.set()

        # Not in the main thread, where Ray would take Ctrl-C for itself and abort without a checkpoint.
        threading.Thread(target=fit, daemon=True).start()

    def run(self, stop: threading.Event) -> Iterator[list[Event]]:
        """What the workers tell, until they have ended. Once `stop` is set, they are asked to save and end."""
        heard = time.monotonic()
        try:
            while not self._ended.wait(LOOK_SECONDS):
                if stop.is_set():
                    self.mailbox.halt()
                    if self._waiting():  # for whom nobody listens
                        raise Stopped(
                            "Stopped while waiting for nodes; what was trained is kept, and the same command goes on."
                        )
                events = self._take()
                if events:
                    heard = time.monotonic()
                elif time.monotonic() - heard > SILENCE_SECONDS:
                    heard = time.monotonic()
                    events = self._waiting()
                yield events
            yield self._take()
        finally:
            self.mailbox.close()

    def _take(self) -> list[Event]:
        events, self._failure = self.mailbox.take()
        return [from_dict(event) for event in events]

    def _waiting(self) -> list[Event]:
        """Why nothing is heard of the workers, if it is for want of room."""
        have = capacity.room(self.cpus, self.use_gpu)
        if have >= self.config.min_workers:
            return []
        what = f"{self.cpus} CPU cores" + (" and a GPU" if self.use_gpu else "")
        text = f"Waiting for nodes: --workers {self.config.workers} of {what} each, and there is room for {have} now."
        return [Message(text)]

    def check(self) -> None:
        """Raise what made the workers end, if it wasn't success."""
        if self._failure is not None:
            raise _rebuilt(self._failure)
        if (
            isinstance(self._outcome, ControllerError)
            and capacity.room(self.cpus, self.use_gpu) < self.config.min_workers
        ):
            raise RunFailed(
                f"The cluster had no room for --workers {self.config.workers} of {self.cpus} CPU cores each"
                f"{' with a GPU' if self.use_gpu else ''} ({last_line(self._outcome)}). The same command goes on from "
                "the last checkpoint, with fewer --workers too."
            ) from self._outcome
        if isinstance(self._outcome, ControllerError):
            raise RunFailed(
                f"The workers could not be started ({last_line(self._outcome)}). The same command goes on from "
                "the last checkpoint."
            ) from self._outcome
        if self._outcome is not None:
            raise RunFailed(
                f"The workers failed more than --ray.max-failures {self.config.ray.max_failures} times, at last with: "
                f"{last_line(self._outcome)}. The same command goes on from the last checkpoint."
            ) from self._outcome


def worker(payload: dict[str, Any]) -> None:
    """Ray Train's training function: rebuilds the experiment and runs this worker's part of it."""
    garbage.relax()
    import torch

    from crayon.training import worker as session
    from crayon.training.collectives import Group

    mail: Mailbox = payload["mailbox"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if mail.failed():
        return  # A restart can't mend what failed.
    torch.set_num_threads(payload["threads"])  # of which `Threads` may use fewer
    config = override(get(payload["job"], payload["preset"]), payload["config"])
    halted, asked_to_leave = threading.Event(), threading.Event()

    def listen() -> None:
        wish = mail.until_asked()
        (halted if wish == "halt" else asked_to_leave if wish else threading.Event()).set()

    def should_stop() -> bool:
        return halted.is_set() or asked_to_leave.is_set() or elastic.preempted()

    threading.Thread(target=listen, daemon=True).start()
    run = RunFolder(config.storage, config.name)
    group = Group(rank, world_size, get_device())
    try:
        if rank == 0:
            run.pull()  # This may be another machine than the driver's, or than that of an attempt before.
            if run.read_json("config.json") is None:
                raise BadInput(
                    f"--storage {run.storage} is not shared between the machines of this cluster; use a shared folder "
                    "or an s3:// or gs:// URI."
                )
        session.train(
            config,
            run,
            group=group,
            emit=lambda event: mail.put(to_dict(event)),
            report_metrics=ray.train.report,
            should_stop=should_stop,
            started=payload["started"],
            command=payload["command"],
            measure=payload["measure"],
        )
    except Stopped as stopped:
        if halted.is_set():
            mail.put(to_dict(Failed(str(stopped), stopped.exit_code)))
            return
        group.barrier()  # Rank 0 may still be writing: the first to leave ends them all.
        if rank == 0:
            why = "there is room for more workers" if asked_to_leave.is_set() else "a node is about to go"
            mail.put(to_dict(Message(f"A checkpoint is written, and the workers start anew: {why}.")))
        raise elastic.Left from None
    except CrayonError as error:
        mail.put(to_dict(Failed(str(error), error.exit_code)))
        if not error.on_every_worker:
            raise  # The others wait in a collective operation: Ray must end them.


def _torch_config(config: Experiment, own: bool) -> TorchConfig:
    """How the workers of a run meet: not at all when there is one, on loopback on our own machine."""
    if config.max_workers == 1:
        return lean.Alone()
    return loopback.Loopback() if own else interface.OwnInterface()


def _rebuilt(failure: dict[str, Any]) -> CrayonError:
    error: CrayonError = RunFailed(failure["text"])
    error.exit_code = failure["exit_code"]
    return error
