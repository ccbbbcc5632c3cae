"""Seeds on the command line: `0..63`, `7`, `3,5,9`, `0..9,100..199`. Imports no torch."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from crayon.errors import BadInput

LARGEST = 2**63 - 1
_PART = re.compile(r"(\d+)(?:\.\.(\d+))?")


class Seeds(Sequence[int]):
    """Seeds in the order in which they were given, without a list of them: there may be many.

    Raises BadInput where the text isn't seeds.

    >>> list(Seeds("3,0..2"))
    [3, 0, 1, 2]
    """

    def __init__(self, text: str, flag: str = "--seeds"):
        self.text = text.replace(" ", "")
        self.ranges: list[range] = []
        for part in self.text.split(","):
            match = _PART.fullmatch(part)
            if not match:
                raise BadInput(
                    f"{flag} {text!r}: {part!r} is neither a seed nor a range; write 0..63, 7 or 3,5,9 (whole numbers "
                    "of at least 0, both ends included)."
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if last > LARGEST:
                raise BadInput(f"{flag} {text!r}: seeds go up to {LARGEST}, and {last} doesn't lie there.")
            if first > last:
                raise BadInput(f"{flag} {text!r}: the range {part} has no seeds; write {last}..{first}.")
            self.ranges.append(range(first, last + 1))
        self.ends = list(accumulate(r.stop - r.start for r in self.ranges))

    def distinct(self, flag: str = "--seeds") -> Seeds:
        """These. Raises BadInput where a seed is among them twice."""
        ordered = sorted(self.ranges, key=lambda r: r.start)
        for before, after in pairwise(ordered):
            if after.start < before.stop:
                raise BadInput(f"{flag} {self.text!r} has seed {after.start} twice; name each seed once.")
        return self

    @property
    def count(self) -> int:  # type: ignore[override]
        """`len`, which Python limits to what an index can hold."""
        return self.ends[-1]

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> str:
        """Those at positions start..stop-1, written as on the command line."""
        found = []
        for seeds, end in zip(self.ranges, self.ends, strict=True):
            before = end - (seeds.stop - seeds.start)
            cut = seeds[max(start - before, 0) : max(min(stop, end) - before, 0)]
            if cut:
                found.append(f"{cut[0]}..{cut[-1]}" if len(cut) > 1 else str(cut[0]))
        return ",".join(found)

    def slice(self, start: int, stop: int) -> list[int]:
        """Those at positions start..stop-1, as many of them as there are."""
        return [self[i] for i in range(start, min(stop, self.count))]

    def __getitem__(self, index):  # type: ignore[override]
        if not isinstance(index, int):
            raise TypeError("a position")
        if not 0 <= index < self.count:
            raise IndexError(index)
        k = bisect_right(self.ends, index)
        return self.ranges[k][index - (self.ends[k - 1] if k else 0)]
