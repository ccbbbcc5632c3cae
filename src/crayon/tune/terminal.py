"""How a sweep looks on a terminal, or in a log file when there is none. Imports neither torch, Optuna nor Ray."""

from __future__ import annotations

import math
import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crayon.report.terminal import Terminal, plain_table
from crayon.report.words import clock, metric_text, plain, printable, seconds_text
from crayon.tune.records import SweepRecord, TrialRecord
from crayon.tune.space import Dimension

PLAIN_SECONDS = 30.0
"""Without a terminal, a line of progress is written only when there was no other line for this time."""
Column = list[str]  # its head, then its cells


class SweepDisplay(Terminal):
    """A sweep: a view of its trials that is redrawn, or a line for each that ends. Call it inside `with`."""

    def __init__(self, file: TextIO | None = None):
        super().__init__(file)
        # Replaced as a whole, so that the redrawing thread can do without the lock: it holds rich's own lock, which
        # whoever prints a line waits for while holding this one.
        self._shown: tuple[_Sweep, float | None] | None = None
        self._told: dict[int, str] | None = None
        self._view = Live(get_renderable=self._draw, console=self.console, transient=True)

    def clear(self) -> None:
        self._view.stop()

    def show(self, record: SweepRecord, seconds_left: float | None = None) -> None:
        """The sweep's state now. What has ended in the first record shown is taken for an earlier command's."""
        sweep, left = _Sweep(record), _finite(seconds_left)
        with self.lock:
            if self._told is None:
                self._told = {t.number: t.state for t in sweep.ended}
                if self.live:
                    self._view.start()
                if ended := len(sweep.ended):
                    text = f"Going on with {ended} finished trial{'s' if ended > 1 else ''}"
                    self.line("; ".join(filter(None, [text, sweep.best])) + ".", "dim")
            # A failed trial that is tried again ends a second time, in another state.
            news = [t for t in sweep.ended if self._told.get(t.number) != t.state]
            self._told |= {t.number: t.state for t in news}
            if self.live:
                self._shown = sweep, None if left is None else time.monotonic() + left
                return
            for trial in news:
                self.line(sweep.trial_text(trial))
            if self.silent_for(PLAIN_SECONDS):
                running = ", ".join(f"trial {t.number} epoch {t.epoch}/{t.epochs}" for t in sweep.running)
                self.line("   ".join(filter(None, [sweep.counted, running, sweep.facts(left)])))

    def message(self, text: str) -> None:
        with self.lock:
            self.line(printable(str(text)), "dim")

    def result(self, record: SweepRecord, commands: Mapping[str, str]) -> None:
        """The last output: the best trials, and `commands` by what they are for."""
        sweep = _Sweep(record)
        with self.lock:
            self.clear()
            self.line()
            for columns in sweep.final_tables(self.console.width if self.live else None):
                self.draw(_table(columns, bold=1))
                self.line()
            self.pairs(
                [*sweep.closing(), *((printable(str(k)), printable(str(v))) for k, v in commands.items())]
            )

    def _draw(self) -> Text | Group:
        if self._shown is None:
            return Text()
        sweep, until = self._shown
        width, height = self.console.size
        facts = sweep.facts(None if until is None else max(0.0, until - time.monotonic()))
        room = max(0, width - len(sweep.counted) - cell_len(facts) - 2)
        done = min(room, int(room * sweep.share))
        line = ("━" * done, "cyan"), ("─" * (room - done), "dim")
        bar = Text.assemble(f"{sweep.counted} ", *line, f" {facts}", no_wrap=True, overflow="ellipsis")
        # Of a view higher than the terminal, the upper part could not be erased.
        best, most = sweep.ranked[:5], max(1, height - len(sweep.ranked[:5]) - 4)
        running, more = sweep.running[:most], len(sweep.running[most:])
        if not running and not best:
            return Group(bar)
        columns = sweep.live_columns([*running, *best], width)
        between = Text(f"and {more} more running" if more else "", "dim")
        end = len(running) + 1
        return Group(bar, _table(columns, end=end), between, _table(columns, end, bold=end, head=False))


def space_help(space: Mapping[str, Dimension]) -> str:
    """A job's own dimensions, for its `--help`."""
    flags = {f"--space.{name.replace('_', '-')}": str(dimension) for name, dimension in space.items()}
    wide = max(map(len, flags), default=0) + 6
    written = "low..high, low..high:log, or a,b,c; one value fixes it."
    lines = [f"   {flag:<{wide}}{text}" for flag, text in flags.items()]
    text = f"any setting can be a dimension by its dotted name: {written}"
    wrapped = textwrap.fill(
        text, shutil.get_terminal_size().columns, initial_indent="   ", subsequent_indent="   "
    )
    return "\n".join([*lines, wrapped])


class _Sweep:
    """A record in words and tables."""

    def __init__(self, record: SweepRecord):
        # Without figures that are no numbers: comparisons with them are false either way.
        trials = [replace(t, value=_finite(t.value), seconds=_finite(t.seconds)) for t in record.trials]
        self.record = replace(record, trials=tuple(trials))
        self.states = Counter(t.state for t in trials)
        self.ended = [t for t in trials if t.state in ("complete", "pruned", "failed")]
        self.running = [t for t in trials if t.state == "running"]
        sign = -1 if record.direction == "max" else 1
        self.ranked = sorted(self.record.finished, key=lambda t: (sign * t.reached, t.number))
        self.planned = max(record.planned, len(trials), 1)
        self.share = (len(self.ended) + sum(t.epoch / max(t.epochs, 1) for t in self.running)) / self.planned
        failed = f" ({self.states['failed']} failed)" if self.states["failed"] else ""
        self.counted = f"trials {len(self.ended)}/{self.planned}{failed}"
        self.metric = printable(plain(record.metric))
        self.best = (
            f"best {self.value(self.ranked[0])} (trial {self.ranked[0].number})" if self.ranked else ""
        )

    def value(self, trial: TrialRecord) -> str:
        return metric_text(self.record.metric, trial.value)

    def facts(self, left: float | None) -> str:
        return "  ".join(filter(None, [self.best, "" if left is None else f"{clock(left)} left"]))

    def trial_text(self, trial: TrialRecord) -> str:
        end = f"{trial.state} after epoch {trial.epoch}/{trial.epochs}"
        head = f"trial {trial.number:>{len(str(self.planned - 1))}}  {end:<26}"
        params = "  ".join(f"{name} {text}" for name, text in self.columns([trial])[4:])
        return "   ".join(filter(None, [head, f"{self.metric} {self.value(trial):>7}", params, self.best]))

    def closing(self) -> list[tuple[str, str]]:
        lines = [("trials", ", ".join(f"{count} {state}" for state, count in sorted(self.states.items())))]
        if self.ranked:
            best, values = self.ranked[0].number, {t.number: self.value(t) for t in self.ranked}
            note = f" (preset {values[0]})" if best and 0 in values else "" if best else " (the preset)"
            lines.append(("best", f"trial {best}  {self.metric} {values[best]}{note}"))
        return lines

    def columns(self, trials: Sequence[TrialRecord]) -> list[Column]:
        """Four for the trials' own state, then one for each metric beside the value and for each dimension."""
        columns = [
            ["trial", *(str(t.number) if t.number else "preset 0" for t in trials)],
            ["state", *(t.state for t in trials)],
            ["epoch", *(f"{t.epoch}/{t.epochs}" for t in trials)],
            [self.metric, *map(self.value, trials)],
        ]
        for metric in self.record.beside:
            columns.append(
                [printable(plain(metric)), *(metric_text(metric, t.metrics.get(metric)) for t in trials)]
            )
        for name, dimension in self.record.space.items():
            cells = (_parameter(dimension, t.params.get(name, "–")) for t in trials)
            columns.append([printable(name), *cells])
        return columns

    def live_columns(self, trials: Sequence[TrialRecord], width: int) -> list[Column]:
        """As many parameters as fit, by the ends of their names where the dotted ones don't."""
        columns = self.columns(trials)
        if _width(columns) > width:
            ends = Counter(c[0].rpartition(".")[2] for c in columns)
            for column in columns:
                end = column[0].rpartition(".")[2]
                texts = [end if ends[end] == 1 else column[0], *column[1:]]
                column[:] = [t if cell_len(t) <= 14 else f"{set_cell_size(t, 13)}…" for t in texts]
            columns = [c for c in columns if c[0] != "epochs"]  # the column "epoch" shows them as well
        left_out = 0
        while len(columns) > 4 and _width(columns) > width - (5 if left_out else 0):
            columns.pop()
            left_out += 1
        return [*columns, [f"+{left_out}", *("" for _ in trials)]] if left_out else columns

    def final_tables(self, width: int | None) -> list[list[Column]]:
        """The best trials; columns beyond `width` make tables below, by rank and trial again."""
        front = self.record.front if self.record.objective == "pareto" else ()
        shown = [t for rank, t in enumerate(self.ranked) if rank < 10 or t in front]
        trial, state, (_, *trained), value, *parameters = self.columns(shown)
        keys = [["rank", *(str(self.ranked.index(t) + 1) for t in shown)], trial]
        times = ("–" if t.seconds is None else seconds_text(t.seconds) for t in shown)
        n = len(self.record.beside)
        marks = [["front", *("front" if t in front else "" for t in shown)]] if front else []
        effort = [["training time", *times], ["trained", *trained]]
        columns = [state, value, *parameters[:n], *effort, *marks, *parameters[n:]]
        tables = [keys]
        for column in columns:
            if width and tables[-1] is not keys and _width([*tables[-1], column]) > width:
                tables.append(keys)
            tables[-1] = [*tables[-1], column]
        return tables if shown else []


def _parameter(dimension: Dimension, value: Any) -> str:
    """As many decimals for all of a dimension: three digits of its range, or two of a log-uniform one's low end."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or dimension.kind == "choice":
        return printable(str(value))
    if dimension.kind == "int" or not math.isfinite(value):
        return f"{value:>{len(str(dimension.high))}}"
    span = (dimension.low if dimension.log else (dimension.high or 0) - (dimension.low or 0)) or 1
    decimals = (1 if dimension.log else 2) - math.floor(math.log10(abs(span)))
    return f"{value:.2e}" if decimals > 5 or abs(value) >= 1e6 else f"{value:.{max(decimals, 0)}f}"


def _table(
    columns: Sequence[Column], start: int = 1, end: int | None = None, bold: int = 0, head: bool = True
) -> Table:
    """The rows from `start` to `end` of a table, as wide as all of it; row `bold` stands out."""
    table = plain_table(show_header=head, width=_width(columns))
    for column in columns:
        side: Literal["left", "right"] = "left" if column[0] == "state" else "right"
        table.add_column(column[0], justify=side, width=_width([column]), no_wrap=True)
    for number, row in enumerate([*zip(*columns, strict=True)][start:end], start):
        table.add_row(*map(Text, row), style="bold" if number == bold else "")
    return table


def _width(columns: Sequence[Column]) -> int:
    return sum(max(map(cell_len, column)) + 2 for column in columns) - 2


def _finite(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
