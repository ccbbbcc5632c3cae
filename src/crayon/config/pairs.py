"""Settings that are written as two numbers: a size, 96x64, and a range of values, -1024..3071."""

from __future__ import annotations

import math
import re
from typing import Any

from crayon.errors import BadInput

Size = int | tuple[int, int]
"""The side of a square, or (height, width) of another rectangle, in pixels."""


def sides(size: Any) -> tuple[int, int]:
    """(height, width) of a number, a pair or a text such as 96x64. Raises ValueError for anything else.

    >>> sides(64), sides("96x64"), sides((96, 64))
    ((64, 64), (96, 64), (96, 64))
    """
    if isinstance(size, str):
        size = [int(side) for side in re.split("[xX×]", size)]
    if isinstance(size, int):
        size = (size, size)
    height, width = size if len(size) == 2 else size * 2
    return int(height), int(width)


def size_of(height: int, width: int) -> Size:
    """One number for a square.

    >>> size_of(64, 64), size_of(96, 64)
    (64, (96, 64))
    """
    return height if height == width else (height, width)


def size_text(height: int, width: int) -> str:
    """As it is written on the command line.

    >>> size_text(64, 64), size_text(96, 64)
    ('64', '96x64')
    """
    return str(height) if height == width else f"{height}x{width}"


def canonical_size(flag: str, size: Any, low: int, high: int) -> int | str:
    """A size as it is recorded: an int for a square. Raises BadInput for what is none, or has a side out of range; a
    single number's range is looked at with all others."""
    if isinstance(size, int):
        return size
    try:
        height, width = sides(size)
    except (TypeError, ValueError):
        raise BadInput(
            f"{flag} {size} is no size; write 64, or HEIGHTxWIDTH such as 96x64 (higher than wide)."
        ) from None
    for side in (height, width):
        if height != width and not low <= side <= high:
            raise BadInput(f"{flag} {size} is out of range; each side must be between {low} and {high}.")
    return height if height == width else size_text(height, width)


def ends(text: str) -> tuple[float, float]:
    """(low, high) of a range. Raises ValueError.

    >>> ends("-1024..3071")
    (-1024.0, 3071.0)
    """
    low, _, high = text.partition("..")
    return float(low), float(high)


def range_text(low: float, high: float) -> str:
    """A range as it is written and recorded.

    >>> range_text(-1024.0, 3071.5)
    '-1024..3071.5'
    """
    return f"{low:.10g}..{high:.10g}"


def canonical_range(flag: str, value: Any) -> str:
    """A range, or auto, as it is recorded. Raises BadInput for what is none, or empty."""
    if value == "auto":
        return value
    try:
        low, high = ends(value) if isinstance(value, str) else map(float, value)
    except (TypeError, ValueError):
        raise BadInput(f"{flag} {value} is no range; write LOW..HIGH such as -1024..3071, or auto.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(
            f"{flag} {value} is empty or upside down; write LOW..HIGH, two finite numbers, the smaller one first."
        )
    return range_text(low, high)
