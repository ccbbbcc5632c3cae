"""What every trial must keep to, such as parameters<=500_000, before it is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crayon.config.names import override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput
from crayon.tuning.space import SIGNS

if TYPE_CHECKING:
    from crayon.data.types import DataInfo

_WRITTEN = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>)\s*([\d_.eE+]+)\s*")
NAMES = ("parameters",)


@dataclass(frozen=True)
class Requirement:
    """One comparison of a figure of the untrained networks with a number."""

    text: str
    name: str
    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        return SIGNS[self.sign](value, self.limit)


def parse(text: str) -> Requirement:
    """Raises BadInput for what is no comparison, or of nothing that is known.

    >>> parse("parameters<=500_000").limit
    500000.0
    """
    found = _WRITTEN.fullmatch(text)
    try:
        name, sign, number = found.groups() if found else ("", "", "")
        limit = float(number)
    except ValueError:
        raise BadInput(
            f'--require {text!r} is no comparison; write it as in "parameters<=500_000".'
        ) from None
    if name not in NAMES:
        raise BadInput(
            f"--require {text!r}: {name!r} isn't known before training; there is {', '.join(NAMES)}."
        )
    return Requirement(text, name, sign, limit)


def objections(
    requirements: Iterable[Requirement], config: Experiment, info: DataInfo
) -> Callable[[Mapping[str, Scalar]], str]:
    """What tells why the settings of a trial don't keep to the requirements; "" where they do. info: of the images."""
    from crayon import tasks

    wanted = list(requirements)

    def objection(params: Mapping[str, Scalar]) -> str:
        networks = tasks.build(override(config, params), info).networks
        count = sum(parameter.numel() for parameter in networks.parameters())
        broken = [requirement.text for requirement in wanted if not requirement.holds(count)]
        return f"it has {count:,} parameters, against --require {' '.join(broken)}" if broken else ""

    return objection if wanted else lambda params: ""
