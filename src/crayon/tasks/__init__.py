"""The three kinds of task."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crayon.config.settings import Experiment
    from crayon.data.types import DataInfo
    from crayon.tasks.base import Task


def kind(config: Experiment) -> type[Task]:
    """The class of the task that `config` describes."""
    named = config.own_task or config.task_class
    return pkgutil.resolve_name(named) if isinstance(named, str) else named


def built_in(config: Experiment) -> bool:
    """Whether task and network are this package's."""
    return config.network is None and config.own_task is None and isinstance(config.task_class, str)


def build(config: Experiment, info: DataInfo) -> Task:
    """The task that `config` describes, its networks initialised from torch's global generator."""
    return kind(config)(config, info)
