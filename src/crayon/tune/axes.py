"""The axes of a sweep's pictures.

Every axis runs from 0 to 1, and what it measures is turned into that here, so that logarithms, choices, ticks and
values far off are treated alike in all pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crayon.report.style import short
from crayon.report.words import metric_text
from crayon.tune.page import number, plain, setting_text
from crayon.tune.records import SweepRecord, TrialRecord
from crayon.tune.space import Dimension

EDGES = (-0.03, 1.03)
"""Where an axis shows what lies beyond its ends."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    label: str
    place: Callable[[Any], float]
    """Below 0 or above 1 beyond the ends, NaN for what has no place."""
    ticks: Sequence[tuple[float, Any]]
    """(place, value)."""
    ends: Sequence[tuple[float, Any]] = ()
    """Of a range: the ticks at 0 and 1."""
    text: Callable[[Any], str] = "{:.6g}".format


def numbers_axis(label: str, values: Iterable[float], log: bool = False, whole: bool = False) -> Axis:
    """From the smallest to the largest of `values`."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = min(values, default=0.0), max(values, default=0.0)
    log = log and low > 0
    if high - low <= 1e-9 * abs(high):
        log, low, high = False, low - (abs(low) / 50 or 0.5), high + (abs(high) / 50 or 0.5)
    bend = math.log if log else float

    def place(value: Any) -> float:
        found = number(value)
        if found is None or (log and found <= 0):
            return math.nan
        return (bend(found) - bend(low)) / (bend(high) - bend(low))

    locator: Any = MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1 if whole else 2)
    if log and high > 5 * low:
        locator = LogLocator(subs=(1, 2, 5) if high < 20 * low else (1, 3) if high < 200 * low else (1,))
    values = map(float, locator.tick_values(low, high))
    ticks = [(place(v), v) for v in values if -1e-9 < place(v) < 1 + 1e-9]
    return Axis(label=label, place=place, ticks=ticks, ends=[(0, low), (1, high)])


def setting_axis(dimension: Dimension, trials: Sequence[TrialRecord]) -> Axis:
    if dimension.kind == "choice":
        # By their repr: True and 1 are equal, and yet two choices.
        places = {
            repr(choice): (i + 0.5) / len(dimension.choices) for i, choice in enumerate(dimension.choices)
        }
        return Axis(
            label=dimension.name,
            place=lambda value: places.get(repr(value), math.nan),
            ticks=list(zip(places.values(), dimension.choices, strict=True))[:: len(places) // 10 + 1],
            text=lambda choice: printable(setting_text(choice), 12),
        )
    ends = [v for v in map(number, (dimension.low, dimension.high)) if v is not None]
    used = [v for v in (number(t.params.get(dimension.name)) for t in trials) if v is not None]
    values = ends if len(ends) == 2 else used
    return numbers_axis(dimension.name, values, log=dimension.log, whole=dimension.kind == "int")


def values_axis(record: SweepRecord, values: Iterable[float | None]) -> Axis:
    """Of all values but those far worse than most, beside which the others would be one line."""
    sign = 1 if record.direction == "max" else -1
    good = np.sort([sign * v for v in values if v is not None] or [0.0])
    lower, middle, upper = np.quantile(good, (0.25, 0.5, 0.75))
    # Tukey's "far out", with something to measure by where half of the values are equal.
    near = good[good >= lower - 3 * max(upper - lower, good[-1] - middle)]
    label = printable(plain(record.metric), 40) + ("" if sign > 0 else " (lower is better)")
    axis = numbers_axis(label, [sign * float(v) for v in near])
    if metric_text(record.metric, 0.5).endswith("%"):
        ticks = [(p, v) for p, v in axis.ticks if -1e-9 < v < 1 + 1e-9]
        return replace(axis, ticks=ticks, text=lambda v: f"{100 * v:.5g} %")
    return replace(axis, text="{:.5g}".format)


def printable(text: str, most: int) -> str:
    """Without what fonts have no glyphs for: line breaks, control characters, halves of surrogate pairs."""
    return short("".join(c if c.isprintable() else "?" for c in text), most)
