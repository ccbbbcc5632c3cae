"""The Ray Train workers of a run: groups of a fixed size, one after the other until the run has ended.

A group that is lost, or leaves since it is to be larger, is followed by another, which resumes the run folder exactly.
So Ray Train's own recovery isn't needed, nor its policies: how many workers there are, and what counts as a failure, is
decided here.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray import train
from ray.train.torch import TorchTrainer

from crayon.config.settings import Experiment
from crayon.errors import CrayonError, RunFailed, Stopped, last_line
from crayon.fast import ray_start
from crayon.launch import capacity, cluster, memory, shared
from crayon.launch.backends import ProcessGroup
from crayon.launch.channel import POLL_SECONDS, Channel
from crayon.launch.train_function import Restart, train_function
from crayon.report.events import Event, Message, Started
from crayon.report.words import clock
from crayon.system.runfolder import CHECKPOINTS, RunFolder

SILENCE_SECONDS = 20.0
"""When nothing was heard of the workers for so long, the driver looks whether there is room for them."""
SETTLE_SECONDS = 8.0
"""How long fewer nodes than wanted are waited for, before an elastic run starts on those there are."""
GROW_SECONDS = 10.0
"""How often a smaller group than wanted is compared with the room there is."""
START_RETRIES = 3
"""How often a group that could not be started is tried again."""
REGISTER_SECONDS = 60.0
"""After which a node kills a worker's process that isn't up, and starts it anew, by Ray's default."""

SIGNS = {
    memory.SIGN: f"A worker was ended since its machine ran out of memory ({memory.LESS} need less)",
    "node .*(died|dead|terminated|preempted)|node failure": "A machine was lost",
}
"""What Ray's message says of a lost worker, and what it means."""
BROKEN = r"gloo|nccl|connection (closed|reset|refused)|broken pipe"
"""What a worker says whose peer is gone."""


class Workers:
    """The Ray Train workers of one run of `config`, whose storage and name must be set; Ray is connected.

    own: whether the cluster is our own and ends with this command.
    measure: whether they evaluate the final model on every split and write results and pictures, or only train.
    """

    def __init__(
        self,
        config: Experiment,
        channel: Channel,
        *,
        own: bool,
        use_gpu: bool,
        cpus: int,
        started: float,
        command: str = "",
        measure: bool = True,
    ):
        self.config, self.channel, self.own, self.use_gpu, self.cpus = config, channel, own, use_gpu, cpus
        self._payload = {
            "config": config,
            "channel": channel,
            "own": own,
            "mark": shared.mark(RunFolder.of(config), own),
            "versions": shared.versions(),
            "threads": cpus,
            "options": {"started": started, "command": command, "measure": measure},
        }
        self._elastic = not isinstance(config.workers, int)
        # An elastic run starts where there is room; the nodes of another may have to be started by a cloud first.
        patience = capacity.JOIN_SECONDS if own or self._elastic else capacity.START_SECONDS
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{patience:.0f}")
        self._outcome: BaseException | None = None
        self._kills = memory.Kills()
        self._ended, self._closed = threading.Event(), threading.Event()
        self._why = ""  # the workers failed at last
        self._workers = 0
        self._tell_after = SILENCE_SECONDS
        self._begun: float | None = None  # when the group's start began; None = it is heard of
        self._looked: float | None = None  # None = not training yet, or asked to leave
        self._leaving: set[str] = set()
        # Not in the main thread, where Ray would take Ctrl-C for itself and abort without a checkpoint.
        threading.Thread(target=self._train, daemon=True).start()

    def run(self, should_stop: Callable[[], bool]) -> Iterator[list[Event]]:
        """What the workers tell, until they have ended. Once `should_stop()`, they are asked to save and end."""
        heard = time.monotonic()
        try:
            while not self._ended.wait(POLL_SECONDS):
                if should_stop():
                    self.channel.request("stop")
                    if self._waiting():  # for whom nobody listens
                        raise Stopped(
                            "Stopped while waiting for nodes; what was trained is kept, and the same command goes on."
                        )
                events = self.channel.take()
                if events:
                    heard, self._begun = time.monotonic(), None
                elif time.monotonic() - heard > SILENCE_SECONDS:
                    heard = time.monotonic()
                    events = self._waiting() or self._starting()
                if any(isinstance(event, Started) for event in events):
                    self._looked = time.monotonic()
                self._grow()
                yield events
            yield self.channel.take()
        finally:
            self._closed.set()

    def _train(self) -> None:
        try:
            self._train_groups()
        except BaseException as error:
            self._outcome = error
        finally:
            self._ended.set()

    def _train_groups(self) -> None:
        """Train with one group of workers after the other. Raises what ended the last one, if it wasn't success."""
        failures = unstarted = 0
        saved, room = self._newest_checkpoint(), self._room()
        most = self.config.max_workers
        while (number := self._choose_number(most)) is not None:
            self._workers, self._looked, self._begun = number, None, time.monotonic()
            try:
                self._trainer(number).fit()
                return
            except train.ControllerError:
                before, room = room, self._room()
                unstarted = 1 if room > before else unstarted + 1  # nodes are still coming
                if unstarted > START_RETRIES or self._closed.is_set():
                    raise
                most = max(self.config.min_workers, number - 1)  # the nodes hold fewer than it seems
                continue
            except train.TrainingFailedError as error:
                failed = error.worker_failures if isinstance(error, train.WorkerGroupError) else {}
                for why in failed.values():
                    if isinstance(why, CrayonError):
                        raise why from None  # which new workers couldn't mend
                if leaving := [why for why in failed.values() if isinstance(why, Restart)]:
                    self._leaving.update(node for restart in leaving for node in restart.nodes)
                    self.channel.request("")
                else:
                    self._why = what_happened(failed, self._kills.any_new())
                    counts = not was_preempted(error)
                    old, saved = saved, self._newest_checkpoint()
                    failures = (failures if saved == old else 0) + counts
                    if failures > (allowed := self.config.ray.max_failures):
                        raise
                    count = f"failure {failures} of {allowed}" if counts else "no failure"
                    self.channel.put(Message(f"{self._why}; the workers start anew ({count})."))
            unstarted, most = 0, self.config.max_workers

    def _newest_checkpoint(self) -> str:
        """Its name; empty where there is none, or it can't be seen from here."""
        run = RunFolder.of(self.config)
        with contextlib.suppress(OSError):
            names = run.stored() if run.store else [str(path) for path in run.path.glob(f"{CHECKPOINTS}/*")]
            return max((name for name in names if f"{CHECKPOINTS}/step-" in name), default="")
        return ""

    def _choose_number(self, most: int) -> int | None:
        """How many workers to start: all that are wanted, or, in an elastic run, those for which there has been room
        for a while. Waits for it. None once nobody listens any more."""
        begun = time.monotonic()
        while not self._closed.is_set():
            number = min(most, self._free()) if self._elastic else self.config.max_workers
            settled = time.monotonic() - begun >= SETTLE_SECONDS
            if number == self.config.max_workers or (settled and number >= self.config.min_workers):
                return number
            self._closed.wait(POLL_SECONDS)
        return None

    def _grow(self) -> None:
        """Ask the workers to save and leave, once there is room for more of them."""
        now = time.monotonic()
        if not self._elastic or self._looked is None or now - self._looked < GROW_SECONDS:
            return
        self._looked = now
        if self._workers < self.config.max_workers and self._free(self._workers) > 0:
            self._looked = None
            self.channel.request("restart")

    def _free(self, running: int = 0) -> int:
        """How many workers could be started now, beside those that run."""
        room = capacity.total_slots(self.cpus, self.use_gpu, without=self._leaving)
        return min(room - running, capacity.free_slots(self.cpus, self.use_gpu))

    def _trainer(self, number: int) -> TorchTrainer:
        once: Any = train.FailureConfig(max_failures=0)
        once.controller_failure_limit = once.max_preemption_failures = 0  # the latter from Ray 2.60 on
        return (ray_start.trainer_class() if self.own else TorchTrainer)(
            train_function,
            train_loop_config=self._payload,
            scaling_config=train.ScalingConfig(
                num_workers=number, use_gpu=self.use_gpu, resources_per_worker={"CPU": self.cpus}
            ),
            torch_config=ProcessGroup(),
            run_config=train.RunConfig(
                name=f"{self.config.name}-{time.time_ns()}",
                storage_path=str(cluster.scratch()),
                failure_config=once,
            ),
        )

    def _room(self) -> int:
        return capacity.total_slots(self.cpus, self.use_gpu)

    def _wanted(self) -> str:
        gpu = " and a GPU" if self.use_gpu else ""
        return f"--workers {self.config.workers} of {self.cpus} CPU cores{gpu} each"

    def _waiting(self) -> list[Event]:
        """Why nothing is heard of the workers, if it is for want of room."""
        if (room := self._room()) >= self.config.min_workers:
            return []
        return [Message(f"Waiting for nodes: {self._wanted()}, and there is room for {room} now.")]

    def _starting(self) -> list[Event]:
        """What takes so long where there is room; told more and more rarely."""
        waited = time.monotonic() - self._begun if self._begun is not None else 0.0
        if waited < self._tell_after:
            return []
        self._tell_after = 2 * waited
        text = f"Waiting for the workers' processes, which have been starting for {clock(waited)}"
        if not self.own:  # a group that starts has taken its room already
            text += (
                f"; beside all that runs there the cluster has room for {self._free()} more, and after `uv run` each "
                "node first installs what the run needs"
            )
            if waited > REGISTER_SECONDS:
                minute = (
                    "more than a minute of it needs RAY_worker_register_timeout_seconds=1800 where Ray starts"
                )
                text += f" ({minute})"
        return [Message(f"{text}.")]

    def check(self) -> None:
        """Raise what made the workers end, if it wasn't success."""
        if self._outcome is None:
            return
        if isinstance(self._outcome, CrayonError):
            raise self._outcome
        why, goes_on = last_line(self._outcome), "The same command goes on from the last checkpoint"
        if not isinstance(self._outcome, train.ControllerError):
            why = self._why if memory.LESS in self._why else why
            text = (
                f"The workers failed more than --ray.max-failures {self.config.ray.max_failures} times in a row, at "
                f"last with: {why}. {goes_on}."
            )
        elif self._room() < self.config.min_workers:
            text = (
                f"The cluster had no room for {self._wanted()} ({why}). {goes_on}, with fewer --workers too."
            )
        else:
            text = f"The workers could not be started ({why}). {goes_on}."
        failed = RunFailed(text)
        # Else it may well be the settings.
        failed.of_machine = isinstance(self._outcome, train.ControllerError)
        raise failed from self._outcome


def was_preempted(error: train.TrainingFailedError) -> bool:
    """Whether a cloud took a node away, by Ray's word."""
    failed = getattr(error, "worker_failures", {}).values()
    causes = [getattr(e, "health_check_failure", e) for e in failed]
    return hasattr(error, "preemption_info") or any(getattr(cause, "preempted", False) for cause in causes)


def what_happened(failed: Mapping[int, BaseException], killed: bool = False) -> str:
    """Why workers failed, in a few words. Where one is lost, its peers fail with broken connections: that is not told.

    failed: by rank, as Ray Train tells it; {} = their nodes were taken away. killed: whether the kernel has killed a
    process of this machine for want of memory meanwhile.
    """
    if not failed:
        return "A machine was taken away"
    lost = [str(error) for error in failed.values() if hasattr(error, "health_check_failure")]
    for sign, text in SIGNS.items():
        if any(re.search(sign, error, re.IGNORECASE) for error in lost):
            return text
    last = last_line(next(iter(failed.values())))
    if lost or re.search(BROKEN, last, re.IGNORECASE):
        return "A worker was lost" + f", and {memory.KILLED} ({memory.LESS} need less)" * killed
    return f"A worker failed with: {last}"
