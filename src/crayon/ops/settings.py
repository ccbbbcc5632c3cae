"""What `chaos` and `doctor` may be asked for. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass

from crayon.config.fields import positional, setting


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """What is done to a run on purpose."""

    kill: str = "worker,driver"
    """What to break, of: worker (kill -9), pause (a worker stands still for ten seconds), driver (kill -9 of the
    command), stop (Ctrl-C), node (kill -9 of all that Ray runs on a machine with a worker)."""
    times: int = setting(4, low=1)
    """How often, in turn, each at a random moment."""
    chaos_seed: int = 0
    """Decides the moments and the victims."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What is examined."""

    file: str | None = positional(
        "[CLUSTER.yaml]", "A file for ray up or KubeRay, to be examined too.", default=None
    )
    storage: str = "runs"
    """Folder, or s3:// or gs:// URI, that will hold the runs."""
    job: str = "all"
    """Job whose checkpoints need room on the disk. all = the one that needs most."""
    preset: str = "all"
    """Preset of that job. all = the one that needs most."""
