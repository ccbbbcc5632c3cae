"""How a cluster's cores and GPUs are shared out between trials, also while it grows or shrinks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crayon.config.settings import Experiment
from crayon.errors import BadInput, RunFailed
from crayon.launch import capacity, cluster
from crayon.tuning.settings import SweepConfig

LOOK_SECONDS = 2.0
"""How often a cluster that was joined is looked at."""
ROOM_SECONDS = 1200.0
"""How long nodes are waited for while there is room for no trial at all."""


@dataclass
class Slots:
    """What a trial gets, and how many trials there is room for at once."""

    count: int
    """Follows a cluster that was joined: none while its nodes are still to come."""
    cpus: int
    """CPU cores of each worker of a trial that starts now."""
    gpus: float
    """GPUs of each worker, or the share of one."""
    most: int = field(init=False, compare=False)
    """The largest `count` so far."""

    def __post_init__(self) -> None:
        self.most = self.count


def slots(config: Experiment, sweep: SweepConfig) -> Slots:
    """Share the connected cluster out. Raises BadInput where it is our own and not one trial fits."""
    import ray

    resources = ray.cluster_resources()
    cores, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    workers = max(config.max_workers, 1)
    gpu = 1.0 if capacity.use_gpu(config) else 0.0
    if gpu and workers == 1:
        gpu = sweep.gpus_per_trial
    cpus = cores_each(config, sweep, gpu)
    fit = capacity.total_slots(cpus, gpu) // workers
    if not cluster.joins():
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
    return Slots(min(fit, sweep.concurrent or sweep.at_once), cpus, gpu)


def cores_each(config: Experiment, sweep: SweepConfig, gpu: float) -> int:
    """CPU cores of each worker of a trial, of which there are no more at once than the nodes have room for."""
    import ray

    if config.ray.cpus_per_worker:
        return config.ray.cpus_per_worker
    resources = ray.cluster_resources()
    cores, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    workers = max(config.max_workers, 1)
    if gpu:
        share, needed = int(cores * gpu / gpus) if gpus else 1, capacity.total_slots(1, gpu)
    else:  # no more slots than trials: what is over are threads
        most = max(1, cores // workers)
        share, needed = cores // workers // (sweep.concurrent or min(sweep.at_once, most)), workers
    return next((n for n in range(share, 1, -1) if capacity.total_slots(n, gpu) >= needed), 1)


def wanted(sweep: SweepConfig) -> int:
    """How many trials at once an autoscaler is asked for: a population, or a third of all trials, as with more the
    search is nearly blind."""
    return sweep.concurrent or sweep.population or math.ceil(sweep.trials / 3)


def hint(count: int, sweep: SweepConfig) -> str:
    """A sentence where so many trials run at once that the search learns little between them, else empty."""
    from crayon.tuning.samplers import STARTUP

    if (
        sweep.sampler in ("random", "grid")
        or sweep.trials <= STARTUP
        or count <= wanted(sweep)
        or sweep.concurrent
    ):
        return ""
    return (
        f"{count} of {sweep.trials} trials run at once, so most are chosen before others have ended; the search learns "
        f"more with --concurrent {wanted(sweep)}, which takes longer, or more --trials."
    )


class Growth:
    """Follows a cluster that was joined: counts its room anew, and asks an autoscaler for what is lacking.

    It asks by placement groups, which go with this process however that ends; what `request_resources` asks for would
    keep nodes running. A group that is placed is let go at once: then there is room for a trial.
    """

    def __init__(self, config: Experiment, sweep: SweepConfig, shares: Slots, tell: Callable[[str], None]):
        self._config, self._sweep, self._shares, self._tell = config, sweep, shares, tell
        self._workers = max(config.max_workers, 1)
        self._asked: list[Any] = []
        self._looked = self._room = -math.inf

    def follow(self, running: int, waiting: int) -> None:
        """Called a few times a second with how many trials run, and how many more there are. Raises RunFailed where
        there was no room for any trial for long."""
        now, before = time.monotonic(), self._shares.count
        if not cluster.joins() or now - self._looked < LOOK_SECONDS:
            return
        self._looked, cpus = now, self._shares.cpus
        self._shares.cpus = cores_each(self._config, self._sweep, self._shares.gpus)
        count = min(self._fit(), self._sweep.concurrent or self._sweep.at_once)
        self._ask(min(wanted(self._sweep), running + waiting) - count)
        self._shares.count, self._shares.most = count, max(self._shares.most, count)
        if count:
            asked, first = self._sweep.concurrent or 0, self._room == -math.inf
            self._room = now
            if count != before or (first and count < asked):
                compared = f"{before} before" if count != before else f"--concurrent {asked}"
                each = f", of {self._shares.cpus} CPU cores each" if self._shares.cpus != cpus else ""
                plural = "s" if count > 1 else ""
                text = f"The cluster has room for {count} trial{plural} at once now ({compared}){each}."
                self._tell(f"{text} {hint(count, self._sweep)}".rstrip())
        elif before or self._room == -math.inf:
            self._room = now
            self._tell(f"Waiting for nodes: {self._need()}, and none that is there has room for it.")
        elif now - self._room > ROOM_SECONDS:
            raise RunFailed(
                f"There was no room in the cluster for {ROOM_SECONDS / 60:.0f} minutes: {self._need()}. Everything is "
                "kept, and the same command goes on."
            )

    def close(self) -> None:
        """Ask for nothing any more."""
        self._ask(0)

    def _fit(self) -> int:
        return capacity.total_slots(self._shares.cpus, self._shares.gpus) // self._workers

    def _ask(self, number: int) -> None:
        """Have room for so many more trials asked for."""
        from ray.util import placement_group, remove_placement_group

        pending: list[Any] = []
        for group in self._asked:
            if len(pending) >= number or group.wait(0):
                remove_placement_group(group)
            else:
                pending.append(group)
        each = {"CPU": float(self._shares.cpus)} | ({"GPU": self._shares.gpus} if self._shares.gpus else {})
        lacking = range(len(pending), number)
        self._asked = [*pending, *(placement_group([each] * self._workers) for _ in lacking)]

    def _need(self) -> str:
        cores, gpus = self._shares.cpus, self._shares.gpus
        each = f"{cores} CPU core{'s' if cores > 1 else ''}" + (f" and {gpus:g} GPU" if gpus else "")
        return "a trial needs " + (f"{self._workers} workers of {each} each" if self._workers > 1 else each)
