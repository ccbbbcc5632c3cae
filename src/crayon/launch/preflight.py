"""What can be found wrong with an experiment before a worker starts, and before torch is loaded."""

from __future__ import annotations

import os

from crayon.config import changes, fields
from crayon.config.settings import Experiment, worker_range
from crayon.errors import BadInput
from crayon.launch import cluster
from crayon.system import secrets
from crayon.system.host import usable_cores


def check(config: Experiment, on_ray: bool) -> None:
    """Raises BadInput for the first setting that can't work."""
    secrets.check_job()
    fields.check(config)
    changes.check(config)
    config.check()
    check_workers(config)
    if not (on_ray and cluster.joins()):
        from crayon import data

        begun = config.init_from
        if begun is not None and "://" not in begun and not os.path.exists(os.path.expanduser(begun)):
            raise BadInput(
                f"--init-from: there is no folder or file {config.init_from}; give a run's folder, or a .safetensors "
                "file, on this machine."
            )
        data.check(config.data, labels=config.needs_labels)


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
    for flag, asked, value in (
        ("workers", config.workers, high),
        ("threads", config.threads, config.threads or 0),
    ):
        if value > cores and not cluster.joins():
            raise BadInput(f"--{flag} {asked} is more than this machine's {cores} CPU cores; use fewer.")
