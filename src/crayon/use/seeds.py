"""Seeds on the command line: `0..63`, `7`, `3,5,9`, `0..9,100..199`. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, pairwise

from crayon.errors import BadInput

LARGEST = 2**63 - 1
_PART = re.compile(r"(\d+)(?:\.\.(\d+))?")


class Seeds:
    """Seeds in the order in which they were given, without a list of them: there may be many.

    most: how many are taken. Raises BadInput where the text isn't seeds.

    >>> list(Seeds("3,0..2"))
    [3, 0, 1, 2]
    """

    def __init__(self, text: str, most: int | None = None):
        self.text = text.replace(" ", "")
        self.ranges: list[range] = []
        for part in self.text.split(","):
            match = _PART.fullmatch(part)
            if not match:
                raise BadInput(
                    f"--seeds {text!r}: {part!r} is neither a seed nor a range; write 0..63, 7 or 3,5,9 (whole numbers "
                    "of at least 0, both ends included)."
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if last > LARGEST:
                raise BadInput(f"--seeds {text!r}: seeds go up to {LARGEST}, and {last} doesn't lie there.")
            if first > last:
                raise BadInput(f"--seeds {text!r}: the range {part} has no seeds; write {last}..{first}.")
            self.ranges.append(range(first, last + 1))
        self.count = sum(r.stop - r.start for r in self.ranges)
        """`len`, which Python limits to what an index can hold."""
        if most and self.count > most:
            raise BadInput(f"--seeds {text!r} are {self.count:,}; at most {most} are drawn.")

    def distinct(self) -> Seeds:
        """These. Raises BadInput where a seed is among them twice."""
        for before, after in pairwise(sorted(self.ranges, key=lambda r: r.start)):
            if after.start < before.stop:
                raise BadInput(f"--seeds {self.text!r} has seed {after.start} twice; name each seed once.")
        return self

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return chain(*self.ranges)

    def part(self, start: int, stop: int) -> str:
        """Those at positions start..stop-1, written as on the command line."""
        cut = self._cut(start, stop)
        return ",".join(f"{r.start}..{r.stop - 1}" if r.stop - r.start > 1 else str(r.start) for r in cut)

    def slice(self, start: int, stop: int) -> list[int]:
        """Those at positions start..stop-1, as many of them as there are."""
        return list(chain(*self._cut(start, stop)))

    def _cut(self, start: int, stop: int) -> list[range]:
        found, before = [], 0
        for seeds in self.ranges:
            found.append(seeds[max(start - before, 0) : max(stop - before, 0)])
            before += seeds.stop - seeds.start
        return [cut for cut in found if cut]
