"""Experiments small enough to train in a second, and ways to run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from crayon.config.names import as_flag, flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.tasks.jobs import get, names

if TYPE_CHECKING:
    from torch import Tensor

    from crayon.data import ImageSet
    from crayon.training.loop import Trainer

JOBS = tuple(names())
PRESETS = ("instant", "quick", "full")
TINY: dict[str, dict[str, Scalar]] = {
    "mnist": {
        "data.source": "digits",
        "data.image_size": 16,
        "data.size": 294,
        "epochs": 3,
        "global_batch_size": 32,
        "model.width": 8,
        "model.growth": 2,
        "model.depth": 1,
        "augment.shift": 1,
        "augment.rotate": 5.0,
        "optim.ema_images": 200.0,
    },
    "cifar10": {
        "data.source": "shapes",
        "data.image_size": 16,
        "data.size": 320,
        "epochs": 3,
        "global_batch_size": 32,
        "model.width": 8,
        "model.growth": 2,
        "model.depth": 1,
        "optim.ema_images": 200.0,
    },
    "autoencoder": {
        "data.source": "digits",
        "data.image_size": 16,
        "data.size": 294,
        "epochs": 3,
        "global_batch_size": 32,
        "optim.ema_images": 200.0,
        "task.noise": 0.1,
        "model.width": 8,
    },
    "gan": {
        "data.source": "faces",
        "data.image_size": 32,
        "data.size": 160,
        "epochs": 3,
        "global_batch_size": 16,
        "optim.ema_images": 200.0,
        "model.width": 8,
    },
}
COMMON: dict[str, Scalar] = {"wandb": "off", "device": "cpu", "workers": 0, "precision": "fp32"}


def tiny(job: str, **changes: Scalar) -> Experiment:
    """The job's quick preset shrunk; `changes` by dotted name with `__` for the dot."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(get(job), COMMON | TINY[job] | named)


def flags(config: Experiment) -> list[str]:
    """The command line that asks for exactly `config`."""
    settings = {name: value for name, value in flatten(config).items() if name != "job"}
    return [word for name, value in settings.items() for word in as_flag(name, value)]


def python(code: str, **env: str) -> subprocess.Popen[str]:
    """A Python process of its own that imports what the tests import."""
    here = Path(__file__).parent
    path = os.pathsep.join([*map(str, [here, *here.glob("*/")]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def crayon(
    job: str, *arguments: str, cwd: Path | None = None, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """`crayon JOB ARGUMENTS`, really run."""
    return subprocess.run(
        [sys.executable, "-m", "crayon.cli", job, *arguments],
        env=os.environ | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def kill_with_family(process: subprocess.Popen[str]) -> None:
    """kill -9 of a command, then wait for the processes of Ray that it leaves behind and that could still train.

    Two helpers of Ray's node outlive the others by a minute; they hold nothing.
    """
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    trains = [p for p in family if not p.cmdline() or "Agent" not in p.cmdline()[0]]
    process.kill()
    process.communicate()
    psutil.wait_procs(trains, timeout=30)


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer of `what`."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def pixels(images: ImageSet) -> Tensor:
    """All images of a set, uint8 (N, C, H, W)."""
    import torch

    return images.gather(torch.arange(len(images)))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def gan(*words: object) -> int:
    """`crayon gan` in this process; the exit code, 0, or what it raises."""
    from crayon.cli import main as cli

    return cli.run("gan", [*map(str, words), "--device", "cpu"])


def trainer(storage: Path, job: str, **changes: Scalar) -> Trainer:
    """Of an untrained tiny model, whose run lies at `storage / job`."""
    from crayon.system.runfolder import RunFolder
    from crayon.training import worker

    config = tiny(job, name=job, storage=str(storage), **changes)
    run = RunFolder(config.storage, job)
    run.create()
    return worker.build(config, worker.load_data(config), run)
