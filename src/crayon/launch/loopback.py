"""torch's process group for several workers on this machine, reached from this machine alone.

The store at which the workers meet (TCPStore) listens on all interfaces and asks nobody who they are. It has no setting
for that, but takes a socket that listens already.
"""

from __future__ import annotations

import importlib
import socket
from typing import Any

from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class Loopback(TorchConfig):
    """For a cluster that is this machine."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_meet_on_loopback)
        super().on_start(worker_group, backend_config)


def _meet_on_loopback() -> None:
    """In a worker: every store that `torch.distributed` makes from here on listens on loopback."""
    from torch.distributed import TCPStore

    # As an attribute of torch.distributed, this name is a function.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")

    def store(
        host_name: str, port: int, world_size: Any = None, is_master: bool = False, **more: Any
    ) -> TCPStore:
        if is_master and more.get("master_listen_fd") is None:
            listener = socket.create_server(("127.0.0.1", port), backlog=128)
            more["master_listen_fd"] = listener.detach()  # the store closes it
        return TCPStore(host_name, port, world_size, is_master, **more)

    rendezvous.TCPStore = store
