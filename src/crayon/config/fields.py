"""What a setting may be: range, choices and help of a dataclass field. The string below a field is its help."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import textwrap
import types
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from crayon.errors import BadInput


def setting(
    default: Any = dataclasses.MISSING, *, flag: bool = True, recorded: bool = True, **limits: Any
) -> Any:
    """A field with limits.

    Args:
        default: without one, a value must be given.
        flag: whether the command line has it.
        recorded: whether it is a setting at all; if not, it only travels with the others, as code of the job's does.
        limits: `low` and `high` belong to the range, `above` and `below` don't; `choices` are all there is, where the
            type doesn't say it (`Literal`). `may_change`: also while a run trains (crayon.config.changes).
    """
    metadata = {"flag": flag and recorded, "recorded": recorded, **limits}
    return dataclasses.field(default=default, metadata=metadata, compare=recorded)


def positional(metavar: str, about: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that is a word, or (of a tuple type) words, of the command line and not a flag."""
    return dataclasses.field(default=default, metadata={"metavar": metavar, "about": about})


def recorded(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is a setting, and doesn't only travel with them."""
    return field.metadata.get("recorded", True)


def check(settings: Any, prefix: str = "") -> None:
    """Raise BadInput for the first value, nested settings included, beyond its range or choices, or not finite."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if not recorded(field):
            continue
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
            continue
        flag = name if "metavar" in field.metadata else f"--{name.replace('_', '-')}"
        known = values_of(type(settings), field).choices
        for one in value if isinstance(value, tuple) else [value]:
            if known and one not in (*known, None):
                raise refuse(flag, one, known)
        if isinstance(value, (int, float)) and not _inside(value, field.metadata):
            number = f"{value:g}" if isinstance(value, float) else value
            raise BadInput(f"{flag} {number} is out of range; it must be {_range(field.metadata)}.")


def refuse(flag: str, value: Any, known: Sequence[Any]) -> BadInput:
    """What is said of a value that isn't among the choices."""
    *others, last = map(str, known)
    return BadInput(f"There is no {flag} {value}; choose {', '.join(others)} or {last}.")


class Values(NamedTuple):
    """What a field may hold."""

    types: list[Any]
    """Of a value, or of each value of a tuple: int, float, bool, str, a Literal, NoneType."""
    choices: tuple[Any, ...]
    """All values there are, None excepted; empty where they can't be counted."""
    many: bool
    """Whether it holds any number of values."""


def values_of(settings: type, field: dataclasses.Field[Any]) -> Values:
    """What a field of the dataclass `settings` may hold."""
    hint = _hints(settings)[field.name]
    many = get_origin(hint) is tuple
    hint = get_args(hint)[0] if many else hint
    types_ = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    literals = [value for kind in types_ if get_origin(kind) is Literal for value in get_args(kind)]
    return Values(types_, tuple(field.metadata.get("choices", literals)), many)


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default, or dataclasses.MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@functools.cache
def documented(settings: type) -> dict[str, str]:
    """The help of a dataclass's fields, by name, each on one line."""
    found = {}
    for kind in filter(dataclasses.is_dataclass, reversed(settings.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        for field, text in itertools.pairwise(body.body):  # type: ignore[attr-defined]
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(about))):
                    found[name] = " ".join(about.split())
    return found


_hints = functools.cache(get_type_hints)
_ENDS = {
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "greater than"),
    "below": (operator.lt, "less than"),
    "high": (operator.le, "at most"),
}
"""The ends of a range: what holds of a value, and in words."""


def _inside(value: float, limits: Any) -> bool:
    finite = isinstance(value, int) or math.isfinite(value)
    return finite and all(holds(value, limits[end]) for end, (holds, _) in _ENDS.items() if end in limits)


def _range(limits: Any) -> str:
    if "low" in limits and "high" in limits:
        return f"between {limits['low']:g} and {limits['high']:g}"
    parts = [f"{words} {limits[end]:g}" for end, (_, words) in _ENDS.items() if end in limits]
    return " and ".join(parts) or "a finite number"
