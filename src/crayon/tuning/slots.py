"""How a cluster's cores and GPUs are shared out between trials."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crayon.config.settings import Experiment
from crayon.errors import BadInput
from crayon.launch import capacity, cluster
from crayon.tuning.settings import SweepConfig


@dataclass
class Slots:
    """What a trial gets, and how many trials there is room for at once."""

    count: int
    cpus: int
    """CPU cores of each worker."""
    gpus: float
    """GPUs of each worker, or the share of one."""


def slots(config: Experiment, sweep: SweepConfig) -> Slots:
    """Share the connected cluster out. Raises BadInput where not one trial fits."""
    import ray

    resources = ray.cluster_resources()
    cores, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    workers = max(config.max_workers, 1)
    gpu = 1.0 if capacity.use_gpu(config) else 0.0
    if gpu and workers == 1:
        gpu = sweep.gpus_per_trial
    if gpu:
        shared = int(cores * gpu / gpus) if gpus else 1
    else:  # no more slots than trials: what is over are threads
        shared = cores // workers // (sweep.concurrent or min(sweep.trials, max(1, cores // workers)))
    cpus = config.ray.cpus_per_worker or max(1, shared)
    fit = cores // (workers * cpus)
    if gpu:
        fit = min(fit, int(gpus) * math.floor(1 / gpu + 1e-9) // workers)
    if sweep.concurrent and fit < sweep.concurrent and cluster.joins():
        # An autoscaler may add what is missing; what doesn't fit waits.
        return Slots(sweep.concurrent, cpus, gpu)
    if fit < 1:
        raise BadInput(
            f"A trial of {workers} workers with {cpus} CPU cores and {gpu:g} GPUs each doesn't fit the cluster "
            f"({cores} cores, {gpus:g} GPUs); set --workers, --ray.cpus-per-worker or --gpus-per-trial lower."
        )
    if sweep.concurrent and sweep.concurrent > fit:
        raise BadInput(
            f"--concurrent {sweep.concurrent} is more than the {fit} trials that the cluster has room for "
            f"({cores} cores, {gpus:g} GPUs); use fewer."
        )
    return Slots(sweep.concurrent or min(fit, sweep.trials), cpus, gpu)
