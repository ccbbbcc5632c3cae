"""Finding the processes of a running command, here or in a cluster, to break them on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import psutil

from crayon.ops.nodes import on_nodes

WORKER = "RayTrainWorker"
GONE_SECONDS = 60.0
"""How long Ray may take to notice that a node is lost."""


class OwnProcesses:
    """Of a command that starts a cluster of its own: its children."""

    def workers(self, command: int) -> list[Any]:
        """The Ray Train workers of a command, given by its process's number, that live now."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(command).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if WORKER in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child)
        return sorted(found, key=lambda p: p.pid)

    def signal(self, worker: Any, number: int) -> bool:
        """Send a signal to one of them; whether it was there to get it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)
            return True
        return False

    def end_node(self, worker: Any) -> bool:
        """kill -9 of all that Ray runs on the machine of a worker, unless it is this machine; whether it is gone."""
        return False


class ClusterProcesses(OwnProcesses):
    """Of a command that joins the cluster to which this process is connected, too."""

    def workers(self, command: int) -> list[Any]:
        """(node, pid) of each, by the cluster's dashboard."""
        from ray.util.state import list_actors, list_jobs

        jobs = {job.job_id for job in list_jobs() if job.driver_info and job.driver_info.pid == str(command)}
        alive: list[tuple[str, str, Any]] = [("class_name", "=", WORKER), ("state", "=", "ALIVE")]
        return sorted((a.node_id, a.pid) for a in list_actors(filters=alive) if a.job_id in jobs)

    def signal(self, worker: Any, number: int) -> bool:
        node, pid = worker
        return on_nodes(_send, {node: (pid, number)}, 30)[node] is True

    def end_node(self, worker: Any) -> bool:
        import ray

        node, _ = worker
        if node == ray.get_runtime_context().get_node_id():
            return False  # The driver's own machine: that would be another experiment.
        on_nodes(_end_all, {node: ()}, 30)
        deadline = time.monotonic() + GONE_SECONDS
        while time.monotonic() < deadline:
            if not any(found["NodeID"] == node and found["Alive"] for found in ray.nodes()):
                return True
            time.sleep(0.2)
        return False


def _send(pid: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _end_all() -> None:
    """On a node: its raylet and all that it started, this process the last of them."""
    raylet = psutil.Process(os.getppid())
    mine = psutil.Process()
    for process in [raylet, *(p for p in raylet.children(recursive=True) if p != mine), mine]:
        _send(process.pid, signal.SIGKILL)
