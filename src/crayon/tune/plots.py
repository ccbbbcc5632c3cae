"""What a sweep found, as pictures: functions of its record. In all of them the best trial is red, the preset green."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crayon.report.style import FAINT, INK, LINES, PAPER, chart, new_figure, render, set_title
from crayon.report.words import metric_text
from crayon.tune.axes import EDGES, Axis, numbers_axis, printable, setting_axis, values_axis
from crayon.tune.page import finite, number, preset_of
from crayon.tune.records import SweepRecord, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST, PRESET, OTHERS = LINES[1], LINES[2], "#b4bbc6"
STATES: dict[str, dict[str, Any]] = {
    "complete": {"color": LINES[0], "s": 36},
    "pruned": {"facecolors": PAPER, "edgecolors": LINES[4], "linewidths": 1.6, "s": 32},
    "running": {"facecolors": PAPER, "edgecolors": OTHERS, "linewidths": 1.4, "s": 32},
    "waiting": {"facecolors": PAPER, "edgecolors": OTHERS, "linewidths": 1.4, "s": 32, "marker": "s"},
    "failed": {"color": OTHERS, "marker": "x", "s": 32},
}


@chart
def history(record: SweepRecord) -> Image.Image:
    """The value of each trial by its number, and the best value so far. Failures lie beyond the worst value."""
    record = finite(record)
    x = numbers_axis("trial", [0, *(t.number for t in record.trials)], whole=True)
    y = values_axis(record, [t.value for t in record.trials])
    _, ax = new_figure(8.6, 4.6)
    _states(ax, record.trials, lambda trial: x.place(trial.number), y)
    lost = [x.place(t.number) for t in record.trials if t.state == "failed" and t.value is None]
    if lost:
        worst = EDGES[record.direction == "min"]
        ax.scatter(lost, [worst] * len(lost), label="failed", **STATES["failed"])
    best, steps = None, []
    for trial in sorted(record.finished, key=lambda t: t.number):
        best = trial if best is None or record.better(trial.reached, best.reached) else best
        steps.append((x.place(trial.number), y.place(best.value)))
    if steps:
        xs, ys = zip(*steps, (1, steps[-1][1]), strict=True)
        ax.plot(xs, ys, color=BEST, linewidth=1.4, drawstyle="steps-post", zorder=1, label="best so far")
    _highlight(ax, record, lambda trial: x.place(trial.number), y, words=True)
    set_title(ax, f"{len(record.finished)} of {record.planned} trials finished")
    return _finish(ax, x, y, empty=not steps)


@chart
def learning_curves(record: SweepRecord) -> Image.Image:
    """The sweep's metric by epoch, a line per trial; where a trial was pruned there is a cross."""
    record = finite(record)
    trials = [t for t in record.trials if t.curve]
    x = numbers_axis("epoch", [e for t in trials for e in t.curve], whole=True)
    y = values_axis(record, [v for t in trials for v in t.curve.values()])
    _, ax = new_figure(8.6, 4.6)
    styles = _line_styles(record)
    for trial in sorted(trials, key=lambda t: t.number in styles):
        places = [(x.place(epoch), y.place(value)) for epoch, value in trial.curve.items()]
        style = styles.get(trial.number, {"color": OTHERS, "linewidth": 1, "label": "another trial"})
        one = {"marker": "o", "markersize": 4} if len(places) == 1 else {}
        ax.plot(*zip(*places, strict=True), **style, **one)
        if trial.state == "pruned":
            _dots(ax, *zip(places[-1], strict=True), label="pruned", color=LINES[4], marker="x", s=30)
    set_title(ax, "Learning curves of all trials")
    return _finish(ax, x, y, empty=not trials)


@chart
def importances(record: SweepRecord) -> Image.Image:
    """How much of the variation of the value each setting explains, largest first."""
    shares = {name: max(number(share) or 0.0, 0.0) for name, share in record.importances.items()}
    names = sorted(shares, key=lambda name: shares[name])[-20:]
    _, ax = new_figure(7.2, 1.4 + 0.42 * max(len(names), 2))
    for i, name in enumerate(names):
        ax.barh(i, shares[name], height=0.62, color=LINES[0])
        ax.text(shares[name], i, f"  {100 * shares[name]:.0f} %", va="center", color=INK, fontsize=9)
    ax.set_yticks(range(len(names)), [printable(n, 30) for n in names], parse_math=False)
    ax.set(xticks=[], xlim=(0, 1.1 * max(shares.values(), default=0) or 1))
    ax.set_xlabel("share of the variation of the value")
    set_title(ax, "What the value depends on")
    return _finish(ax, empty=not names)


@chart
def slices(record: SweepRecord) -> Image.Image:
    """The value against each setting; colours are trial numbers."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    record = finite(record)
    trials, y = record.finished, values_axis(record, [t.value for t in record.finished])
    empty = not (trials and record.space)
    columns = min(max(len(record.space), 1), 4)
    rows = math.ceil(len(record.space) / columns) or 1
    figure, axes = new_figure(2.8 * columns + 1.7, 3.2 * rows + 0.6, rows=rows, columns=columns, sharey=True)
    flat: list[Axes] = list(np.ravel(np.array(axes, dtype=object)))
    numbers = np.array([t.number for t in trials])
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1, 256)))  # yellow is faint on paper
    scale = {"cmap": colours, "vmin": 0, "vmax": max([1, *numbers]), "s": 30}
    for i, (ax, (name, dimension)) in enumerate(zip(flat, record.space.items(), strict=False)):
        x = setting_axis(dimension, trials)
        across = _by_setting(name, x)
        points = _dots(ax, [*map(across, trials)], [y.place(t.value) for t in trials], c=numbers, **scale)
        _highlight(ax, record, across, y)
        _frame(ax, x, y if i % columns == 0 else replace(y, label=""))
    for ax in flat[max(len(record.space), 1) :]:
        ax.set_visible(False)
    if not empty:
        bar = figure.colorbar(points, ax=flat, fraction=0.025, pad=0.015, ticks=[0, scale["vmax"]])
        bar.set_label("trial", color=FAINT)
        bar.ax.tick_params(colors=FAINT, labelsize=9, length=0)
        bar.outline.set_visible(False)
    return _finish(flat[0], empty=empty)


@chart
def parallel_coordinates(record: SweepRecord) -> Image.Image:
    """A line per trial through its settings to its value; the darker, the higher the value's rank."""
    from matplotlib import colormaps

    record = finite(record)
    trials = sorted(record.finished, key=lambda t: t.reached if record.direction == "max" else -t.reached)
    axes = [setting_axis(d, trials) for d in record.space.values()]
    axes.append(values_axis(record, [t.value for t in trials]))
    _, ax = new_figure(max(1.55 * len(axes) + 0.4, 6.0), 5.2)
    styles = _line_styles(record)
    for rank, trial in enumerate(trials):
        row = [*(trial.params.get(name) for name in record.space), trial.value]
        heights = np.clip([axis.place(v) for axis, v in zip(axes, row, strict=True)], 0, 1)
        colour = colormaps["YlGnBu"](0.2 + 0.75 * rank / len(trials))
        style = {"color": colour, "linewidth": 1.2, "zorder": 2 + rank / len(trials)}
        ax.plot(range(len(axes)), heights, **styles.get(trial.number, style))
    paper = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1}
    worst = axes[-1].place(trials[0].value) if trials else 0.5
    for x, axis in enumerate(axes):
        ax.plot([x, x], [0, 1], color="#8b94a1", linewidth=1, zorder=1)
        title = textwrap.fill(printable(axis.label, 44), 17)
        ax.text(x, 1.1, title, ha="center", color=INK, fontsize=9.5, weight="bold", parse_math=False)
        for y, value in axis.ends or axis.ticks:
            side, shift = {0.0: ("top", -0.02), 1.0: ("bottom", 0.02)}.get(y, ("center", 0.0))
            style = {"ha": "center", "va": side, "color": FAINT, "fontsize": 9, "bbox": paper, "zorder": 5}
            # Lines that end where the axis does may stand for values beyond it.
            beyond = axis is axes[-1] and (worst < -1e-6 if y == 0 else worst > 1 + 1e-6)
            text = axis.text(value) + (" or worse" if beyond else "")
            ax.text(x, y + shift, text, parse_math=False, **style)
    ax.set(xlim=(-0.5, len(axes) - 0.5), ylim=(-0.08, 1.22))
    ax.set_axis_off()
    return _finish(ax, empty=not trials)


@chart
def pareto(record: SweepRecord) -> Image.Image:
    """Training time against value; no trial is both faster and better than those on the line."""
    record = finite(record)
    trials = [t for t in record.finished if t.seconds is not None]
    times = [t.seconds for t in trials if t.seconds is not None] or [1.0]
    unit, name = next(((n, u) for n, u in ((3600, "h"), (60, "min")) if max(times) > 3 * n), (1, "s"))
    zero = [0.0] if 2 * min(times) < max(times) else []
    x = numbers_axis(f"training time [{name}]", [*zero, *(s / unit for s in times)])
    y = values_axis(record, [t.value for t in trials])

    def across(trial: TrialRecord) -> float:
        return math.nan if trial.seconds is None else x.place(trial.seconds / unit)

    _, ax = new_figure(8.6, 5.0)
    _states(ax, trials, across, y)
    front = [(across(t), float(np.clip(y.place(t.value), *EDGES)), t.number) for t in record.front]
    if front:
        xs, ys, _ = zip(*front, (1.05, front[-1][1], None), strict=True)
        ax.plot(xs, ys, color=INK, linewidth=1.3, drawstyle="steps-post", zorder=1)
        ring = {"color": INK, "markersize": 9, "markerfacecolor": "none"}
        ax.plot(xs[:-1], ys[:-1], "o", label="best for their time", **ring)
    _highlight(ax, record, across, y)
    labelled: list[tuple[float, float]] = []
    for a, b, trial in reversed(front):
        # Where the front is crowded, the better trials get their labels.
        if all(abs(a - c) > 0.09 or abs(b - d) > 0.06 for c, d in labelled):
            labelled.append((a, b))
            _write(ax, a, b, f"trial {trial}", up=record.direction == "max", side="right")
    set_title(ax, "Quality against training time")
    return _finish(ax, x, y, empty=not trials)


def all_pictures(record: SweepRecord) -> dict[str, Image.Image]:
    """By the functions' names, those that `record` has enough trials for."""
    record = finite(record)
    several = len(record.finished) >= 2
    wanted: dict[Callable[[SweepRecord], Image.Image], bool] = {
        history: several,
        learning_curves: any(t.curve for t in record.trials),
        importances: bool(record.importances),
        slices: several and bool(record.space),
        parallel_coordinates: several and bool(record.space),
        pareto: sum(t.seconds is not None for t in record.finished) >= 2,
    }
    return {draw.__name__: draw(record) for draw, enough in wanted.items() if enough}


def _states(ax: Axes, trials: Iterable[TrialRecord], across: Callable[[TrialRecord], float], y: Axis) -> None:
    for state, style in STATES.items():
        those = [t for t in trials if t.state == state and t.value is not None]
        if those:
            _dots(ax, [across(t) for t in those], [y.place(t.value) for t in those], label=state, **style)


def _by_setting(name: str, x: Axis) -> Callable[[TrialRecord], float]:
    return lambda trial: x.place(trial.params.get(name))


def _line_styles(record: SweepRecord) -> dict[int, dict[str, Any]]:
    """How the lines of the preset and of the best trial look, by their numbers."""
    styles: dict[int, dict[str, Any]] = {}
    for name, colour, trial in (("preset", PRESET, preset_of(record)), ("best", BEST, record.best)):
        if trial and trial.value is not None:
            what = f"preset and {name}" if trial.number in styles else name
            label = f"{what}: trial {trial.number}, {printable(metric_text(record.metric, trial.value), 20)}"
            styles[trial.number] = {"color": colour, "linewidth": 2.3, "zorder": 4, "label": label}
    return styles


def _highlight(
    ax: Axes, record: SweepRecord, across: Callable[[TrialRecord], float], y: Axis, words: bool = False
) -> None:
    """A diamond around the preset and a star on the best trial."""
    style: dict[str, Any]
    best, preset, up = record.best, preset_of(record), record.direction == "max"
    if preset and preset.value is not None:
        style = {"facecolors": "none", "edgecolors": PRESET, "linewidths": 2, "marker": "D", "s": 90}
        place = across(preset), y.place(preset.value)
        _dots(ax, *zip(place, strict=True), label="preset", zorder=6, **style)
        if words:
            _write(
                ax, *place, "preset, the best" if preset is best else "preset", up == (preset is best), "left"
            )
    if best:
        style = {"color": BEST, "edgecolors": PAPER, "linewidths": 0.8, "marker": "*", "s": 200}
        place = across(best), y.place(best.value)
        _dots(ax, *zip(place, strict=True), label="best", zorder=5, **style)
        if words and best is not preset:
            _write(ax, *place, printable(metric_text(record.metric, best.value), 20), up)


def _dots(ax: Axes, across: Sequence[float], up: Sequence[float], **style: Any) -> Any:
    """Points; those beyond the ends become triangles at the edge. Returns the others."""
    xs, ys = np.array(across, dtype=float), np.array(up, dtype=float)
    colours = style.pop("c", None)
    for marker, sign, beyond in (("v", "▼", ys < -1e-6), ("^", "▲", ys > 1 + 1e-6)):
        if beyond.any():
            own = {"marker": marker, "label": None} | ({} if colours is None else {"c": colours[beyond]})
            ax.scatter(xs[beyond], np.clip(ys[beyond], *EDGES), **style | own)
            ax.set_title(f"{sign} far worse", loc="right", color=FAINT, fontsize=9)
    inside = abs(ys - 0.5) < 0.5 + 1e-6
    return ax.scatter(xs[inside], ys[inside], **style, **{} if colours is None else {"c": colours[inside]})


def _write(ax: Axes, x: float, y: float, text: str, up: bool, side: str = "center") -> None:
    """`text` above or below a point; `side` is which of its ends is near the point."""
    if math.isfinite(x + y):
        shift = ({"left": -7, "right": -7}.get(side, 0), 9 if up else -9)
        style: dict[str, Any] = {"ha": side, "va": "bottom" if up else "top", "color": INK, "fontsize": 9}
        ax.annotate(text, (x, np.clip(y, *EDGES)), shift, textcoords="offset points", **style)


def _frame(ax: Axes, x: Axis, y: Axis) -> None:
    texts = [x.text(value) for _, value in x.ticks]
    upright = max(map(len, texts), default=0) > 5 and sum(len(text) + 2 for text in texts) > 34
    ax.set_xticks([p for p, _ in x.ticks], texts, rotation=90 if upright else 0, parse_math=False)
    ax.set_yticks([p for p, _ in y.ticks], [y.text(value) for _, value in y.ticks], parse_math=False)
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.11, 1.11))
    ax.set_xlabel(printable(x.label, 34), parse_math=False)
    ax.set_ylabel(y.label, parse_math=False)


def _finish(ax: Axes, x: Axis | None = None, y: Axis | None = None, empty: bool = False) -> Image.Image:
    if x and y:
        _frame(ax, x, y)
    if empty:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "no finished trial yet", ha="center", color=FAINT, transform=ax.transAxes)
    handles, labels = ax.get_legend_handles_labels()
    if known := dict(zip(labels, handles, strict=True)):  # one entry where many lines are called the same
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 8, "columnspacing": 1.5}
        ax.figure.legend(known.values(), known.keys(), fontsize=9, labelcolor=INK, frameon=False, **place)
    return render(ax.figure.figure)  # the root, which `ax.figure` needn't be by its type
