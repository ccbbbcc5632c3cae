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


@dataclass(frozen=True, kw_only=True)
class ServeConfig(UseConfig):
    """A page in the browser, and a JSON API, until Ctrl-C."""

    more: tuple[str, ...] = positional("[RUN...]", "More runs, of any job, beside the first.", default=())
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 = all of this machine's; there is no password, so whoever reaches it may use the
    models."""
    port: int = 8000
    """Port to listen on."""
    names: str = ""
    """Host names by which the page may be asked for where a proxy of yours stands before it, with commas between.
    Addresses, localhost and, where others can reach it, this machine's own name are known."""
    max_mib: float = 8.0
    """Largest request in MiB."""
    rate: float = 30.0
    """Requests per second that each client may send."""


class Command(NamedTuple):
    settings: type[UseConfig]
    about: str
    """One line of help."""


COMMANDS: dict[str, Command] = {
    "serve": Command(ServeConfig, "A web page and a JSON API for trained models, until Ctrl-C."),
}
"""Those that exist."""


def commands_of(job: str) -> list[str]:
    """The commands that use a model of this job."""
    return [name for name, jobs in JOBS_OF.items() if job in jobs and name in COMMANDS]
