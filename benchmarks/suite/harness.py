"""What a benchmark is, how it is repeated, and what becomes of its figures.

A benchmark has cases (a model, a size). A case has arms (us, a peer, the limit), which one or several parts measure.
The parts of a repetition follow each other at once, in an order that changes with the repetition, so that a machine
that gets slower makes all arms slower alike. What is compared are ratios of two arms of the same repetition.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from suite.settings import Settings

Figures = dict[str, float | None]
"""By name, with the unit in the name where there is one. None = not reached in the time given."""
Part = Callable[[], Mapping[str, Figures]]
"""Measures one arm, or several at once: figures by arm."""


@dataclass(frozen=True)
class Ratio:
    """`arms[0]`'s figure over `arms[1]`'s, within one repetition.

    target: what the ratio is meant to be, at least or at most (`better`).
    """

    name: str
    figure: str
    arms: tuple[str, str]
    better: Literal["more", "less"] = "more"
    target: float | None = None


@dataclass(frozen=True)
class Bound:
    """A figure of one arm that is to stay at or under (over) `target`."""

    name: str
    figure: str
    arm: str
    target: float
    better: Literal["more", "less"] = "less"


@dataclass(frozen=True)
class Case:
    """name: of the model or size. parts: how its arms are measured. before: what isn't measured, such as decoding."""

    name: str
    parts: Mapping[str, Part]
    ratios: tuple[Ratio | Bound, ...] = ()
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Benchmark:
    """title: one line. minutes: roughly, of one whole repetition on two cores. cases: made for the settings at hand.
    appendix: Markdown that follows the tables."""

    name: str
    title: str
    minutes: float
    cases: Callable[[Settings], list[Case]]
    notes: tuple[str, ...] = ()
    appendix: Callable[[], str] = lambda: ""


class Spread(NamedTuple):
    median: float
    least: float
    most: float
    count: int


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def missing(case: Case, repetition: int, done: Mapping[str, Any]) -> list[str]:
    """The parts of a repetition that aren't in `done` (by part), in the order in which they are to be measured."""
    names = list(case.parts)
    shift = repetition % max(1, len(names))
    return [name for name in names[shift:] + names[:shift] if name not in done]


def arms_of(repetitions: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """arm -> figure -> its values, one per repetition that has it."""
    table: dict[str, dict[str, list[float | None]]] = {}
    for repetition in repetitions:
        for arms in repetition["parts"].values():
            for arm, figures in arms.items():
                for figure, value in figures.items():
                    table.setdefault(arm, {}).setdefault(figure, []).append(value)
    return table


def values_of(ratio: Ratio | Bound, repetitions: list[dict[str, Any]]) -> tuple[list[float], str]:
    """The ratio in each repetition that has both arms, and ">" or "<" where an arm that gave up makes it a bound."""
    found, sign = [], ""
    for repetition in repetitions:
        figures = {arm: f for arms in repetition["parts"].values() for arm, f in arms.items()}
        if isinstance(ratio, Bound):
            value = figures.get(ratio.arm, {}).get(ratio.figure)
            if value is not None:
                found.append(value)
            continue
        over, under = (figures.get(arm, {}) for arm in ratio.arms)
        a, b = over.get(ratio.figure), under.get(ratio.figure)
        # An arm that had not reached its goal when its time was up would have taken longer than that time.
        if a is None and b is not None and over.get("gave_up_after_s"):
            a, sign = over["gave_up_after_s"], ">"
        if b is None and a is not None and under.get("gave_up_after_s"):
            b, sign = under["gave_up_after_s"], "<"
        if a is not None and b:
            found.append(a / b)
    return found, sign
