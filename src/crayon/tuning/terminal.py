"""How a sweep looks on a terminal, or in a log file when there is none. Imports neither torch, Optuna nor Ray."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crayon.report.terminal import Terminal, plain_table
from crayon.report.words import clock, plain, printable
from crayon.tuning.records import OVER, State, SweepRecord, TrialRecord
from crayon.tuning.space import Dimension
from crayon.tuning.words import called, counted, trial_table, value_text

LEAST_DONE = 0.5
"""Trials by which the pace is told."""
PLAIN_SECONDS = 30.0
"""Without a terminal, a line of progress is written only when there was no other line for this time."""


class SweepDisplay(Terminal):
    """A sweep: a view of its trials that is redrawn, or a line for each that ends. Call it inside `with`."""

    def __init__(self, file: TextIO | None = None):
        super().__init__(file)
        # Replaced as a whole, so that the redrawing thread can do without the lock: it holds rich's own lock, which
        # whoever prints a line waits for while holding this one.
        self._shown: tuple[SweepRecord, float | None] | None = None
        self._reported: dict[int, State] | None = None
        self._started = time.monotonic()
        self._before: tuple[float, float] | None = None
        """When trials began to run under this command, and how many were over by then."""
        self._view = Live(get_renderable=self._draw, console=self.console, transient=True)

    def __enter__(self) -> SweepDisplay:
        if self.live:
            self._view.start(refresh=True)
        return self

    def clear(self) -> None:
        self._view.stop()

    def show(self, record: SweepRecord, seconds_left: float | None = None) -> None:
        """The sweep's state now. What has ended in the first record shown is taken for an earlier command's."""
        every = (*record.trials, *record.confirming)
        over = {t.number: t.state for t in every if t.state in OVER}
        with self.lock:
            if self._before is None:
                self._before = time.monotonic(), _done(record)
            if self._reported is None:
                self._reported = over
                if count := counted(record)[0]:
                    text = f"Going on with {count} finished trial{'s' if count > 1 else ''}"
                    self.line("; ".join(filter(None, [text, _best(record)])) + ".", "dim")
            # A failed trial that is tried again ends a second time, in another state.
            news = [t for t in every if t.number in over and self._reported.get(t.number) != t.state]
            self._reported |= over
            if self.live:
                self._shown = record, None if seconds_left is None else time.monotonic() + seconds_left
                return
            for trial in news:
                self.line(_trial_line(record, trial))
            if self.silent_for(PLAIN_SECONDS):
                running = ", ".join(f"trial {called(t)} epoch {t.epoch}/{t.epochs}" for t in _running(record))
                facts = [_progress(record), running, *self._facts(record, seconds_left)]
                self.line("   ".join(filter(None, facts)))

    def message(self, text: str) -> None:
        with self.lock:
            self.line(printable(text), "dim")

    def result(self, record: SweepRecord, lines: Mapping[str, str], commands: Mapping[str, str]) -> None:
        """The last output: the best trials, `lines` by what they say, and commands to copy by what they do."""
        ranked, best = record.ranked, record.best
        front = record.front if record.plan.objective == "pareto" else []
        pairs = [("trials", counted(record)[1])]
        if best and record.preset:
            same = best is record.preset
            preset = "the preset" if same else f"preset {value_text(record, record.preset)}"
            value = f"{plain(record.plan.metric)} {value_text(record, best)}"
            pairs.append(("best", f"trial {best.number}  {value} ({preset})"))
        with self.lock:
            self.clear()
            self.line()
            if best:
                shown = [t for rank, t in enumerate(ranked) if rank < 10 or t in front or t is best]
                self.draw(_table(record, shown, self.console.width if self.live else None, shown.index(best)))
                self.line()
            wide = max(map(cell_len, (*commands, *lines, *(name for name, _ in pairs))), default=0)
            self.pairs([*pairs, *((name, printable(line)) for name, line in lines.items())], key_width=wide)
            for name, command in commands.items():
                room = self.console.width - wide - 4 if self.live else 1_000_000
                first, *more = _broken(printable(command), room)
                self.pairs([(name, first), *(("", f"  {line}") for line in more)], key_width=wide)

    def _draw(self) -> Text | Group:
        if self._shown is None:
            return Text(f"{clock(time.monotonic() - self._started)}  preparing the sweep", style="dim")
        record, until = self._shown
        width, height = self.console.size
        facts = "  ".join(self._facts(record, None if until is None else max(0.0, until - time.monotonic())))
        room = max(0, width - len(_progress(record)) - cell_len(facts) - 2)
        running, best = _running(record), record.ranked[:5]
        filled = min(room, int(room * _done(record) / max(_planned(record), 1)))
        line = ("━" * filled, "cyan"), ("─" * (room - filled), "dim")
        bar = Text.assemble(f"{_progress(record)} ", *line, f" {facts}", no_wrap=True, overflow="ellipsis")
        # Of a view higher than the terminal, the upper part could not be erased.
        most = max(1, height - len(best) - 6)
        more = f"and {len(running) - most} more running" if len(running) > most else ""
        table = _table(record, [*best, *running[:most]], width, bold=0 if best else -1)
        return Group(bar, table, Text(more, "dim"))

    def _facts(self, record: SweepRecord, seconds_left: float | None) -> list[str]:
        """The best, the time since the start, and the time left: at most `seconds_left`, by the pace so far."""
        now, left = time.monotonic(), [] if seconds_left is None else [seconds_left]
        begun, before = self._before or (now, 0.0)
        done = _done(record)
        if done - before >= LEAST_DONE:
            left.append((_planned(record) - done) * (now - begun) / (done - before))
        times = clock(now - self._started) + (f", {clock(max(0.0, min(left)))} left" if left else "")
        return [*filter(None, [_best(record)]), times]


def space_help(space: Mapping[str, Dimension]) -> str:
    """A job's own dimensions, for its `--help`."""
    flags = {f"--space.{name.replace('_', '-')}": str(dimension) for name, dimension in space.items()}
    wide = max(map(len, flags), default=0) + 6
    lines = [f"   {flag:<{wide}}{text}" for flag, text in flags.items()]
    lines.append("   any setting can be a dimension by its dotted name:")
    lines.append("   low..high, low..high:log, or a,b,c; one value fixes it,")
    return "\n".join([*lines, "   and '0..0.5 if epochs>6' is searched only there."])


def _table(record: SweepRecord, trials: Sequence[TrialRecord], room: int | None, bold: int = 0) -> Table:
    """A table of trials, of which row `bold` stands out. The last columns are left out where there is no room."""
    head, rows = trial_table(record, trials)
    table = plain_table(caption_justify="right")
    for name, *cells in zip(head, *rows, strict=True):
        words = name if room is None else name.replace(" ", "\n").replace(".", ".\n")
        if room is not None:
            room -= max(map(cell_len, [*words.split("\n"), *cells])) + 2
            if room < -2:
                table.caption = f"and {len(head) - len(table.columns)} more settings"
                break
        side: Literal["left", "right"] = "left" if name == "state" else "right"
        table.add_column(words, justify=side, no_wrap=True, vertical="bottom")
    for number, row in enumerate(rows):
        table.add_row(*map(Text, row[: len(table.columns)]), style="bold" if number == bold else "")
    return table


def _running(record: SweepRecord) -> list[TrialRecord]:
    return [t for t in (*record.trials, *record.confirming) if t.state == "running"]


def _progress(record: SweepRecord) -> str:
    counts = {state: sum(t.state == state for t in record.trials) for state in ("pruned", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    planned = max(record.planned, len(record.trials))
    runs = [t.state in OVER for t in record.confirming if record.verdict]
    confirming = f", confirming {sum(runs)}/{len(runs)}" if runs else ""
    return f"trials {counted(record)[0]}/{planned}" + (f" ({told})" if told else "") + confirming


def _planned(record: SweepRecord) -> int:
    """How many trials there are to be, with the runs that confirm some once the search is over."""
    if record.verdict is None:
        return max(record.planned, len(record.trials))
    return len(record.trials) + len(record.confirming)


def _done(record: SweepRecord) -> float:
    """How many trials are over, those that run by the share of their epochs."""
    over = counted(record)[0] + sum(t.state in OVER for t in record.confirming if record.verdict)
    return over + sum(t.part[0] / max(t.part[1], 1) for t in _running(record))


def _broken(command: str, room: int) -> list[str]:
    """A command on lines of so many cells, as far as its words allow, that a shell reads as one when it is pasted.

    >>> _broken("tune --name 'my sweep'", 14)
    ['tune --name \\\\', "'my sweep'"]
    """
    lines = [""]
    for word in re.findall(r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"])+", command):
        if lines[-1] and cell_len(f"{lines[-1]} {word} \\") > room:
            lines[-1] += " \\"
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _best(record: SweepRecord) -> str:
    return f"best {value_text(record, record.best)} (trial {record.best.number})" if record.best else ""


def _trial_line(record: SweepRecord, trial: TrialRecord) -> str:
    ended = f"{trial.state} after epoch {trial.epoch}/{trial.epochs}"
    head, (row,) = trial_table(record, [trial])
    others = [f"{name} {text}" for name, text in zip(head[4:], row[4:], strict=True) if name != "front"]
    parts = [
        f"trial {called(trial):>2}  {ended:<26}",
        f"{head[3]} {row[3]:>7}",
        "  ".join(others),
        _best(record),
    ]
    return "   ".join(filter(None, parts))
