"""What `crayon doctor` is asked for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Examine this machine, the Ray cluster that a run would join, and a cluster file, and say how to mend what is
    wrong. Nothing is started or changed. Ends with exit code 1 if there is an error, 0 otherwise."""

    storage: str = "runs"
    """Folder, or s3:// or gs:// URI, that will hold the runs."""
    job: str | None = None
    """Job whose checkpoints need room on the disk. None = the one that needs most."""
    preset: str | None = None
    """quick or full, for that job. None = the one that needs more."""
