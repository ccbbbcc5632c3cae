"""`report.html` of a sweep: what it found, in one page that needs no network, no scripts and no other file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crayon.report.page import cards, code, facts, pictures, table, tag, write_page
from crayon.report.words import headlines, metric_text, plain, seconds_text
from crayon.system.runfolder import RunFolder
from crayon.tuning import plots
from crayon.tuning.records import SweepRecord, TrialRecord
from crayon.tuning.words import (
    counted,
    difference_text,
    setting_text,
    trial_table,
    value_text,
    verdict_table,
    verdict_text,
)

MOST_ROWS = 200
AIMS = {"pareto": " against training time", "pbt": ", by population based training"}
CAPTIONS = {draw.__name__: str(draw.__doc__) for draw in plots.PICTURES}


def write(
    folder: Path, record: SweepRecord, commands: Mapping[str, str], measured: Mapping[str, Any] | None = None
) -> Path:
    """Write `folder`/report.html from `record` and the pictures in `folder`/pictures.

    commands: title -> what to type in a shell; measured: figures of the best model, by split and metric. Raises
    RunFailed when the disk is full.
    """
    several = record.plan.objective == "pareto" and len(record.front) > 1
    ranked = record.ranked
    there = {t.number for t in ranked}
    ordered = [*ranked, *(t for t in record.trials if t.number not in there)]
    left_out = len(ordered) - MOST_ROWS
    parts = [
        tag("p", f"{record.job} · sweep", "job"),
        tag("h1", record.name),
        _facts(record),
        *(tag("p", text) for text in record.notes),
        _cards(record, measured or {}),
        _link(folder),
        _confirmation(record),
        _configuration(record),
        _trials("The best for their training time", record, record.front) if several else "",
        *(code(title[:1].upper() + title[1:], command) for title, command in commands.items()),
        pictures(folder / "pictures", CAPTIONS),
        _trials("Trials", record, ordered[:MOST_ROWS]),
        tag("p", f"and {left_out:,} more", "facts") if left_out > 0 else "",
    ]
    return write_page(RunFolder.at(folder), record.name, parts)


def _facts(record: SweepRecord) -> str:
    over, states = counted(record)
    aim = f"{'highest' if record.plan.direction == 'max' else 'lowest'} {plain(record.plan.metric)}"
    told = [
        f"{over} of {record.planned} trials over ({states})",
        f"{seconds_text(sum(t.seconds for t in record.trials))} of training in all trials",
        f"objective: {aim}{AIMS.get(record.plan.objective, '')}",
        *(f"{name}: {value}" for name, value in record.settings.items()),
        time.strftime("%Y-%m-%d %H:%M"),
    ]
    return facts(told)


def _cards(record: SweepRecord, measured: Mapping[str, Any]) -> str:
    best, preset = record.best, record.preset
    if best is None:
        return ""
    texts = [
        (value_text(record, best), f"{'' if record.verdict else 'best '}{plain(record.plan.metric)}"),
        (f"trial {best.number}", _title(record, best is preset)),
        *((metric_text(k, measured[k]), f"{plain(k)}, of its model") for k in headlines(measured, most=1)),
    ]
    if preset and preset.value is not None:
        texts.append((value_text(record, preset), "the preset's value"))
        if record.verdict is None:  # which says it without the luck of the search
            texts.append((_gain(record.plan.metric, best.reached, preset.value), "gain over the preset"))
    return cards(texts)


def _title(record: SweepRecord, preset: bool) -> str:
    if record.verdict is None:
        return "is the best, the preset itself" if preset else "is the best"
    return "is the preset, which is kept" if preset else "is the best, confirmed with other seeds"


def _link(folder: Path) -> str:
    there = (folder / "best" / "report.html").is_file()
    return (
        '<p><a href="best/report.html">The best trial\'s model and its report: best/</a></p>' if there else ""
    )


def _gain(metric: str, best: float, preset: float) -> str:
    if metric_text(metric, 0.5).endswith("%"):
        return difference_text(metric, best - preset)
    return f"{100 * (best - preset) / abs(preset):+.1f} %" if preset else f"{best:+.3g}"


def _confirmation(record: SweepRecord) -> str:
    if record.verdict is None:
        return ""
    text = verdict_text(record)
    how = (
        "Runs of their own, the same other seeds for each, compared on validation seed by seed: paired t intervals, "
        "95 % for all of them together (Bonferroni). The values of the search don't count, as the best of many is "
        "partly luck."
    )
    shown = f'<div style="white-space: nowrap">{table(*verdict_table(record))}</div>'
    return tag("h2", "Confirmation") + tag("p", text[0].upper() + text[1:]) + shown + tag("p", how, "facts")


def _configuration(record: SweepRecord) -> str:
    best, preset = record.best, record.preset
    if best is None or preset is None:
        return ""
    lines = [
        [name, setting_text(best.params[name]), setting_text(preset.params[name]), str(dimension)]
        for name, dimension in record.plan.space.items()
    ]
    if record.plan.population:
        line = " → ".join(str(t.number) for t in record.line)
        schedule = str(best.settings.get("changes", "none"))
        lines += [["changes", schedule, "none", ""], ["trials that it goes on from", line, "", ""]]
    return tag("h2", "The best configuration") + table(["setting", "best", "preset", "searched"], lines)


def _trials(title: str, record: SweepRecord, trials: Sequence[TrialRecord]) -> str:
    # Many columns scroll sideways rather than break their numbers in two.
    return f'{tag("h2", title)}<div style="white-space: nowrap">{table(*trial_table(record, trials))}</div>'
