"""What a sweep found, as pictures: functions of its record. In all of them the best trial is red, the preset green."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crayon.report.style import FAINT, INK, LINES, PAPER, chart, new_figure, set_title, short
from crayon.report.words import metric_text, plain
from crayon.tuning.axes import (
    BEST,
    OTHERS,
    PRESET,
    STATES,
    dots,
    highlight,
    preset_and_best,
    setting_axis,
    setting_ticks,
    trial_points,
    value_axis,
    value_range,
    whole_numbers,
    with_legend,
)
from crayon.tuning.effects import height
from crayon.tuning.records import SweepRecord, TrialRecord
from crayon.tuning.words import setting_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IN_LINE = 15
"""Characters between two axes of the parallel coordinates."""


@chart
def history(record: SweepRecord) -> Image.Image:
    """The value of each trial in the order they were started, and the best so far. Failures lie beyond the worst."""
    _, ax = new_figure(8.6, 4.6)
    value_axis(ax, record, _answers(record))
    whole_numbers(ax, "trial")
    places = {t.number: float(t.number) for t in record.trials}
    trial_points(ax, record, places)
    lost = [t.number for t in record.trials if t.state == "failed" and t.value is None]
    worst = ax.get_ylim()[record.plan.direction == "min"]
    ax.scatter(lost, [worst] * len(lost), label="failed" if lost else None, clip_on=False, **STATES["failed"])
    finished = sorted(record.ranked, key=lambda t: t.number)
    better = max if record.plan.direction == "max" else min
    best = [*itertools.accumulate((t.reached for t in finished), better)]
    numbers = [*(t.number for t in finished), record.trials[-1].number]
    ax.step(numbers, [*best, best[-1]], where="post", color=BEST, zorder=1, label="best so far")
    highlight(ax, record, places)
    set_title(ax, f"{len(finished)} of {record.planned} trials finished")
    return with_legend(ax)


@chart
def learning_curves(record: SweepRecord) -> Image.Image:
    """The validation curves of all trials; where early stopping ended one there is a cross."""
    trials = [t for t in record.trials if t.curve]
    _, ax = new_figure(8.6, 4.6)
    value_axis(ax, record, _answers(record) or [v for t in trials for v in t.curve.values()], below=1.0)
    whole_numbers(ax, "epoch")
    marked = preset_and_best(record)
    for trial in trials:
        epochs = sorted(trial.curve)
        values = [trial.curve[epoch] for epoch in epochs]
        colour, text = marked.get(trial.number, (OTHERS, "another trial"))
        style = {"linewidth": 2.3, "zorder": 4} if trial.number in marked else {"linewidth": 1}
        ax.plot(epochs, values, "." if len(epochs) == 1 else "-", color=colour, label=text, **style)
    ends = [max(t.curve.items()) for t in trials if t.state == "pruned"]
    crosses = {"label": "pruned", "color": LINES[4], "marker": "x", "s": 30}
    dots(ax, [epoch for epoch, _ in ends], [value for _, value in ends], **crosses)
    set_title(ax, "Learning curves of all trials")
    return with_legend(ax)


@chart
def importances(record: SweepRecord) -> Image.Image:
    """How much of the variation of the value at the end of the schedule each setting explains (fANOVA): an estimate
    from these trials, with its 95 % interval."""
    names = list(record.importances)[:20][::-1]
    _, ax = new_figure(7.2, 1.6 + 0.42 * max(len(names), 2))
    shares, margins = (
        [kept.get(name, 0.0) for name in names] for kept in (record.importances, record.margins)
    )
    ends = [min(1.0, share + margin) for share, margin in zip(shares, margins, strict=True)]
    ax.barh(names, shares, height=0.62, color=LINES[0])
    for name, share, margin, end in zip(names, shares, margins, ends, strict=True):
        ax.plot(
            [max(0.0, share - margin), end], [name, name], color=INK, linewidth=1.4, solid_capstyle="butt"
        )
        text = f"{100 * share:.0f} %" + (f" ± {100 * margin:.0f}" if margin else "")
        ax.annotate(text, (end, name), (6, 0), textcoords="offset points", va="center", color=INK, fontsize=9)
    ax.set(xticks=[], xlim=(0, 1.18 * max(ends) or 1), xlabel="\n".join(textwrap.wrap(record.basis, 80)))
    set_title(ax, "What the value at the end depends on")
    return with_legend(ax)


@chart
def slices(record: SweepRecord) -> Image.Image:
    """The value at the end of the schedule against each setting; the darker, the later the trial. Rings: trials that
    were stopped early, at what they would probably have reached."""
    ended, space = _ended(record), record.plan.space
    columns = min(len(space), 4)
    rows = math.ceil(len(space) / columns)
    figure, axes = new_figure(2.8 * columns + 1.7, 3.2 * rows + 0.6, rows=rows, columns=columns, sharey=True)
    flat: list[Axes] = list(np.ravel(np.array(axes, dtype=object)))
    numbers = [t.number for t, _ in ended]
    colours: dict[str, Any] = {"cmap": "YlGnBu", "vmin": -max(numbers) / 4, "vmax": max(numbers)}
    for ax, (name, dimension) in zip(flat, space.items(), strict=False):
        value_axis(ax, record, [end for _, end in ended])
        ax.set_ylabel(ax.get_ylabel() if ax in flat[::columns] else "")
        setting_axis(ax, dimension)
        for whole, marker in ((False, "$\u25cb$"), (True, "o")):
            those = [(t, end) for t, end in ended if t.whole == whole]
            places = [height(dimension, t.params[name]) for t, _ in those]
            values = np.clip([end for _, end in those], *ax.get_ylim())
            shades = [t.number for t, _ in those]
            points = ax.scatter(places, values, s=30, c=shades, marker=marker, linewidths=0.5, **colours)
        highlight(ax, record, {t.number: height(dimension, t.params[name]) for t, _ in ended})
    for ax in flat[len(space) :]:
        ax.set_visible(False)
    ends = [min(numbers), max(numbers)]
    figure.colorbar(points, ax=flat, fraction=0.025, pad=0.015, ticks=ends, label="trial")
    return with_legend(flat[0])


@chart
def parallel_coordinates(record: SweepRecord) -> Image.Image:
    """A line per trial through its settings to its value at the end of its schedule, which is foretold where it was
    stopped early; the darker, the better its rank."""
    from matplotlib import colormaps

    sign, space = (1 if record.plan.direction == "max" else -1), record.plan.space
    ended = sorted(_ended(record), key=lambda found: sign * found[1])
    low, high = value_range(record, [end for _, end in ended])
    _, ax = new_figure(max(1.55 * len(space) + 2, 6.0), 5.2)
    marked = preset_and_best(record)
    for rank, (trial, end) in enumerate(ended):
        heights = [height(dimension, trial.params[name]) for name, dimension in space.items()]
        value = (end - low) / (high - low) if high > low else 0.5
        colour, text = marked.get(trial.number, (colormaps["YlGnBu"](0.2 + 0.75 * rank / len(ended)), None))
        style = {"linewidth": 2.3, "zorder": 4} if text else {"linewidth": 1.2, "zorder": 2}
        ax.plot([*heights, min(max(value, 0), 1)], color=colour, label=text, **style)
    metric = record.plan.metric
    ends = [metric_text(metric, low), metric_text(metric, high)]
    if not low <= ended[0][1] <= high:  # lines that end where the axis does stand for values beyond it
        ends[record.plan.direction == "min"] += " or worse"
    texts = {n: [(height(d, v), setting_text(v)) for v in d.choices or d.ends] for n, d in space.items()}
    texts[plain(metric)] = [(0.0, ends[0]), (1.0, ends[1])]
    paper = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1}
    tick: dict[str, Any] = {"color": FAINT, "fontsize": 9, "bbox": paper, "zorder": 5}
    for x, (title, ticks) in enumerate(texts.items()):
        ax.plot([x, x], [0, 1], color="#8b94a1", linewidth=1, zorder=1)
        ax.text(x, 1.1, _in_lines(title), ha="center", va="bottom", color=INK, fontsize=9.5, weight="bold")
        for y, text in ticks:
            place = (x, y + {0.0: -0.04, 1.0: 0.04}.get(y, 0.0))
            ax.text(*place, short(text, IN_LINE), ha="center", va="center", **tick)
    lines = max(_in_lines(title).count("\n") for title in texts)
    ax.set(xlim=(-0.5, len(space) + 0.5), ylim=(-0.08, 1.2 + 0.05 * lines))
    ax.set_axis_off()
    return with_legend(ax)


@chart
def pareto(record: SweepRecord) -> Image.Image:
    """Quality against training time: of the trials that ran to their end, none is both faster and better than those on
    the line."""
    trials = record.ranked
    longest = max(t.seconds for t in trials)
    unit, name = next(((n, u) for n, u in ((3600, "h"), (60, "min")) if longest > 3 * n), (1, "s"))
    times = {t.number: t.seconds / unit for t in trials}
    _, ax = new_figure(8.6, 5.0)
    value_axis(ax, record, _answers(record))
    ax.set_xlabel(f"training time [{name}]")
    trial_points(ax, record, times)
    xs = [times[t.number] for t in record.front]
    ys = np.clip([t.reached for t in record.front], *ax.get_ylim())
    ax.step([*xs, max(times.values())], [*ys, *ys[-1:]], where="post", color=INK, linewidth=1.3, zorder=1)
    ax.plot(xs, ys, "o", label="best for their time", color=INK, markersize=9, markerfacecolor="none")
    ax.margins(x=0.12)
    highlight(ax, record, times)
    labelled: list[np.ndarray] = []
    for x, y, trial in reversed([*zip(xs, ys, record.front, strict=True)]):
        at = ax.transAxes.inverted().transform(ax.transData.transform((x, y)))
        # Where the front is crowded, the better trials get their labels.
        if all((abs(at - other) > (0.09, 0.06)).any() for other in labelled):
            labelled.append(at)
            ax.annotate(f"trial {trial.number}", at, (-7, 3), "axes fraction", "offset points", ha="right")
    set_title(ax, "Quality against training time")
    return with_legend(ax)


@chart
def schedules(record: SweepRecord) -> Image.Image:
    """Each member's settings over the epochs; a step between two rounds leads from the model that was copied. Red: the
    best model and what it goes on from."""
    space, line, known = record.plan.space, record.line, {t.number: t for t in record.trials}
    _, axes = new_figure(8.6, 0.9 + 2.1 * len(space), rows=len(space), sharex=True)
    for ax, (name, dimension) in zip(np.ravel(np.array(axes, dtype=object)), space.items(), strict=True):
        for trial, turn in ((t, t.turn) for t in record.trials if t.turn):
            parent = trial if turn.parent is None else known[turn.parent]
            values = [parent.params[name], *[trial.params[name]] * 2]
            epochs = [turn.after, turn.after, max(trial.epoch, turn.after)]
            style: dict[str, Any] = {"color": OTHERS, "label": "another", "zorder": 2, "linewidth": 1.2}
            if trial in line:
                style = {"color": BEST, "label": "the best", "zorder": 4, "linewidth": 2.3}
            elif trial.settings == record.trials[0].settings:
                style |= {"color": PRESET, "label": "preset", "zorder": 3}
            ax.plot(epochs, [height(dimension, value) for value in values], **style)
        ax.set_yticks(*setting_ticks(dimension), fontsize=9)
        ax.set_ylabel(name)
    whole_numbers(ax, "epoch")
    return with_legend(ax)


PICTURES = (history, schedules, pareto, parallel_coordinates, slices, importances, learning_curves)
"""In the order of the report, whose captions are their docstrings."""


def all_pictures(record: SweepRecord) -> dict[str, Image.Image]:
    """By the functions' names, those that `record` has enough trials for."""
    enough = {draw: len(record.ranked) > 1 for draw in PICTURES}
    enough |= {draw: len(_ended(record)) > 1 for draw in (slices, parallel_coordinates)}
    enough |= {importances: bool(record.importances), learning_curves: any(t.curve for t in record.trials)}
    enough[pareto] = bool(record.front) and enough[pareto]
    enough[schedules] = record.plan.population > 0
    if enough[schedules]:  # a trial is a part of a training, whose value says little of its own settings
        enough |= dict.fromkeys((pareto, slices, parallel_coordinates), False)
    drawn = {draw.__name__: draw(record) for draw in PICTURES if enough[draw]}
    # With a palette, a page of 1,000 trials is a third as large.
    return {name: picture.quantize(dither=Image.Dither.NONE) for name, picture in drawn.items()}


def _answers(record: SweepRecord) -> list[float]:
    """The values that axes are for: of trials that ran to their end, as far as there are some, and of the best."""
    whole = [t.reached for t in record.ranked if t.state == "complete"]
    return [record.ranked[0].reached, *whole] if len(whole) > 1 else [t.reached for t in record.ranked]


def _ended(record: SweepRecord) -> list[tuple[TrialRecord, float]]:
    """Trials that are over and the values at the end of their schedules, as far as these are known."""
    return [(t, end) for t in record.ranked if (end := record.end(t)) is not None]


def _in_lines(name: str) -> str:
    """A setting's name between its neighbours'.

    >>> _in_lines("model.discriminator_width")
    'model.\\ndiscriminator_\\nwidth'
    """
    lines = [""]
    for part in re.findall(r"[^._ ]*[._ ]?", name):
        if len(lines[-1]) + len(part) > IN_LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(short(line.strip(), IN_LINE) for line in lines if line)
