"""What the connected Ray cluster has room for."""

from __future__ import annotations

import math
from collections.abc import Collection

from crayon.config.settings import Experiment
from crayon.errors import BadInput
from crayon.launch import cluster

JOIN_SECONDS = 120.0
"""How long a group of workers may take to start on nodes that are there."""
START_SECONDS = 300.0
"""How long where a cloud may have to start nodes first. It is tried a few times more (see `workers.START_RETRIES`)."""


def use_gpu(config: Experiment) -> bool:
    """Whether each worker gets a GPU. Raises BadInput where our own cluster has too few for `--device cuda`.

    A cluster that was joined may have an autoscaler: what is missing there is waited for.
    """
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.device == "cpu" or (config.device == "auto" and gpus == 0):
        return False
    if gpus >= config.min_workers or cluster.joins():
        return True
    if gpus == 0:
        raise BadInput("--device cuda: the Ray cluster has no GPU; use --device cpu or auto.")
    raise BadInput(f"--workers {config.workers} is more than the cluster's {gpus} GPUs; use fewer workers.")


def cpus_per_worker(config: Experiment, gpu: bool) -> int:
    """CPU cores of each worker. Raises BadInput where our own cluster has too few; one that was joined may grow."""
    import ray

    resources = ray.cluster_resources()
    cores = int(resources.get("CPU", 0))
    wanted = config.ray.cpus_per_worker
    if wanted is None:
        # Beside a GPU that isn't ours another run's worker may want its share of the cores.
        sharers = max(config.max_workers, int(resources.get("GPU", 0)) if gpu else 0)
        share = max(1, cores // sharers)
        # The nodes may hold fewer workers than their cores all together would.
        wanted = next((n for n in range(share, 1, -1) if total_slots(n, gpu) >= config.max_workers), 1)
    if total_slots(wanted, gpu) < config.min_workers and not cluster.joins():
        raise BadInput(
            f"--workers {config.workers} with {wanted} CPU cores each is more than the {cores} cores of the "
            "cluster; use fewer workers or a smaller --ray.cpus-per-worker."
        )
    return wanted


def total_slots(cpus: int, gpu: float, without: Collection[str] = ()) -> int:
    """How many workers with `cpus` cores, and a GPU or a share of one each, the nodes that are alive could hold, were
    they free.

    without: ids of nodes that don't count.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
    return sum(_fit(node["Resources"], cpus, gpu) for node in nodes)


def free_slots(cpus: int, gpu: bool) -> int:
    """How many such workers what nobody uses now would do for, wherever it is."""
    import ray

    return _fit(ray.available_resources(), cpus, gpu)


def _fit(resources: dict[str, float], cpus: int, gpu: float) -> int:
    of_gpus = int(resources.get("GPU", 0)) * math.floor(1 / gpu + 1e-9) if gpu else math.inf
    return int(min(resources.get("CPU", 0) // cpus, of_gpus))
