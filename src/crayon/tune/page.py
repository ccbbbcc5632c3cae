"""`report.html` of a sweep: what it found, in one page that needs no network, no scripts and no other file.

Also how a record's parts are put in words, here and in the pictures.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crayon.report.page import PAGE, escape, pictures, table, tag
from crayon.report.style import short
from crayon.report.words import metric_text, seconds_text
from crayon.system.runfolder import RunFolder
from crayon.tune.records import SweepRecord, TrialRecord
from crayon.tune.space import Dimension

MOST_ROWS = 200
CAPTIONS = {
    "history": "The value of each trial in the order they were started, and the best so far.",
    "pareto": "Quality against training time: no trial is both faster and better than those on the line.",
    "parallel_coordinates": "A line per trial through its settings to its value; the darker, the better its rank.",
    "slices": "The value against each setting; the darker, the later the trial.",
    "importances": "How much of the variation of the value each setting explains (an estimate from these trials).",
    "learning_curves": "The validation curves of all trials; where early stopping ended one there is a cross.",
}


def write(folder: Path, record: SweepRecord, commands: Mapping[str, str]) -> Path:
    """Write `folder`/report.html from `record` and the pictures in `folder`/pictures.

    commands: title -> what to type in a shell. Raises RunFailed when the disk is full.
    """
    folder = Path(folder).absolute()
    record = finite(record)
    several = record.objective == "pareto" and len(record.front) > 1
    ordered = _best_first(record)
    left_out = len(ordered) - MOST_ROWS
    parts = [
        tag("p", f"{record.job} · sweep", "job"),
        tag("h1", record.name),
        _facts(record),
        _cards(record),
        _configuration(record),
        tag("h2", "The best for their training time") + _trials(record, record.front) if several else "",
        *(
            f"{tag('h2', title[:1].upper() + title[1:])}<pre><code>{escape(command)}</code></pre>"
            for title, command in commands.items()
        ),
        pictures(folder / "pictures", CAPTIONS),
        tag("h2", "Trials") + _trials(record, ordered[:MOST_ROWS]) if ordered else "",
        tag("p", f"and {left_out:,} more", "facts") if left_out > 0 else "",
    ]
    # Not replaced one after the other: a name may hold what stands for the other part.
    head, _, tail = PAGE.partition("{body}")
    body = "\n".join(filter(None, parts))
    page = head.replace("{title}", escape(f"{record.name} – Crayon")) + body + tail
    return RunFolder.at(folder).write_bytes("report.html", page.encode(errors="replace"))


def _facts(record: SweepRecord) -> str:
    counts = Counter(t.state for t in record.trials)
    over = counts["complete"] + counts["pruned"] + counts["failed"]
    states = ", ".join(
        f"{counts[s]} {s}" for s in ("complete", "pruned", "failed", "running", "waiting") if counts[s]
    )
    aim = f"{'highest' if record.direction == 'max' else 'lowest'} {plain(record.metric)}"
    facts = [
        f"{over} of {record.planned} trials over{f' ({states})' if states else ''}",
        f"{seconds_text(sum(t.seconds or 0.0 for t in record.trials))} of training in all trials",
        f"objective: {aim}{' against training time' if record.objective == 'pareto' else ''}",
        *(f"{name}: {setting_text(value)}" for name, value in record.settings.items()),
        time.strftime("%Y-%m-%d %H:%M"),
    ]
    return tag("p", " · ".join(facts), "facts")


def _cards(record: SweepRecord) -> str:
    best, preset = record.best, preset_of(record)
    if best is None:
        return ""
    cards = [
        (metric_text(record.metric, best.value), f"best {plain(record.metric)}"),
        (f"trial {best.number}", f"is the best{', the preset itself' if best is preset else ''}"),
    ]
    if preset and preset.value is not None:
        cards.append((metric_text(record.metric, preset.value), "the preset's value"))
        cards.append((_gain(record, best.reached, preset.value), "gain over the preset"))
    boxes = (
        f"<div class=card><b>{escape(number)}</b><span>{escape(what)}</span></div>" for number, what in cards
    )
    return f"<div class=cards>{''.join(boxes)}</div>"


def _gain(record: SweepRecord, best: float, preset: float) -> str:
    difference = best - preset
    if not difference:
        return "none"
    if metric_text(record.metric, 0.5).endswith("%"):
        return f"{100 * difference:+.2f} points"
    return f"{100 * difference / abs(preset):+.1f} %" if preset else f"{difference:+.3g}"


def _configuration(record: SweepRecord) -> str:
    best, preset = record.best, preset_of(record)
    if best is None or not record.space:
        return ""
    lines = (
        [name, _setting(best, name), _setting(preset, name), _range(dimension)]
        for name, dimension in record.space.items()
    )
    return tag("h2", "The best configuration") + table(["setting", "best", "preset", "searched"], lines)


def _range(dimension: Dimension) -> str:
    if dimension.kind == "choice":
        return ", ".join(setting_text(choice) for choice in dimension.choices)
    scale = ", log-uniform" if dimension.log else ""
    return f"{setting_text(dimension.low)} to {setting_text(dimension.high)}{scale}"


def _best_first(record: SweepRecord) -> list[TrialRecord]:
    """Finished trials by their value, then the others by their number."""
    sign = -1 if record.direction == "max" else 1
    finished = sorted(record.finished, key=lambda t: (sign * t.reached, t.number))
    numbers = {t.number for t in finished}
    return finished + sorted((t for t in record.trials if t.number not in numbers), key=lambda t: t.number)


def _trials(record: SweepRecord, trials: tuple[TrialRecord, ...] | list[TrialRecord]) -> str:
    names = list(dict.fromkeys([*record.space, *(name for t in trials for name in t.params)]))
    lines = (
        [
            f"{t.number} (preset)" if t.number == 0 else str(t.number),
            t.state,
            metric_text(record.metric, t.value),
            *(metric_text(metric, number(t.metrics.get(metric))) for metric in record.beside),
            "–" if t.seconds is None else seconds_text(t.seconds),
            f"{t.epoch} of {t.epochs}",
            *(short(_setting(t, name), 32) for name in names),
        ]
        for t in trials
    )
    head = [
        "trial",
        "state",
        plain(record.metric),
        *map(plain, record.beside),
        "training",
        "epochs done",
        *names,
    ]
    # Many columns scroll sideways rather than break their numbers in two.
    return f'<div style="white-space: nowrap">{table(head, lines)}</div>'


def _setting(trial: TrialRecord | None, name: str) -> str:
    return setting_text(trial.params[name]) if trial and name in trial.params else "–"


def finite(record: SweepRecord) -> SweepRecord:
    """`record` without the values, times and points of curves that are no finite numbers: those can't be compared."""
    trials = []
    for t in record.trials:
        curve = {epoch: value for epoch, value in sorted(t.curve.items()) if number(value) is not None}
        trials.append(replace(t, value=number(t.value), seconds=number(t.seconds), curve=curve))
    return replace(record, trials=tuple(trials))


def number(value: Any) -> float | None:
    """`value` as a float where it is a finite number, and no difference of two such can overflow; else None."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable else None


def preset_of(record: SweepRecord) -> TrialRecord | None:
    """Trial 0, whose settings are the preset's."""
    return next((t for t in record.trials if t.number == 0), None)


def plain(metric: str) -> str:
    """A metric's name in words.

    >>> plain("val/knn_accuracy")
    'validation knn accuracy'
    """
    split, slash, name = metric.partition("/")
    words = {"val": "validation", "train": "training"}.get(split, split)
    return f"{words}{slash}{name}".replace("/", " ").replace("_", " ")


def setting_text(value: Any) -> str:
    """A setting's value as people read it: four digits, and truth as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
