"""Ray clusters of several nodes on this machine, in a process of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from helpers import kill_with_family

_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
nodes = iter({caches})
store = dict(object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus={head}, include_dashboard=False, **store))
print(cluster.address, flush=True)
def add():
    node = cluster.add_node(num_cpus=1, env_vars=next(nodes, {{}}), **store)
    print(node.all_processes["raylet"][0].process.pid, node.node_id, flush=True)
for _ in range({count}):
    add()
for line in sys.stdin:
    add()
cluster.shutdown()
"""
_APART = """
import subprocess, sys
from ray.scripts.scripts import cli
address, private = sys.argv[1:]
if private:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", private], check=True)
cli(["start", f"--address={address}", "--num-cpus=1", f"--object-store-memory={80 * 2**20}", "--block"])
"""


class Nodes:
    """A head, on which the driver runs, and `count` nodes with a core each, for a `with` statement.

    head: cores of the head.
    memory_gib: Ray ends workers once this machine's memory in use has grown by so much.
    caches: a folder for each node's cache; without, all have this process's.
    """

    def __init__(
        self, count: int, memory_gib: float | None = None, caches: Sequence[Path] = (), head: int = 0
    ):
        self._count, self._head = count, head
        self._caches = [{"CRAYON_CACHE": str(folder)} for folder in caches]
        # As on our own cluster: at Ray's niceness of 15, one busy program beside the test keeps workers from starting.
        self._ray = {"RAY_worker_niceness": "0"}
        if memory_gib is not None:
            memory = psutil.virtual_memory()
            share = 1 - memory.available / memory.total + memory_gib * 2**30 / memory.total
            self._ray |= {
                "RAY_memory_usage_threshold": f"{share:.4f}",
                "RAY_memory_monitor_refresh_ms": "100",
            }

    def __enter__(self) -> Nodes:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER.format(count=self._count, caches=self._caches, head=self._head)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._ray,
        )
        self.address = self._process.stdout.readline().strip()
        self.raylets: list[psutil.Process] = []
        self.ids: list[str] = []
        for _ in range(self._count):
            self._read()
        # Under `uv run` an environment would be built for the workers: slow, and not what these tests are about.
        self.env = {"RAY_ADDRESS": self.address, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        return self

    def _read(self) -> None:
        pid, node = self._process.stdout.readline().split()
        self.raylets.append(psutil.Process(int(pid)))
        self.ids.append(node)

    def add(self) -> None:
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self._read()

    @contextlib.contextmanager
    def apart(self, private: Path) -> Iterator[bool]:
        """One more node with a core, which has a disk of its own at `private`; False where none can be made."""
        process = subprocess.Popen(
            ["unshare", "-m", sys.executable, "-c", _APART, self.address, str(private)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | self._ray | {"RAY_ADDRESS": ""},
        )
        try:
            while (line := process.stdout.readline()) and "Ray runtime started" not in line:
                pass
            yield bool(line)  # else this user may not have a mount namespace
        finally:
            if process.poll() is None:
                kill_with_family(process)

    def kill(self, number: int) -> None:
        """kill -9 of a node's raylet and of all that it started."""
        victims = [self.raylets[number], *self.raylets[number].children(recursive=True)]
        for victim in victims:
            victim.kill()

    def workers(self, number: int) -> list[psutil.Process]:
        """The Ray Train workers on a node."""
        found = self.raylets[number].children(recursive=True)
        return [p for p in found if "RayTrainWorker" in " ".join(p.cmdline())]

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            kill_with_family(self._process)
        self._process.stdout.close()
