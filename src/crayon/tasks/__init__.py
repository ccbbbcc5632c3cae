"""The three kinds of task."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from crayon.config.settings import Experiment
    from crayon.data.types import DataInfo
    from crayon.tasks.base import Task


def build(config: Experiment, info: DataInfo) -> Task:
    """The task that `config` describes, its networks initialised from torch's global generator."""
    return _kind(config).build_task(config, info)


def monitor(config: Experiment) -> tuple[str, Literal["min", "max"]]:
    """The validation metric that models of this job are compared by, without its `val/`, and which way it is better."""
    return _kind(config).monitor(config)


def comparable(config: Experiment, metric: str = "") -> Experiment:
    """`config` with `monitor` the same on every machine: `metric` where that is one of the job's, else what it is
    here."""
    return _kind(config).comparable(config, metric)


def secondary_metrics(config: Experiment) -> tuple[str, ...]:
    """Validation metrics, without their `val/`, without which the one that models are compared by says too little."""
    return _kind(config).SECONDARY_METRICS


def _kind(config: Experiment) -> Any:
    return importlib.import_module(config.task_module)
