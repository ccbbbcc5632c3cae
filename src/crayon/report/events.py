"""What a worker or a command tells while it runs: typed events, which the terminal draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """A sentence for a person."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Progress:
    """How far something is that takes a while: a download, decoding, a command's images."""

    what: str
    done: int
    total: int
    unit: str = ""
    per_second: float | None = None
    """Units per second."""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Images:
    """The images that a run is going to train on."""

    about: dict[str, Any]
    """The content of images.json: see crayon.data.about."""


@dataclass(frozen=True)
class Started:
    """Training begins, or begins anew with other workers."""

    job: str
    name: str
    folder: str
    epochs: int
    total_steps: int
    device: str
    precision: str
    threads: int | None
    """Of each worker; None on a GPU."""
    workers: int
    parameters: int
    train_images: int
    source: str


@dataclass(frozen=True)
class Step:
    """Training is at this step, inside an epoch or at its end."""

    epoch: int
    """Finished ones."""
    step: int
    total_steps: int
    loss: float
    """Mean over the epoch so far."""
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EpochEnd:
    """An epoch was trained, and evaluated where that was due."""

    epoch: int
    epochs: int
    metrics: dict[str, float]
    """The row of metrics.jsonl."""
    monitor: str = ""
    """The metric that decides which checkpoint is the best."""


@dataclass(frozen=True)
class Finished:
    """The end of a run, or of a command that measures a model."""

    result: dict[str, Any]
    """The content of result.json."""
    folder: str
    sync: str = ""
    """The command that uploads the run to W&B, where it was logged offline."""


Event = Message | Progress | Images | Started | Step | EpochEnd | Finished
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `Emit` for who shows nothing."""
