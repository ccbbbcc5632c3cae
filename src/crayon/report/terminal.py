"""What commands show: drawn on a terminal that can, plain lines in a file, a pipe and elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from crayon.report.contents import facts_of_images, table_of_images
from crayon.report.events import EpochEnd, Event, Finished, Images, Message, Progress, Started, Step
from crayon.report.words import clock, headlines, metric_text, plain, printable, seconds_text, table_of

PLAIN_SECONDS = 5.0
"""Without a terminal, how far a run is is written only when there was no other line for this time."""
CLASSES_SHOWN = 12
"""Lines that the table of a run's images has at most for its classes."""
_WITHOUT_UNICODE = str.maketrans({"→": "->", "–": "-", "…": "..."})
Self = TypeVar("Self", bound="Terminal")


class Terminal:
    """Where lines and tables go. `file`: standard output by default.

    Subclasses hold `lock` while they draw, so that they may be called from any thread. What stays on the screen only
    for a while needs `live`: a terminal that moves its cursor and shows what bars and rules are made of.
    """

    def __init__(self, file: TextIO | None = None):
        self.file = sys.stdout if file is None else file
        self._encoding = self.file.encoding or "utf-8"
        self._unicode = self._encoding.lower().startswith("utf")
        self.live = self.file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") and self._unicode
        self.console = Console(file=self.file, highlight=False, markup=False, emoji=False)
        self.lock = threading.Lock()
        self._last_line = -math.inf

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.clear()

    def clear(self) -> None:
        """Take away what is shown for a while only."""

    def line(self, text: str = "", style: str = "") -> None:
        """One line, however long: nothing in it is broken, so that commands can be copied."""
        self.draw(Text(printable(text), style=style))

    def waiting(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Show, on a terminal, what is waited for within the block."""
        return self.console.status(what) if self.live else contextlib.nullcontext()

    def pairs(self, pairs: Iterable[tuple[str, str]], key_width: int = 0) -> None:
        """A line for each key and value."""
        pairs = list(pairs)
        width = max([key_width, *(cell_len(key) for key, _ in pairs)]) + 2
        for key, text in pairs:
            self.draw(Text.assemble((set_cell_size(key, width), "dim"), printable(text)))

    def draw(self, what: Text | Table) -> None:
        """Text as one line, or a table, which may be wider than the terminal only where it has a width of its own."""
        if self.live:
            self.console.print(what, soft_wrap=isinstance(what, Text), crop=False)
        else:
            wide = self.console.options.update(width=100_000)
            drawn = "".join(segment.text for segment in self.console.render(what, wide))
            for text in drawn.rstrip("\n").split("\n"):
                text = text.rstrip() if self._unicode else text.rstrip().translate(_WITHOUT_UNICODE)
                self.file.write(text.encode(self._encoding, "replace").decode(self._encoding) + "\n")
        self.file.flush()
        self._last_line = time.monotonic()

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing was written for so long."""
        return time.monotonic() - self._last_line >= seconds


class RunDisplay(Terminal):
    """A run, or a command that uses a model. Call it with events, inside `with`."""

    def __init__(self, file: TextIO | None = None):
        super().__init__(file)
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._begun: set[str] = set()
        self._epochs = 0

    def __call__(self, event: Event) -> None:
        with self.lock:
            match event:
                case Message(text, warning):
                    self.line(f"warning: {text}" if warning else text, "yellow" if warning else "dim")
                case Progress():
                    self._progress(event)
                case Images():
                    self._images(event)
                case Started():
                    self._started(event)
                case Step():
                    self._step(event)
                case EpochEnd():
                    self._epoch(event)
                case Finished():
                    self._finished(event)

    def _progress(self, event: Progress) -> None:
        what, done, total = printable(event.what), event.done, event.total
        facts = [f"{done:,}/{total:,} {event.unit}".rstrip()] if total > 1 or event.unit else []
        if event.per_second:
            facts.append(f"{event.per_second:,.0f} {event.unit}/s")
        if done < total and event.seconds_left is not None:
            facts.append(f"{clock(event.seconds_left)} left")
        if self.live:
            self._bar(what, done, total, facts)
            if done >= total and self._bars is not None:
                self._bars.remove_task(self._tasks.pop(what))
                if not self._tasks:
                    self.clear()
        elif what not in self._begun or (facts and done >= total) or self.silent_for(PLAIN_SECONDS):
            self._begun.add(what)
            self.line("  ".join([what, *facts]))

    def _images(self, event: Images) -> None:
        head, lines = table_of_images(event.about, CLASSES_SHOWN)
        table = plain_table()
        for name in head:
            table.add_column(name, justify="right" if name else "left")
        for line in lines:
            table.add_row(*map(printable, line))
        self.draw(table)
        facts = facts_of_images(event.about)
        self.pairs(pair for pair in facts if pair[0] != "warning")
        for text in event.about["warnings"]:
            self.line(f"warning: {text}", "yellow")

    def _started(self, event: Started) -> None:
        self._epochs = event.epochs
        where = event.device + (f" on {event.workers} workers" if event.workers > 1 else "")
        threads = f", {event.threads} thread{'s' if event.threads > 1 else ''}" if event.threads else ""
        images, parameters = f"{event.train_images:,} images", f"{event.parameters:,} parameters"
        what = [event.job, f"{images} of {event.source}", parameters, f"{where}, {event.precision}{threads}"]
        self.line("  ".join(what), "bold")
        self.line(
            f"{_short(event.folder)}  (--name {event.name} goes on with it when it is interrupted)", "dim"
        )
        if self.live:
            self._bar("training", 0, event.total_steps, [])

    def _step(self, event: Step) -> None:
        epoch = f"epoch {event.epoch + 1}/{self._epochs}" if self._epochs else "training"
        rate, left = f"{event.images_per_second:,.0f} images/s", f"{clock(event.seconds_left)} left"
        facts = [f"loss {_loss(event.loss)}", rate, left]
        if self.live:
            self._bar("training", event.step, event.total_steps, facts, shown=epoch)
        elif self.silent_for(PLAIN_SECONDS):
            self.line("  ".join([epoch, f"step {event.step:,}/{event.total_steps:,}", *facts]))

    def _epoch(self, event: EpochEnd) -> None:
        metrics, epochs = event.metrics, str(event.epochs)
        facts = [f"epoch {event.epoch:>{len(epochs)}}/{epochs}"]
        for key, value in metrics.items():
            if match := re.fullmatch(r"train/(?:(\w+)/)?loss", key):
                facts.append(f"{match[1] + ' ' if match[1] else ''}loss {_loss(value):<6}")
        telling = headlines({k: v for k, v in metrics.items() if k.startswith("val/")}, most=2)
        if not telling and event.monitor in metrics:
            telling = [event.monitor]  # a task of one's own has metrics of its own
        alone = telling[:1] == ["val/accuracy"] and telling[1:] != ["val/balanced_accuracy"]
        for key in telling[:1] if alone else telling:
            text = metric_text(key, metrics[key])
            facts.append(f"{plain(key)} {text:>{8 if '%' in text else 6}}")
        if "images_per_second" in metrics:
            facts.append(f"{metrics['images_per_second']:>7,.0f} images/s")
        if "seconds" in metrics:
            facts.append(f"{clock(metrics['seconds']):>5}")
        self.line("  ".join(facts))
        if self._bars is not None and "training" in self._tasks and "step" in metrics:
            self._bars.update(self._tasks["training"], completed=metrics["step"])

    def _finished(self, event: Finished) -> None:
        self.clear()
        names, splits, cells = table_of(event.result)
        self.line()
        if names:
            table = plain_table()
            table.add_column("")
            for split in splits:
                head = "validation" if split == "val" else split
                table.add_column(head, justify="right", style="bold" if split == splits[0] else "")
            for name in names:
                table.add_row(plain(name), *(cells.get((name, split), "") for split in splits))
            self.draw(table)
        self.line()
        self.pairs(_closing(event), key_width=max(map(len, names), default=0))

    def _bar(self, key: str, done: int, total: int, facts: list[str], shown: str = "") -> None:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self.console,
                refresh_per_second=4,
                transient=True,
                expand=True,
            )
            self._bars.start()
        state: dict[str, Any] = {"total": total, "facts": "  ".join(facts)}
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(shown or key, **state)
        self._bars.update(self._tasks[key], completed=done, description=shown or key, **state)

    def clear(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}


def plain_table(**options: Any) -> Table:
    """A table without rules, its columns two spaces apart."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)


def _closing(event: Finished) -> list[tuple[str, str]]:
    result: Mapping[str, Any] = event.result
    lines = []
    if result.get("seconds") is not None:
        text = seconds_text(result["seconds"])
        if result.get("train_seconds"):
            text += f", {seconds_text(result['train_seconds'])} of it training"
        if result.get("images_per_second"):
            text += f" at {result['images_per_second']:,.0f} images/s"
        lines.append(("time", text))
    lines.append(("report", f"{_short(event.folder)}/report.html"))
    if event.sync:
        lines.append(("W&B", f"offline; to upload: {event.sync}"))
    return lines


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _short(folder: str) -> str:
    """Relative to the working directory when it lies below it."""
    try:
        here = os.path.join(os.getcwd(), "")
    except FileNotFoundError:  # deleted meanwhile
        return folder
    return str(Path(folder[len(here) :])) if folder.startswith(here) else folder
