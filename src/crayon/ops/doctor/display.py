"""How findings look: lines on a terminal, the same without colours in a file or a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crayon.ops.doctor.findings import Finding, count

MARKS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red bold"}
NAME = 22
"""Width of the column of names."""


class Display:
    """`file`: standard output by default."""

    def __init__(self, file: TextIO | None = None):
        self.file = sys.stdout if file is None else file
        self.live = self.file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._console = Console(
            file=self.file, highlight=False, markup=False, emoji=False, soft_wrap=not self.live
        )
        self._arrow = "→" if (self.file.encoding or "utf-8").lower().startswith("utf") else "->"
        self._headline = ""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self.file.flush()

    def head(self, text: str) -> None:
        self._print(Text(text, style="bold"))

    def line(self, text: str) -> None:
        self._print(Text(text))

    def part(self, headline: str) -> None:
        """Stands above the next finding, if there is one."""
        self._headline = headline

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """What is being waited for, on a terminal as long as it lasts."""
        if not self.live:
            yield
            return
        with self._console.status(f"asking: {what} ..."):
            yield

    def finding(self, finding: Finding) -> None:
        if self._headline:
            self._print(Text(f"\n{self._headline}", style="bold"))
            self._headline = ""
        mark = Text(f"{finding.state:8s}", style=MARKS[finding.state])
        text = Text(_printable(finding.text))
        if finding.mend:
            text.append(f"\n{self._arrow} {_printable(finding.mend)}", style="italic" if self.live else "")
        if self.live:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(width=8)
            grid.add_column(width=NAME, overflow="fold")
            grid.add_column(overflow="fold")
            grid.add_row(mark, finding.name, text)
            self._print(grid)
        else:
            first, _, mend = text.plain.partition("\n")
            self._print(Text(f"{mark.plain} {finding.name:{NAME}s} {first}"))
            if mend:
                self._print(Text(f"{'':8s} {'':{NAME}s} {mend}"))

    def total(self, found: Sequence[Finding]) -> None:
        errors, warnings = (sum(f.state == state for f in found) for state in ("error", "warning"))
        text = (
            f"{count(errors, 'error')}, {count(warnings, 'warning')}"
            if errors or warnings
            else "nothing is wrong"
        )
        self._print(Text(f"\n{text}", style="red bold" if errors else "bold"))

    def _print(self, what: Text | Table) -> None:
        self._console.print(what)
        self.file.flush()


def _printable(text: str) -> str:
    """On one line, without control characters, which names of files may hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
