"""The process group of a run's workers: how they find each other, and on which network interface they talk."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig

from crayon.errors import Stopped
from crayon.report.events import Emit, Event, Progress

INTERFACE = "GLOO_SOCKET_IFNAME"
TIMEOUT = timedelta(minutes=30)
"""As Ray Train and torch have it for each collective operation."""
WAIT_SECONDS = 0.5
"""How often a worker looks whether the others are ready; at first more often."""
TELL_SECONDS = 5.0
"""After which it is told that they are waited for."""
_store: Any = None
"""In worker 0: the store that listens, until the process group takes it."""
_meeting: Meeting | None = None
"""Where the workers meet; none where there is one."""


class ProcessGroup(TorchConfig):
    """torch.distributed's default group of all workers; none where there is one, who has nobody to talk to.

    It is formed by the workers themselves, once each has its images (`meeting`): the operations of a group give up
    after half an hour, and one node may have to decode for longer.

    Its store (TCPStore) asks nobody who they are, so it listens on the one address by which Ray reaches the first
    worker's node: on a cluster of our own that is 127.0.0.1.

    gloo left alone takes the address that the host's own name leads to. On Debian and Ubuntu that is 127.0.1.1 unless
    somebody changed it, and workers on two hosts then never find each other. So it is told the interface of the node's
    address; what the user has set in GLOO_SOCKET_IFNAME stays.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroupBackend


class _ProcessGroupBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        world_size = len(worker_group)
        if world_size == 1:
            return
        kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        place = worker_group.execute_single(0, _listen)
        joining = [
            worker_group.execute_single_async(rank, _meet, kind, rank, world_size, *place)
            for rank in range(world_size)
        ]
        ray.get(joining)


def _listen() -> tuple[str, int]:
    """In worker 0: start the store. Returns where it listens."""
    from torch.distributed import TCPStore

    global _store
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # An address that none of this machine's interfaces has is translated by the network: only then is it all of them.
    listener = socket.create_server((host if interface_of(host) else "", 0), family=family, backlog=128)
    port = listener.getsockname()[1]
    # The store closes the socket. It can't wait for workers that are told its port only afterwards.
    _store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return host, port


def _meet(kind: str, rank: int, world_size: int, host: str, port: int) -> None:
    """In each worker: be told where the others are."""
    global _meeting, _store
    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault(INTERFACE, interface)
    store, _store = _store, None
    if rank != 0:
        from torch.distributed import TCPStore

        store = TCPStore(host, port, is_master=False, timeout=TIMEOUT)
    _meeting = Meeting(store, kind, rank, world_size)


def meeting() -> Meeting | None:
    """Of this worker with the others; None where there are none."""
    return _meeting


class Meeting:
    """The workers before they are a process group: each may take as long as it needs, and says how far it is."""

    def __init__(self, store: Any, kind: str, rank: int, world_size: int):
        self._store, self._kind, self.rank, self.world_size = store, kind, rank, world_size
        self._said = -math.inf

    def note(self, key: str, text: str) -> None:
        """Leave a text, of less than 8 MB, for the others."""
        self._store.set(key, text)

    def noted(self, key: str, should_stop: Callable[[], bool]) -> str:
        """What a worker leaves under that key, as soon as it does. Raises Stopped."""
        for _ in _waits(should_stop):
            if self._store.check([key]):
                break
        return self._store.get(key).decode()

    def say(self, event: Event) -> None:
        """An `Emit` for a worker other than the first."""
        now = time.monotonic()
        if isinstance(event, Progress) and now - self._said > WAIT_SECONDS:
            self._said = now
            self._store.set(f"progress/{self.rank}", json.dumps([event.what, event.done, event.total]))

    def form(self, emit: Emit, should_stop: Callable[[], bool]) -> None:
        """Wait for the others, and form the group. emit: told by the first worker how far the last one is. Raises
        Stopped."""
        import torch.distributed as dist

        self.note(f"ready/{self.rank}", "")
        begun, shown = time.monotonic(), None
        for _ in _waits(should_stop):
            away = [r for r in range(self.world_size) if not self._store.check([f"ready/{r}"])]
            if not away:
                break
            if self.rank == 0 and time.monotonic() - begun > TELL_SECONDS:
                last = self._last(away)
                if shown is not None and shown.what != last.what:
                    emit(dataclasses.replace(shown, done=shown.total))
                if shown != last:
                    emit(last)
                shown = last
        if shown is not None:
            emit(dataclasses.replace(shown, done=shown.total))
        dist.init_process_group(
            self._kind, store=self._store, rank=self.rank, world_size=self.world_size, timeout=TIMEOUT
        )

    def _last(self, ranks: list[int]) -> Progress:
        """How far the one of these is that has most to do."""
        keys = [key for rank in ranks if self._store.check([key := f"progress/{rank}"])]
        known = [(*json.loads(self._store.get(key)), key) for key in keys]
        if not known:
            return Progress(f"waiting for {len(ranks)} other worker{'s' if len(ranks) > 1 else ''}", 0, 1)
        what, done, total, key = min(known, key=lambda one: one[1] / max(one[2], 1))
        return Progress(f"{what} (worker {key.rpartition('/')[2]})", done, total)


def _waits(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Looks that become rarer. Raises Stopped."""
    pause = 0.01
    while True:
        yield
        if should_stop():
            raise Stopped("Stopped before training; what was decoded is kept, and the same command goes on.")
        time.sleep(pause)
        pause = min(2 * pause, WAIT_SECONDS)


def interface_of(address: str) -> str | None:
    """This machine's network interface that has the address; None if there is none, as behind a translated address."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in (entry.address.partition("%")[0] for entry in addresses):
            return name
    return None
