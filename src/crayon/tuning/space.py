"""What a sweep searches over: dimensions named like the settings they stand for.

    epochs 4..12        whole numbers, both ends included
    lr 1e-4..1e-2:log   real numbers, log-uniform
    model.width 16,32   one of these
    beta1 0.9           fixed: not searched
    optim.clip 0.1..10 if task.loss=hinge    searched only then, else as in the preset; also < <= > >=

Imports neither torch nor Optuna, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crayon.config.changes import may_change
from crayon.config.names import PLACEMENT, did_you_mean, flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.data.validate import brought
from crayon.errors import BadInput
from crayon.launch import fitting
from crayon.report.events import Event, Message
from crayon.system.runfolder import SWEEP, RunFolder
from crayon.tasks import jobs

SIGNS = {"=": operator.eq, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"([\w.]+)(<=|>=|[=<>])(.+)")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting and the values that trials may give it."""

    name: str
    """Dotted name of the setting; Optuna's parameter and W&B's column are called the same."""
    kind: Literal["int", "float", "choice"]
    low: float | int | None = None
    """Smallest value (int, float)."""
    high: float | int | None = None
    """Largest value, included (int, float)."""
    log: bool = False
    """Uniform in the logarithm rather than in the value."""
    choices: tuple[Scalar, ...] = ()
    """All values (choice)."""
    when: str = ""
    """A comparison of another dimension with a value: only where it holds is this one searched. "" = always."""

    @property
    def ends(self) -> tuple[float, float]:
        """(`low`, `high`), of a range."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def taken(self, value: Any) -> Any:
        """`value` as one of this dimension, or None where it is none.

        >>> Dimension(name="epochs", kind="int", low=4, high=12).taken(5.0)
        5
        """
        if self.kind == "choice":
            return next((c for c in self.choices if c == value and type(c) is type(value)), None)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not self.ends[0] <= value <= self.ends[1] or (self.kind == "int" and value != int(value)):
            return None
        return int(value) if self.kind == "int" else float(value)

    def __str__(self) -> str:
        """As it is written on the command line.

        >>> str(Dimension(name="lr", kind="float", low=1e-4, high=0.01, log=True))
        '0.0001..0.01:log'
        """
        end = f" if {self.when}" if self.when else ""
        if self.kind == "choice":
            return ",".join(str(choice) for choice in self.choices) + end
        return f"{self.low:g}..{self.high:g}{':log' if self.log else ''}{end}"

    def active(self, params: Mapping[str, Any]) -> bool:
        """Whether it is searched where the others have these values.

        >>> Dimension(name="beta1", kind="float", low=0, high=1, when="epochs<8").active({"epochs": 9})
        False
        """
        if not self.when:
            return True
        name, sign, text = _CONDITION.fullmatch(self.when).groups()  # type: ignore[union-attr]
        return SIGNS[sign](params[name], _value(text, params[name], self.when))


def parse(name: str, text: str, default: Experiment) -> Dimension | Scalar:
    """The dimension, or the one fixed value, that `text` asks for the setting `name` of `default`'s kind.

    Raises BadInput where it is no range, an empty one, or has values of the wrong type.
    """
    current = flatten(default)[name]
    number = isinstance(current, (int, float)) and not isinstance(current, bool)
    flag = f"--space.{name.replace('_', '-')} {text}"
    text, asked, condition = text.partition(" if ")
    if asked:
        found = parse(name, text, default)
        if not isinstance(found, Dimension):
            raise BadInput(f"{flag}: one value is the same for all trials, and can't have a condition.")
        return dataclasses.replace(found, when=_condition(condition, default, flag))
    body, _, scale = text.strip().partition(":")
    if scale not in ("", "log"):
        raise BadInput(
            f"{flag}: {scale!r} is no scale; write low..high, or low..high:log for a log-uniform range."
        )
    if ".." in body:
        if not number:
            raise BadInput(f"{flag}: {name} is not a number; list its values with commas, as in a,b.")
        low, high = (_value(end.strip(), current, flag) for end in body.split("..", 1))
        if low >= high:
            raise BadInput(f"{flag}: the range is empty or upside down; write the smaller number first.")
        if scale and low <= 0:
            raise BadInput(f"{flag}: a log-uniform range must begin above 0.")
        kind: Literal["int", "float"] = "int" if isinstance(current, int) else "float"
        return Dimension(name=name, kind=kind, low=low, high=high, log=bool(scale))
    if scale:
        raise BadInput(f"{flag}: only a range can be log-uniform; write low..high:log.")
    values = [_value(part.strip(), current, flag) for part in body.split(",")]
    if len(values) == 1:
        return values[0]
    if len(set(values)) < len(values):
        raise BadInput(f"{flag}: a value stands there twice; list each once.")
    return Dimension(name=name, kind="choice", choices=tuple(values))


def points(
    texts: Iterable[str], default: Experiment, space: Mapping[str, Dimension]
) -> list[dict[str, Scalar]]:
    """Points of the space, each a text such as "lr=3e-3,beta1=0.8" over the preset's values. Raises BadInput."""
    found = []
    for text in texts:
        changes: dict[str, Scalar] = {}
        for part in text.split(","):
            written, equals, value = part.partition("=")
            if not equals:
                raise BadInput(f"--try {text}: write settings with their values, such as lr=3e-3,beta1=0.8.")
            name = resolve(written.strip(), default, "--try ")
            if name in changes:
                raise BadInput(f"--try {text}: {name} stands there twice; write several trials side by side.")
            if name not in space:
                raise BadInput(f"--try {text}: {name} isn't searched; add its range with --space.{name}.")
            changes[name] = space[name].taken(_value(value.strip(), flatten(default)[name], f"--try {text}"))
            if changes[name] is None:
                raise BadInput(f"--try {text}: {name} isn't in {space[name]}; widen --space.{name}.")
        found.append(clipped(default, space) | changes)
    return found


def _condition(text: str, default: Experiment, flag: str) -> str:
    """A condition as it is kept, its setting's name in full."""
    found = _CONDITION.fullmatch("".join(text.split()))
    if found is None:
        raise BadInput(
            f"{flag}: a condition is one comparison, such as if model.width=16, or with <, <=, > or >=."
        )
    written, sign, value = found.groups()
    name = resolve(written, default, f"{flag}: ")
    current = flatten(default)[name]
    if sign != "=" and (isinstance(current, bool) or not isinstance(current, (int, float))):
        raise BadInput(f"{flag}: {name} is not a number; write {name}=VALUE.")
    _value(value, current, flag)
    return f"{name}{sign}{value}"


def _check_conditions(space: Mapping[str, Dimension], default: Experiment) -> None:
    """Raise BadInput where a condition is of what isn't searched, or of what has one itself, or never differs."""
    for name, dimension in space.items():
        if not dimension.when:
            continue
        flag = f"--space.{name.replace('_', '-')} {dimension}"
        other, sign, text = _CONDITION.fullmatch(dimension.when).groups()  # type: ignore[union-attr]
        if other not in space or space[other].when:
            why = "isn't searched" if other not in space else "has a condition itself"
            raise BadInput(f"{flag}: {other} {why}, so nothing can depend on it.")
        value, found = _value(text, flatten(default)[other], flag), space[other]
        ends: tuple[Any, ...] = found.choices or found.ends
        holds = any(SIGNS[sign](end, value) for end in ends)
        if (sign == "=" and found.taken(value) is None) or (sign != "=" and not holds):
            raise BadInput(f"{flag}: {other} is never {sign.replace('=', '', sign == '=')}{text} in {found}.")


def settled(
    params: Mapping[str, Scalar], space: Mapping[str, Dimension], preset: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """`params` where dimensions whose condition doesn't hold are as in the preset."""
    return {n: v if space[n].active(params) else preset.get(n, v) for n, v in params.items()}


def resolve(written: str, default: Experiment, flag: str = "--space.") -> str:
    """The setting that `written` names: its dotted name, or the end of one where no other ends so.

    `dropout` is `model.dropout`. Raises BadInput for what is no setting or can't differ between trials.
    """
    wanted, known = written.replace("-", "_"), flatten(default)
    found = [wanted] if wanted in known else [name for name in known if name.endswith(f".{wanted}")]
    if len(found) > 1:
        raise BadInput(f"{flag}{written} could be {' or '.join(found)}; write it in full.")
    if not found:
        raise BadInput(f"{flag}{written}: there is no setting {wanted!r}{did_you_mean(wanted, known)}")
    name = found[0]
    fixed = PLACEMENT | {"job", "preset", "seed", "changes"}
    if name in fixed or name.startswith(("ray.", "checkpoint.", "data.", "eval.")):
        raise BadInput(
            f"{flag}{written}: {name} is the same for all trials of a sweep; set it with --{written}."
        )
    return name


def of_job(
    config: Experiment, asked: Mapping[str, str], objective: str = "quality"
) -> tuple[Experiment, dict[str, Dimension]]:
    """As `build`, around the job's own ranges, of `config` fitted to the user's own images (crayon.tasks.recipe). For
    the objective pbt, of the job's own dimensions those that may change while a run trains."""
    named = config.given | {resolve(written, config) for written in asked}
    kept = None
    if config.name and brought(config.data):  # a sweep that goes on keeps what it began with
        run = RunFolder.of(config)
        run.fetch(SWEEP)
        kept = (run.read_json(SWEEP) or {}).get("settings") or None
    config = fitting.fitted(dataclasses.replace(config, given=named), kept, _tell, on_ray=True)
    own = jobs.space(config)
    if objective == "pbt":
        own = {name: own[name] for name in may_change(config) if name in own}
    return build(config, own, asked)


def _tell(event: Event) -> None:
    if isinstance(event, Message) and not event.text.startswith("The preset"):  # which the sweep itself tells
        print(event.text, file=sys.stderr)


def build(
    default: Experiment, base: Mapping[str, str], asked: Mapping[str, str]
) -> tuple[Experiment, dict[str, Dimension]]:
    """(`default` with what was fixed, the dimensions), from the job's own ranges `base` and those on the command line.

    Raises BadInput for dimensions that can't be, or when there is none.
    """
    texts = dict(base) | {resolve(written, default): text for written, text in asked.items()}
    space: dict[str, Dimension] = {}
    fixed: dict[str, Scalar] = {}
    for name, text in texts.items():
        found = parse(name, text, default)
        if isinstance(found, Dimension):
            space[name] = found
        else:
            fixed[name] = found
    if not space:
        raise BadInput("Every dimension of the sweep is fixed, so there is nothing to search; use train.")
    default = override(default, fixed)
    _check_conditions(space, default)
    return default, space


def clipped(config: Experiment, space: Mapping[str, Dimension]) -> dict[str, Scalar]:
    """The preset's own values as a point of the space. Raises BadInput where the preset lies outside."""
    flat = flatten(config)
    for name, dimension in space.items():
        value: Any = flat[name]
        if dimension.taken(value) is None:
            flag = name.replace("_", "-")
            raise BadInput(
                f"--space.{flag} {dimension} leaves out {value}, and the first trial is the preset; widen the range, "
                f"or move the preset with --{flag}."
            )
    return {name: flat[name] for name in space}


def _value(text: str, current: Scalar, flag: str) -> Any:
    """`text` as a value like `current`."""
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise BadInput(f"{flag}: {text!r} is neither true nor false.")
        return text.lower() == "true"
    if not isinstance(current, (int, float)):
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{flag}: {text or 'nothing'!r} is not a number; write 4..12, 0.1..0.5 or 8,16.")
    if isinstance(current, float):
        return number
    if number != int(number):
        raise BadInput(f"{flag}: {text} is not a whole number, which this setting needs.")
    return int(number)
