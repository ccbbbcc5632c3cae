"""What can be found wrong with an experiment before a worker starts, and before torch is loaded."""

from __future__ import annotations

import math

from crayon.config.names import flatten
from crayon.config.settings import Experiment, needs_labels, worker_range
from crayon.errors import BadInput
from crayon.launch import cluster
from crayon.system import secrets
from crayon.system.host import usable_cores

AT_LEAST = {
    "epochs": 1,
    "global_batch_size": 1,
    "eval.every_epochs": 1,
    "eval.batch_size": 1,
    "checkpoint.every_epochs": 1,
    "checkpoint.every_minutes": 0,
    "checkpoint.keep": 1,
    "ray.max_failures": 0,
    "ray.cpus_per_worker": 1,
    "threads": 1,
    "optim.weight_decay": 0,
    "optim.clip": 0,
    "optim.ema_images": 0,
    "augment.shift": 0,
    "augment.cutout": 0,
    "model.width": 1,
    "model.growth": 1,
    "model.depth": 1,
    "model.latent_dim": 1,
    "model.discriminator_width": 0,
    "task.noise": 0,
    "task.latent_noise": 0,
    "task.gamma": 0,
}
"""By dotted name; a job has some of those under `model.` and `task.`."""
POSITIVE = ("lr", "optim.eps", "optim.bias_lr_factor")
MOMENTA = ("beta1", "optim.beta2")
SHARES = (
    "optim.warmup",
    "optim.final",
    "augment.zoom",
    "model.dropout",
    "task.label_smoothing",
    "task.mask",
)


def check(config: Experiment, on_ray: bool) -> None:
    """Raises BadInput for the first setting that can't work."""
    secrets.check_job()
    check_settings(config)
    check_workers(config)
    if not (on_ray and cluster.joins()):
        from crayon import data

        data.check(config.data, labels=needs_labels(config))


def check_settings(config: Experiment) -> None:
    """Whether each value is in its range. Raises BadInput."""
    flat = flatten(config)

    def refuse(name: str, must: str) -> BadInput:
        return BadInput(f"--{name.replace('_', '-')} {flat[name]:g} is out of range; it must be {must}.")

    for name, least in AT_LEAST.items():
        if flat.get(name) is not None and not least <= flat[name] < math.inf:
            raise refuse(name, f"at least {least}")
    for name in POSITIVE:
        if not 0 < flat[name] < math.inf:
            raise refuse(name, "a positive number")
    for name in MOMENTA:
        if not 0 <= flat[name] < 1:
            raise refuse(name, "at least 0 and less than 1")
    for name in SHARES:
        if name in flat and not 0 <= flat[name] <= 1:
            raise refuse(name, "between 0 and 1")


def check_workers(config: Experiment) -> None:
    """Whether the batch can be shared, and whether this machine has the cores. Raises BadInput."""
    try:
        low, high = worker_range(config.workers)
    except ValueError:
        raise BadInput(
            f"--workers {config.workers} is neither a number nor a range; write 4, or 1..4 for an elastic run."
        ) from None
    if high < low or low < (1 if isinstance(config.workers, str) else 0):
        raise BadInput(
            f"--workers {config.workers} is out of range; it must be a number of at least 0, or a range such as 1..4."
        )
    if config.device == "mps" and high > 0:
        raise BadInput("--device mps trains in this process alone, without Ray; add --workers 0.")
    if config.global_batch_size < high:
        raise BadInput(
            f"--global-batch-size {config.global_batch_size} is less than one image for each of --workers "
            f"{config.workers}; use fewer workers."
        )
    cores = usable_cores()
    if high > cores and not cluster.joins():
        raise BadInput(
            f"--workers {config.workers} is more than this machine's {cores} CPU cores; use fewer."
        )
    if (config.threads or 0) > cores and not cluster.joins():
        raise BadInput(
            f"--threads {config.threads} is more than this machine's {cores} CPU cores; use fewer."
        )
