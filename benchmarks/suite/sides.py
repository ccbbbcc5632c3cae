"""The commands that are measured, each with its environment."""

from __future__ import annotations

import os
import sys
from importlib import util
from pathlib import Path

from suite.settings import Settings

BENCHMARKS = Path(__file__).resolve().parents[1]
JOBS_FOLDER = BENCHMARKS.parent / "jobs"
TRAIN_ONLY = ["--eval.every-epochs", "100000"]
UNAUGMENTED = ["--task.diffaugment", "off"]
"""For a GAN that is asked for more epochs than it gets: in so many it would augment (`diffaugment = auto`), in its
preset's, and so in the other arms, it doesn't."""

Command = tuple[list[str], dict[str, str]]


def endless(job: str) -> list[str]:
    """Settings for what is stopped from outside."""
    few = UNAUGMENTED if job == "gan" else []
    return ["--epochs", "100000", "--optim.schedule", "constant", "--optim.warmup", "0", *few]


def ours(settings: Settings, job: str, *flags: str, workers: str = "0") -> Command:
    """The command as a user runs it, on this machine, with W&B's files kept here."""
    words = [sys.executable, str(JOBS_FOLDER / f"{job}.py"), "--workers", workers, *settings.flags(job)]
    words += ["--wandb", "offline"]
    if "--storage" not in flags:
        words += ["--storage", "{folder}/runs", "--name", "run"]
    env = {
        "CRAYON_PROBE": "{told}",
        "CRAYON_PROBE_PATH": str(BENCHMARKS),
        "PYTHONPATH": _path(BENCHMARKS / "suite" / "probe"),
        "RAY_ADDRESS": "local",
    }
    if settings.device == "cpu":
        words += ["--device", "cpu"]
    return [*words, *flags], env


def is_ours(command: Command) -> bool:
    return Path(command[0][1]).parent == JOBS_FOLDER


def peer(settings: Settings, name: str, job: str, *options: str) -> Command:
    """`peers/<name>.py` on the data of `job`. `options`: its own; the job's settings follow."""
    script = str(BENCHMARKS / "peers" / f"{name}.py")
    words = [sys.executable, script, job, "--told", "{told}", *options, "--", *settings.flags(job)]
    return words, {"PYTHONPATH": _path(BENCHMARKS)}


def keras(settings: Settings, job: str, *options: str) -> Command:
    """The Keras peer on the arrays of `job`, which `prepare(..., npz=True)` has made."""
    from suite.arrays import npz_of

    script = str(BENCHMARKS / "peers" / "keras_peer.py")
    words = [sys.executable, script, job, "--told", "{told}", "--arrays", npz_of(settings, job), *options]
    return words, {"PYTHONPATH": _path(BENCHMARKS)}


def bare_launch() -> Command:
    """Under `uv run` Ray would build an environment for the worker anew, which is switched off on both sides."""
    words = [sys.executable, str(BENCHMARKS / "peers" / "ray_launch.py"), "--told", "{told}"]
    return words, {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def installed(peer: str) -> bool:
    """Whether a peer's library is there (the extra `bench`)."""
    library = {"lightning_peer": "pytorch_lightning", "keras_peer": "keras"}.get(peer)
    return library is None or util.find_spec(library) is not None


def _path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
