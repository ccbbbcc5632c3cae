"""How findings look: a table that is folded on a terminal, one line each in a file or a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.table import Table
from rich.text import Text

from crayon.ops.doctor.findings import Finding, count
from crayon.report.terminal import Terminal
from crayon.report.words import printable

MARKS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red bold"}
NAME = 22
"""Width of the column of names."""


class Display(Terminal):
    """The doctor's report, finding by finding."""

    def __init__(self, file: TextIO | None = None):
        super().__init__(file)
        self._headline = ""

    def part(self, headline: str) -> None:
        """Stands above the next finding, if there is one."""
        self._headline = headline

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """What is being waited for, on a terminal as long as it lasts."""
        with self.console.status(f"asking: {what} ...") if self.live else contextlib.nullcontext():
            yield

    def finding(self, finding: Finding) -> None:
        if self._headline:
            self.line()
            self.line(self._headline, "bold")
            self._headline = ""
        text = Text(_one_line(finding.text))
        if finding.mend:
            text.append(f"\n→ {_one_line(finding.mend)}", style="italic")
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=8, style=MARKS[finding.state])
        grid.add_column(min_width=NAME, max_width=NAME if self.live else None, overflow="fold")
        grid.add_column(overflow="fold")
        grid.add_row(finding.state, finding.name, text)
        self.draw(grid)

    def total(self, found: Sequence[Finding]) -> None:
        errors, warnings = (sum(f.state == state for f in found) for state in ("error", "warning"))
        wrong = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
        self.line()
        self.line(wrong if errors or warnings else "nothing is wrong", "red bold" if errors else "bold")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
