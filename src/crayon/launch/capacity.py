"""What the connected Ray cluster holds, and what its autoscaler could add."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from crayon.config.settings import Experiment
from crayon.errors import BadInput

JOIN_SECONDS = 120.0
"""How long a node may take to join that is there already."""
START_SECONDS = 900.0
"""How long one may take that a cloud must start, and may have no machine to spare for a while."""


@dataclass(frozen=True)
class Growth:
    """The nodes that an autoscaler may start.

    kinds: (how many at most, resources); None = unknown, as on Kubernetes, where the autoscaler is in a container of
        its own.
    seconds: how long a node may take to come.
    """

    kinds: list[tuple[int, dict[str, float]]] | None
    seconds: float = START_SECONDS

    def most(self, resource: str) -> float:
        if self.kinds is None:
            return math.inf
        return sum(count * resources.get(resource, 0) for count, resources in self.kinds)


def use_gpu(config: Experiment) -> bool:
    """Whether each worker gets a GPU. Raises BadInput where `--device cuda` can't be had, now or from an autoscaler."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.device == "cpu":
        return False
    if gpus < config.min_workers and (more := growth()):
        if config.device == "auto" and more.kinds is None and gpus == 0:
            raise BadInput(
                "The cluster has no GPU yet, and its autoscaler doesn't tell whether it could start one; say "
                "--device cuda or --device cpu."
            )
        gpus = max(gpus, int(min(more.most("GPU"), 10**6)))
    if gpus == 0:
        if config.device == "auto":
            return False
        raise BadInput("--device cuda: the Ray cluster has no GPU; use --device cpu or auto.")
    if config.min_workers > gpus:
        raise BadInput(
            f"--workers {config.workers} is more than the cluster's {gpus} GPUs; use fewer workers."
        )
    return True


def cpus_per_worker(config: Experiment, gpu: bool) -> int:
    """CPU cores of each worker. Raises BadInput where the cluster has too few, and no autoscaler to add them."""
    import ray

    cores = int(ray.cluster_resources().get("CPU", 0))
    wanted = config.ray.cpus_per_worker
    if wanted is None:
        share = 1 if gpu else max(1, cores // config.max_workers)
        # The nodes may hold fewer workers than their cores all together would.
        wanted = next((n for n in range(share, 1, -1) if room(n, gpu) >= config.max_workers), 1)
    if room(wanted, gpu) >= config.min_workers:
        return wanted
    more = growth()
    if more is None or (more.kinds is not None and _room(more.kinds, wanted, gpu) < config.min_workers):
        could = "" if more is None else ", and more than its autoscaler may start"
        raise BadInput(
            f"--workers {config.workers} with {wanted} CPU cores each is more than the {cores} cores of the "
            f"cluster{could}; use fewer workers or a smaller --ray.cpus-per-worker."
        )
    return wanted


def room(cpus: int, gpu: bool) -> int:
    """How many workers with `cpus` cores, and a GPU each, the nodes that are alive could hold, were they free."""
    import ray

    return _room([(1, node["Resources"]) for node in ray.nodes() if node["Alive"]], cpus, gpu)


def _room(kinds: list[tuple[int, dict[str, float]]], cpus: int, gpu: bool) -> int:
    return sum(
        count * int(min(r.get("CPU", 0) // cpus, r.get("GPU", 0) if gpu else math.inf)) for count, r in kinds
    )


def growth() -> Growth | None:
    """What the cluster's autoscaler may start; None where there is none.

    Ray keeps it nowhere that a driver could ask. The autoscaler runs beside the head's other processes, as drivers of
    submitted jobs do, and has its file on its command line. Where there is no such process, what it told the head says
    whether there is one at all.
    """
    import ray
    import yaml

    address = ray.get_runtime_context().gcs_address
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"--gcs-address={address}" in words and any(w.endswith("/monitor.py") for w in words):
            paths = [w.partition("=")[2] for w in words if w.startswith("--autoscaling-config=")]
            if not paths or not paths[0]:
                return None
            try:
                return growth_of(yaml.safe_load(Path(os.path.expanduser(paths[0])).read_text()))
            except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
                return Growth(None)
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._raylet.GcsClient(address=address).get_cluster_status(timeout_s=10))
    return Growth(None) if reply.autoscaling_state.autoscaler_state_version else None


def growth_of(file: dict) -> Growth:
    """From a file as `ray up` takes it."""
    most = int(file.get("max_workers", 0))
    head = file.get("head_node_type")
    kinds = [
        (min(most, int(kind.get("max_workers", 0))), kind.get("resources") or {})
        for name, kind in file.get("available_node_types", {}).items()
        if name != head
    ]
    listed = (file.get("provider") or {}).get("type") == "local"  # onprem.yaml: these hosts, and no others
    return Growth([kind for kind in kinds if kind[0]], JOIN_SECONDS if listed else START_SECONDS)
