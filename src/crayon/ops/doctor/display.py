"""How findings look: a table that is folded on a terminal, one line each in a file or a pipe."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from crayon.ops.doctor.findings import Finding, Pending, count
from crayon.report.terminal import Terminal
from crayon.report.words import printable

STYLES = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red bold"}
NAME_WIDTH = 22


class Display(Terminal):
    """The doctor's report, part by part."""

    def part(self, headline: str, check: Pending) -> list[Finding]:
        """Wait for a check, show what it found below the headline, and return that."""
        with self.waiting(f"asking: {check.name} ..."):
            found = check.findings()
        if found and headline:
            self.line()
            self.line(headline, "bold")
        for finding in found:
            text = Text(_one_line(finding.text))
            if finding.mend:
                text.append(f"\n→ {_one_line(finding.mend)}", style="italic")
            grid = Table.grid(padding=(0, 1))
            grid.add_column(width=8, style=STYLES[finding.state])
            grid.add_column(
                min_width=NAME_WIDTH, max_width=NAME_WIDTH if self.live else None, overflow="fold"
            )
            grid.add_column(overflow="fold")
            grid.add_row(finding.state, finding.name, text)
            self.draw(grid)
        return found

    def total(self, found: list[Finding]) -> None:
        """How many errors and warnings there are."""
        errors, warnings = (sum(f.state == state for f in found) for state in ("error", "warning"))
        wrong = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
        self.line()
        self.line(wrong if errors or warnings else "nothing is wrong", "red bold" if errors else "bold")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
