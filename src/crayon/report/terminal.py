"""How a run looks on a terminal, or in a log file when there is none.

`Progress` draws plain dicts, so that it serves a run in this process and one whose events come from a worker on
another machine. What it knows, by `kind`:

- `prepare`: what, done, total. A `what` that starts with "warning:" is a message.
- `start`: name, folder, job, epochs, steps_per_epoch, total_steps, device, precision, threads (of a worker), workers,
  parameters, train_images, source
- `step`: epoch (finished ones), step, total_steps, loss, images_per_second, seconds_left
- `epoch`: epoch, epochs, metrics
- `message`: text
- `work`: what, unit, done, total, per_second, seconds_left
- `done`: result (the content of result.json), folder, sync (the command that uploads to W&B, or "")

Other kinds are ignored, and so is a missing value.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from crayon.report.page import headlines, metric_text, seconds_text, table_of

PLAIN_SECONDS = 5.0
"""Without a terminal at most one line of progress is written in this time."""


class Progress:
    """Call it with events, inside `with`, from any thread. `file`: standard output by default."""

    def __init__(self, file: TextIO | None = None):
        self.file = sys.stdout if file is None else file
        self.live = self.file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._totals: dict[str, int] = {}
        self._epochs = 0
        self._told = 0.0
        self._console = Console(file=self.file, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._clear()

    def __call__(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            draw = getattr(self, f"_on_{event.get('kind')}", None)
            if draw is not None:
                draw({k: _printable(v) if isinstance(v, str) else v for k, v in event.items()})

    # Events.

    def _on_prepare(self, event: Mapping[str, Any]) -> None:
        what, done, total = str(event["what"]), event.get("done", 0), event.get("total", 0)
        if what.startswith("warning:"):
            self._line(Text(what, style="yellow"))
        elif self.live:
            self._bar(what, done, total, f"{done:,}/{total:,}" if total > 1 else "")
            if done >= total:
                self._drop(what)
        elif what not in self._totals or (0 < total <= done) or self._due():
            self._totals[what] = total
            self._line(Text(f"{what}  {done:,}/{total:,}" if total > 1 else what))
            if total > 1 or done < total:
                self._told = time.monotonic()

    def _on_start(self, event: Mapping[str, Any]) -> None:
        self._epochs = event.get("epochs", 0)
        workers = event.get("workers", 1)
        facts = [f"{event.get('job', '')}"]
        if event.get("train_images"):
            facts.append(f"{event['train_images']:,} images of {event.get('source') or 'training data'}")
        if event.get("parameters"):
            facts.append(f"{event['parameters']:,} parameters")
        device = [f"{event.get('device', '')}" + (f" on {workers} workers" if workers > 1 else "")]
        if event.get("precision"):
            device.append(event["precision"])
        if event.get("threads"):
            device.append(f"{event['threads']} thread{'s' if event['threads'] > 1 else ''}")
        facts.append(", ".join(filter(None, device)))
        self._line(Text("  ".join(f for f in facts if f), style="bold"))
        if event.get("folder"):
            text = f"{_short(event['folder'])}"
            if event.get("name"):
                text += f"  (--name {event['name']} goes on with it when it is interrupted)"
            self._line(Text(text, style="dim"))
        if self.live and event.get("total_steps"):
            self._bar("training", 0, event["total_steps"], "")

    def _on_step(self, event: Mapping[str, Any]) -> None:
        epoch = f"epoch {event.get('epoch', 0) + 1}/{self._epochs}" if self._epochs else "training"
        facts = []
        if event.get("loss") is not None:
            facts.append(f"loss {_loss(event['loss'])}")
        if event.get("images_per_second"):
            facts.append(f"{event['images_per_second']:,.0f} images/s")
        if event.get("seconds_left") is not None:
            facts.append(f"{_clock(event['seconds_left'])} left")
        step, total = event.get("step", 0), event.get("total_steps", 0)
        if self.live:
            self._bar("training", step, total, "  ".join(facts), shown=epoch)
        elif self._due():
            self._line(Text("  ".join([epoch, f"step {step:,}/{total:,}", *facts])))
            self._told = time.monotonic()

    def _on_work(self, event: Mapping[str, Any]) -> None:
        what, done, total = str(event["what"]), event["done"], event["total"]
        unit = event.get("unit", "images")
        facts = [f"{done:,}/{total:,} {unit}"]
        if event.get("per_second"):
            facts.append(f"{event['per_second']:,.0f} {unit}/s")
        if done < total and event.get("seconds_left") is not None:
            facts.append(f"{_clock(event['seconds_left'])} left")
        if self.live:
            self._bar(what, done, total, "  ".join(facts))
            if done >= total:
                self._drop(what)
        elif done >= total or self._due():
            self._line(Text("  ".join([what, *facts])))
            self._told = time.monotonic()

    def _on_epoch(self, event: Mapping[str, Any]) -> None:
        metrics, epochs = event.get("metrics", {}), str(event.get("epochs", self._epochs))
        facts = [f"epoch {event['epoch']:>{len(epochs)}}/{epochs}"]
        for key, value in metrics.items():
            if (match := re.fullmatch(r"train/(?:(\w+)/)?loss", key)) and value is not None:
                facts.append(f"{match[1] + ' ' if match[1] else ''}loss {_loss(value):<6}")
        telling = headlines({k: v for k, v in metrics.items() if k.startswith("val/")}, most=2)
        for key in telling[:1] if "val/accuracy" in telling else telling:
            value = metric_text(key, metrics[key])
            facts.append(f"{key.replace('/', ' ').replace('_', ' ')} {value:>{8 if '%' in value else 6}}")
        if metrics.get("images_per_second"):
            facts.append(f"{metrics['images_per_second']:>7,.0f} images/s")
        if metrics.get("seconds"):
            facts.append(f"{_clock(metrics['seconds']):>5}")
        self._line(Text("  ".join(facts)))
        self._told = time.monotonic()
        if self._bars is not None and "training" in self._tasks and "step" in metrics:
            self._bars.update(self._tasks["training"], completed=metrics["step"])

    def _on_message(self, event: Mapping[str, Any]) -> None:
        self._line(Text(str(event.get("text", "")), style="dim" if self.live else ""))

    def _on_done(self, event: Mapping[str, Any]) -> None:
        self._clear()
        result = event.get("result") or {}
        names, splits, cells = table_of(result)
        closing = self._closing(event, result)
        wide = max(map(len, [*names, *(key for key, _ in closing)]), default=0) + 2
        texts = {k: metric_text(k[0], v) for k, v in cells.items()}
        column = max([len("validation"), *map(len, texts.values())]) + 2
        self._line(Text())
        if names:
            heads = ["validation" if s == "val" else s for s in splits]
            self._line(Text(" " * wide + "".join(f"{h:>{column}}" for h in heads), style="dim"))
        for name in names:
            line = Text(f"{name.replace('_', ' '):<{wide}}")
            for split in splits:
                line.append(f"{texts.get((name, split), ''):>{column}}", "bold" if split == splits[0] else "")
            self._line(line)
        self._line(Text())
        for key, text in closing:
            self._line(Text.assemble((f"{key:<{wide}}", "dim"), text))

    def _closing(self, event: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
        lines = []
        if result.get("seconds") is not None:
            text = seconds_text(result["seconds"])
            if result.get("train_seconds"):
                text += f", {seconds_text(result['train_seconds'])} of it training"
            if result.get("images_per_second"):
                text += f" at {result['images_per_second']:,.0f} images/s"
            lines.append(("time", text))
        if event.get("folder"):
            lines.append(("report", f"{_short(event['folder'])}/report.html"))
        if event.get("sync"):
            lines.append(("W&B", f"offline; to upload: {event['sync']}"))
        return lines

    # Drawing.

    def _line(self, text: Text) -> None:
        if self.live:
            (self._bars.console if self._bars else self._console).print(text, soft_wrap=True)
        else:
            encoding = self.file.encoding or "utf-8"
            self.file.write(text.plain.rstrip().encode(encoding, "replace").decode(encoding) + "\n")
            self.file.flush()

    def _due(self) -> bool:
        return time.monotonic() - self._told >= PLAIN_SECONDS

    def _bar(self, key: str, done: int, total: int, facts: str, shown: str = "") -> None:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
                refresh_per_second=4,
                transient=True,
                expand=True,
            )
            self._bars.start()
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(shown or key, total=total, facts=facts)
        self._bars.update(
            self._tasks[key], completed=done, total=total, facts=facts, description=shown or key
        )

    def _drop(self, key: str) -> None:
        if self._bars is not None and key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
            if not self._tasks:
                self._clear()

    def _clear(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}


def _printable(text: str) -> str:
    """Names come from users and from files: no control characters to the terminal."""
    return "".join(c if c.isprintable() else " " if c == "\n" else "?" for c in text)


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(folder: str) -> str:
    """Relative to the working directory when it lies below it."""
    here = os.path.join(os.getcwd(), "")
    return str(Path(folder[len(here) :])) if folder.startswith(here) else folder
