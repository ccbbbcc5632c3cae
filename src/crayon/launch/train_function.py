"""Ray Train's training function: what runs in each worker of a run."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray.train
from ray.train.torch import get_device

from crayon.errors import CrayonError, Stopped
from crayon.fast import garbage
from crayon.launch import shared
from crayon.launch.channel import Channel
from crayon.report.events import Message, ignore
from crayon.system.runfolder import RunFolder

PREEMPTION_POLL_SECONDS = 1.0


class Restart(Exception):
    """The workers have written a checkpoint and left, to be started anew where there is room. No failure.

    nodes: ids of those that are about to be taken away.
    """

    def __init__(self, nodes: tuple[str, ...] = ()):
        super().__init__(nodes)
        self.nodes = nodes


class Requests:
    """What asks this worker to save and leave, watched in the background so that a step costs nothing more."""

    stop = False
    """The driver wants the run to end."""
    restart = False
    """The driver wants the workers to be started anew, or one of their nodes is about to be taken away."""
    nodes: tuple[str, ...] = ()
    """Ids of such nodes."""

    def __init__(self, channel: Channel, own: bool):
        threading.Thread(target=self._listen, args=(channel,), daemon=True).start()
        if not own and hasattr(ray.train, "get_preemption_info"):  # from 2.60 on
            threading.Thread(target=self._watch_nodes, daemon=True).start()

    def _listen(self, channel: Channel) -> None:
        match channel.wait():
            case "stop":
                self.stop = True
            case "restart":
                self.restart = True

    def _watch_nodes(self) -> None:
        """All workers meet in each call, one of their threads each: nothing else in them may call into Ray Train where
        it makes them meet, as `ray.train.report` does."""
        with contextlib.suppress(Exception):  # the workers are ending
            while (info := ray.train.get_preemption_info()) is None:
                time.sleep(PREEMPTION_POLL_SECONDS)
            self.nodes = tuple(info.preempted_node_ids)
            self.restart = True

    def any(self) -> bool:
        return self.stop or self.restart


def train_function(payload: dict[str, Any]) -> None:
    """This worker's part of the run. Raises Restart where it is to be started anew, CrayonError where a new worker
    couldn't go on either."""
    garbage.relax()
    import torch

    from crayon.launch.backends import meeting
    from crayon.launch.fill import fill
    from crayon.training import worker
    from crayon.training.collectives import Group

    channel: Channel = payload["channel"]
    context = ray.train.get_context()
    torch.set_num_threads(payload["threads"])  # of which `Threads` may use fewer
    config = payload["config"]
    requests = Requests(channel, payload["own"])
    run = RunFolder.of(config)
    group = Group(context.get_world_rank(), context.get_world_size(), get_device())
    formed = False
    try:
        if (text := shared.compare(payload["versions"])) and context.get_local_rank() == 0:
            channel.put(Message(text, warning=True))
        shared.check(run, payload["mark"])
        if group.rank == 0:
            run.pull()  # This may be another machine than the driver's, or than that of an attempt before.
        splits, others = None, meeting()
        if others is not None:
            tell = channel.put if group.rank == 0 else others.say
            fill(config, others, payload["threads"], tell, lambda: requests.stop)
            splits = worker.load_data(config, tell)
            others.form(channel.put if group.rank == 0 else ignore, lambda: requests.stop)
            formed = True
        worker.run_worker(
            config,
            run,
            group=group,
            emit=channel.put,
            should_stop=requests.any,
            splits=splits,
            **payload["options"],
        )
    except CrayonError as error:
        if (
            error.on_every_worker and formed
        ):  # Of the others, some wait in a collective operation: Ray must end them.
            group.barrier()  # Rank 0 may still be writing: the first to leave ends them all.
        if not isinstance(error, Stopped) or requests.stop:
            raise
        if group.rank == 0:
            why = "a node is about to go" if requests.nodes else "there is room for more workers"
            channel.put(Message(f"A checkpoint is written, and the workers start anew: {why}."))
        raise Restart(requests.nodes) from None
