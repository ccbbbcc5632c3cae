"""What the commands that use a trained model may be asked for. This module imports neither torch nor Ray.

A command is a row in `COMMANDS`, a dataclass here, and a module `crayon.use.<command>` (dashes as underscores) with

    def run(settings: <its dataclass>, context: Context) -> None

which raises CrayonError. Fields made by `positional` are words of the command line, the others are flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

JOBS_OF: dict[str, tuple[str, ...]] = {
    "predict": ("mnist", "cifar10"),
    "reconstruct": ("autoencoder",),
    "encode": ("autoencoder",),
    "neighbours": ("autoencoder",),
    "generate": ("gan",),
    "interpolate": ("gan",),
    "explore": ("gan",),
    "invert": ("gan",),
    "evaluate": ("mnist", "cifar10", "autoencoder", "gan"),
    "export": ("mnist", "cifar10", "autoencoder", "gan"),
    "serve": ("mnist", "cifar10", "autoencoder", "gan"),
}
"""Which jobs' models a command is for, in the order in which help names the commands."""


class Context(NamedTuple):
    """What a command is run with, beside its settings."""

    job: str
    program: str
    """What a person called, for messages: "crayon mnist predict"."""
    command: str
    """The whole command line, as it is recorded beside results."""
    emit: Callable[[dict[str, Any]], None]
    """Takes the events that crayon.progress draws."""


def positional(metavar: str, help: str, **default: Any) -> Any:
    """A field that is a word, or (of a tuple type) words, of the command line."""
    return dataclasses.field(metadata={"metavar": metavar, "help": help}, **default)


@dataclass(frozen=True, kw_only=True)
class UseConfig:
    """What all these commands have."""

    run: str = positional(
        "RUN", "Folder or s3:// or gs:// address of a run, of a sweep or of one checkpoint."
    )
    checkpoint: str = "best"
    """best, last or the number of a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = GPU when there is one."""


class Command(NamedTuple):
    settings: type[UseConfig]
    about: str
    """One line of help."""


COMMANDS: dict[str, Command] = {}
"""Those that exist."""


def commands_of(job: str) -> list[str]:
    """The commands that use a model of this job."""
    return [name for name, jobs in JOBS_OF.items() if job in jobs and name in COMMANDS]
