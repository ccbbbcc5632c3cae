"""What `crayon doctor` is asked for."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What is examined."""

    storage: str = "runs"
    """Folder, or s3:// or gs:// URI, that will hold the runs."""
    job: Literal["all", "mnist", "cifar10", "autoencoder", "gan"] = "all"
    """Job whose checkpoints need room on the disk. all = the one that needs most."""
    preset: Literal["all", "instant", "quick", "full"] = "all"
    """Preset of that job. all = the one that needs more."""
