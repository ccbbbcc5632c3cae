"""The process group of a run's workers: how they find each other, and on which network interface they talk."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
TIMEOUT = timedelta(minutes=30)
"""As Ray Train and torch have it for each collective operation."""
_store: Any = None
"""In worker 0: the store that listens, until the process group takes it."""


class ProcessGroup(TorchConfig):
    """torch.distributed's default group of all workers; none where there is one, who has nobody to talk to.

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
            worker_group.execute_single_async(rank, _join, kind, rank, world_size, *place)
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


def _join(kind: str, rank: int, world_size: int, host: str, port: int) -> None:
    """In each worker: form the group."""
    import torch.distributed as dist

    global _store
    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault(INTERFACE, interface)
    store, _store = _store, None
    if rank != 0:
        store = dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)
    dist.init_process_group(kind, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)


def interface_of(address: str) -> str | None:
    """This machine's network interface that has the address; None if there is none, as behind a translated address."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in (entry.address.partition("%")[0] for entry in addresses):
            return name
    return None
