"""Crayon: image models trained and tuned on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # ruff: noqa: F401
    from crayon.cli.main import main
    from crayon.config.fields import setting
    from crayon.config.settings import (
        AugmentConfig,
        CheckpointConfig,
        DataConfig,
        EvalConfig,
        Experiment,
        OptimConfig,
        RayConfig,
    )
    from crayon.data.own import Source
    from crayon.data.types import Batch, DataInfo
    from crayon.errors import BadInput, CrayonError, Diverged, RunFailed, Stopped
    from crayon.rng import Randomness
    from crayon.tasks.adversarial.settings import AdversarialConfig, AdversarialExperiment, GanConfig
    from crayon.tasks.base import Export, Statistics, Task
    from crayon.tasks.classification.pretrained import Pretrained, PretrainedClassifier
    from crayon.tasks.classification.settings import (
        ClassificationConfig,
        ClassificationExperiment,
        ClassifierConfig,
    )
    from crayon.tasks.jobs import Job, jobs, register
    from crayon.tasks.reconstruction.settings import (
        AutoencoderConfig,
        ReconstructionConfig,
        ReconstructionExperiment,
    )
    from crayon.tuning.settings import SweepConfig
    from crayon.use.api import Run, Sweep, evaluate, preset, train, tune
    from crayon.use.model import Model, load
    from crayon.use.settings import EvaluateSourceConfig

__version__ = "0.2.0"

_HOMES = {
    "cli.main": "main",
    "config.fields": "setting",
    "config.settings": "AugmentConfig CheckpointConfig DataConfig EvalConfig Experiment OptimConfig RayConfig",
    "data.own": "Source",
    "data.types": "Batch DataInfo",
    "errors": "BadInput CrayonError Diverged RunFailed Stopped",
    "rng": "Randomness",
    "tasks.adversarial.settings": "AdversarialConfig AdversarialExperiment GanConfig",
    "tasks.base": "Export Statistics Task",
    "tasks.classification.pretrained": "Pretrained PretrainedClassifier",
    "tasks.classification.settings": "ClassificationConfig ClassificationExperiment ClassifierConfig",
    "tasks.jobs": "Job jobs register",
    "tasks.reconstruction.settings": "AutoencoderConfig ReconstructionConfig ReconstructionExperiment",
    "tuning.settings": "SweepConfig",
    "use.api": "Run Sweep evaluate preset train tune",
    "use.model": "Model load",
    "use.settings": "EvaluateSourceConfig",
}
"""Where the public names are, which are imported on first use, so that `import crayon` loads neither torch nor Ray."""
_HOME_OF = {name: f"crayon.{home}" for home, names in _HOMES.items() for name in names.split()}
__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
