"""Settings that change while a run trains: what `Experiment.changes` asks for. Torch-free."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from crayon.config import fields
from crayon.config.names import did_you_mean, flatten, override
from crayon.config.settings import Experiment
from crayon.errors import BadInput

_WRITTEN = re.compile(r"(\d{1,9}):([\w.-]+)=(\S+)")


def may_change(settings: Any, prefix: str = "") -> list[str]:
    """Dotted names of the settings that may change while a run trains."""
    found: list[str] = []
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if fields.recorded(field) and dataclasses.is_dataclass(value):
            found += may_change(value, f"{name}.")
        elif field.metadata.get("may_change"):
            found.append(name)
    return found


def parsed(config: Experiment) -> list[tuple[int, str, int | float]]:
    """(after how many epochs, dotted name, value), in the order of epochs. Raises BadInput for what is no change, or of
    a setting that can't change."""
    found: list[tuple[int, str, int | float]] = []
    for word in config.changes.split():
        written = _WRITTEN.fullmatch(word)
        if written is None:
            raise BadInput(f"--changes {word}: write EPOCHS:SETTING=VALUE, such as 3:lr=2e-3.")
        epochs, name, text = int(written[1]), written[2].replace("-", "_"), written[3]
        known, current = may_change(config), flatten(config)
        if name not in known:
            why = f"can't change while a run trains; there are {', '.join(known)}."
            if name not in current:
                why = f"is no setting{did_you_mean(name, known)}"
            raise BadInput(f"--changes {word}: {name} {why}")
        try:
            kind: Any = type(current[name])
            found.append((epochs, name, kind(text)))
        except ValueError:
            number = "whole number" if isinstance(current[name], int) else "number"
            raise BadInput(f"--changes {word}: {text} is no {number}.") from None
    return sorted(found, key=lambda change: change[0])


def check(config: Experiment) -> None:
    """Raise BadInput for the first change that can't be."""
    seen = set()
    for epochs, name, value in parsed(config):
        word = f"{epochs}:{name}={value}"
        if not 0 < epochs < config.epochs:
            raise BadInput(
                f"--changes {word}: the run has {config.epochs} epochs, so something can change after 1 to "
                f"{config.epochs - 1}; change --epochs, or what it begins with by its own flag."
            )
        if (epochs, name) in seen:
            raise BadInput(f"--changes {word}: {name} changes twice after epoch {epochs}; write one of them.")
        seen.add((epochs, name))
        try:
            fields.check(override(config, {name: value}))
        except BadInput as error:
            raise BadInput(f"--changes {word}: {str(error).removeprefix('--')}") from None


def at(config: Experiment, epoch: int) -> Experiment:
    """The settings after `epoch` finished epochs: `config` itself before anything has changed."""
    now = {name: value for after, name, value in parsed(config) if after <= epoch}
    return override(config, now) if now else config
