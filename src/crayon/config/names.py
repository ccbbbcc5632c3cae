"""Settings by their dotted names, as command lines, W&B, Optuna and checkpoints have them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from crayon.config.fields import recorded
from crayon.config.settings import Experiment, Scalar

T = TypeVar("T")
PLACEMENT = frozenset(
    {"name", "storage", "workers", "device", "threads", "cuda_graph", "wandb", "wandb_project"}
)
"""Settings (and everything under `ray.` and `checkpoint.`) that say where a run happens, not what it computes."""
ROOT = "data.root"
DECIDED_ONCE = frozenset({"precision", "task.balance", "task.extractor", "task.monitor", "data.range"})
"""Settings whose `auto` is decided when a run first starts, and then recorded: asked for again, `auto` is that."""


def flatten(config: Any, prefix: str = "") -> dict[str, Scalar]:
    """`{"lr": 0.001, "data.source": "mnist", ...}`: plain JSON values by dotted name.

    >>> flatten(OptimConfig())["warmup"]
    0.1
    """
    flat: dict[str, Scalar] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not recorded(f):
            continue
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = value
    return flat


def as_flag(name: str, value: Scalar) -> list[str]:
    """The command line's words for one setting.

    >>> as_flag("data.image_size", 32), as_flag("task.tta", False), as_flag("from_", "runs/a")
    (['--data.image-size', '32'], ['--task.no-tta'], ['--from', 'runs/a'])
    """
    flag = name.rstrip("_").replace("_", "-")  # a field can't be called as Python's own words are
    if isinstance(value, bool):
        head, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{head}{dot}no-{last}"]
    return [f"--{flag}", str(value)]


def override(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of `config` with the dotted names in `changes` replaced; an experiment remembers them as `given`.

    Raises KeyError for an unknown name.
    """
    known = flatten(config)
    for name in changes:
        if name not in known:
            raise KeyError(name)
    changed = _replaced(config, changes, "")
    if isinstance(changed, Experiment):
        changed = dataclasses.replace(changed, given=changed.given | changes.keys())
    return changed


def _replaced(config: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    values = {}
    for f in dataclasses.fields(config):
        name, value = prefix + f.name, getattr(config, f.name)
        nested = recorded(f) and dataclasses.is_dataclass(value)
        values[f.name] = _replaced(value, changes, f"{name}.") if nested else changes.get(name, value)
    return dataclasses.replace(config, **values)


def nearest(wanted: str, known: Iterable[str]) -> str:
    """The name, or the one with an end, that `wanted` resembles; empty if there is none.

    >>> nearest("dropuot", ["lr", "model.dropout"])
    'model.dropout'
    """
    known = list(known)
    ends = {name.rpartition(".")[2]: name for name in known if "." in name} | {name: name for name in known}
    small = {end.lower(): name for end, name in ends.items()}
    near = difflib.get_close_matches(wanted.lower(), small, 1)
    return small[near[0]] if near else ""


def did_you_mean(wanted: str, known: Iterable[str], before: str = "", otherwise: str = ".") -> str:
    """How a sentence about an unknown name ends: with the one that `wanted` resembles, or `otherwise`.

    >>> did_you_mean("lrr", ["lr", "epochs"], "--"), did_you_mean("x", ["lr"])
    ('; did you mean --lr?', '.')
    """
    near = nearest(wanted, known)
    return f"; did you mean {before}{near}?" if near else otherwise


def identity(config: Experiment) -> dict[str, Scalar]:
    """The settings that decide what is computed: a run is resumed only by a command that agrees on all of them. Where
    the images lie doesn't: what they are is compared (crayon.training.data_history)."""
    return {
        k: v
        for k, v in flatten(config).items()
        if k not in PLACEMENT and k != ROOT and not k.startswith(("ray.", "checkpoint."))
    }


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any], absent: Any) -> list[str]:
    """Names of the settings in `wanted` that `recorded` has otherwise; what it hasn't got counts as `absent`."""
    return [
        name
        for name in {**recorded, **wanted}
        if recorded.get(name, absent) != wanted.get(name, absent)
        and not (name in DECIDED_ONCE and wanted.get(name) == "auto")
    ]


def with_defaults(recorded: Mapping[str, Any], config: Experiment) -> dict[str, Any]:
    """The settings of a checkpoint, with those that there weren't yet when it was written: at the defaults of their
    classes. A new setting's default is what was done before there was one; a preset may differ from it.

    >>> from crayon.tasks.jobs import get
    >>> config = get("cifar10", "full")
    >>> config.model.activation, with_defaults({"job": "cifar10"}, config)["model.activation"]
    ('gelu', 'relu')
    """
    return {**flatten(_class_defaults(config)), **recorded}


def _class_defaults(config: Any) -> Any:
    """`config` with every field that has a default at it, in the classes of its parts."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not recorded(f):
            continue
        if dataclasses.is_dataclass(value):
            changes[f.name] = _class_defaults(value)
        elif f.default is not dataclasses.MISSING:
            changes[f.name] = f.default
    return dataclasses.replace(config, **changes)
