"""What can be found wrong with an experiment before a worker starts, and before torch is loaded."""

from __future__ import annotations

import math
import os

from crayon import cluster, secrets
from crayon.config import Experiment, needs_labels, worker_range
from crayon.errors import BadInput


def check(config: Experiment) -> None:
    """Raises BadInput for the first setting that can't work."""
    secrets.check_job()
    check_settings(config)
    check_workers(config)
    if not cluster.joins():
        from crayon import data

        data.check(config.data, labels=needs_labels(config))


def check_settings(config: Experiment) -> None:
    """Whether each value is in its range. Raises BadInput."""
    at_least = {
        "epochs": (config.epochs, 1),
        "global-batch-size": (config.global_batch_size, 1),
        "eval.every-epochs": (config.eval.every_epochs, 1),
        "eval.batch-size": (config.eval.batch_size, 1),
        "checkpoint.every-epochs": (config.checkpoint.every_epochs, 1),
        "checkpoint.every-minutes": (config.checkpoint.every_minutes, 0),
        "checkpoint.keep": (config.checkpoint.keep, 1),
        "ray.max-failures": (config.ray.max_failures, 0),
        "optim.weight-decay": (config.optim.weight_decay, 0),
        "optim.clip": (config.optim.clip, 0),
        "optim.ema-images": (config.optim.ema_images, 0),
        "augment.shift": (config.augment.shift, 0),
        "augment.cutout": (config.augment.cutout, 0),
    }
    for flag, (value, least) in at_least.items():
        if not value >= least or math.isinf(value):
            raise BadInput(f"--{flag} {value:g} is out of range; it must be at least {least}.")
    if config.ray.cpus_per_worker is not None and config.ray.cpus_per_worker < 1:
        raise BadInput(
            f"--ray.cpus-per-worker {config.ray.cpus_per_worker} is too small; it must be at least 1."
        )
    for flag, value in (
        ("lr", config.lr),
        ("optim.eps", config.optim.eps),
        ("optim.bias-lr-factor", config.optim.bias_lr_factor),
    ):
        if not 0 < value < math.inf:
            raise BadInput(f"--{flag} {value:g} is out of range; it must be a positive number.")
    for flag, value in (("beta1", config.beta1), ("optim.beta2", config.optim.beta2)):
        if not 0 <= value < 1:
            raise BadInput(f"--{flag} {value:g} is out of range; it must be at least 0 and less than 1.")
    for flag, value in (
        ("optim.warmup", config.optim.warmup),
        ("optim.final", config.optim.final),
        ("augment.zoom", config.augment.zoom),
    ):
        if not 0 <= value <= 1:
            raise BadInput(f"--{flag} {value:g} is out of range; it must lie between 0 and 1.")


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
    for workers in {low, high} - {0}:
        if config.global_batch_size % workers:
            raise BadInput(
                f"--global-batch-size {config.global_batch_size} can't be shared evenly by --workers {workers}; "
                f"choose a multiple of {workers}."
            )
    cores = os.cpu_count() or 1
    if not cluster.joins() and high > cores:
        raise BadInput(
            f"--workers {config.workers} is more than this machine's {cores} CPU cores; use fewer."
        )
