"""Which network interface the workers of a run talk over: the one that Ray reaches their node by.

Left alone, gloo takes the address that the host's own name leads to. On Debian and Ubuntu that is 127.0.1.1 unless
somebody changed it, and workers on two hosts then never find each other.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"


class OwnInterface(TorchConfig):
    """Ray's TorchConfig, with each worker's interface chosen before the process group is made. What the user has set
    in GLOO_SOCKET_IFNAME stays."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Chosen


class _Chosen(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose)
        super().on_start(worker_group, backend_config)


def _choose() -> None:
    """In a worker."""
    found = named(ray.util.get_node_ip_address())
    if found:
        os.environ.setdefault(VARIABLE, found)


def named(address: str) -> str | None:
    """This machine's interface that has the address; None if there is none, as behind a translated address."""
    for name, addresses in psutil.net_if_addrs().items():
        if address in (entry.address.partition("%")[0] for entry in addresses):
            return name
    return None
