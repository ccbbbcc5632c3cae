"""Axes, marks and legends of a sweep's pictures: the best trial is red, the preset green."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crayon.report.style import INK, LINES, PAPER, render, short
from crayon.report.words import metric_text, plain
from crayon.tuning.effects import height
from crayon.tuning.records import SweepRecord
from crayon.tuning.space import Dimension
from crayon.tuning.words import setting_text, value_text

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


def value_range(record: SweepRecord, values: Iterable[float]) -> tuple[float, float]:
    """The range of all values but those far worse than most, beside which the others would be one line."""
    sign = 1 if record.plan.direction == "max" else -1
    good = np.sort(sign * np.array([*values]))
    lower, middle, upper = np.quantile(good, (0.25, 0.5, 0.75))
    # Tukey's "far out", with something to measure by where half of the values are equal.
    near = sign * good[good >= lower - 3 * max(upper - lower, good[-1] - middle)]
    return float(near.min()), float(near.max())


def value_axis(ax: Axes, record: SweepRecord, values: Iterable[float], below: float = 0.0) -> None:
    """An axis for these values, and for worse ones by the share `below` of their range."""
    from matplotlib.ticker import FuncFormatter

    low, high = value_range(record, values)
    more = below * (high - low)
    low, high = (low - more, high) if record.plan.direction == "max" else (low, high + more)
    margin = 0.08 * (high - low) or abs(high) / 50 or 0.5
    metric = record.plan.metric
    ax.set_ylim(low - margin, high + margin)
    if metric_text(metric, 0.5).endswith("%"):
        ax.set_yticks([tick for tick in ax.get_yticks() if low - margin <= tick <= min(high + margin, 1)])
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.5g} %"))
    ax.set_ylabel(plain(metric) + ("" if record.plan.direction == "max" else " (lower is better)"))


def whole_numbers(ax: Axes, label: str) -> None:
    """The axis across the picture has ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.set_xlabel(label)


def setting_axis(ax: Axes, dimension: Dimension) -> None:
    """From 0 to 1, as `height` places the values."""
    places, texts = setting_ticks(dimension)
    upright = 90 if len("  ".join(texts)) > 30 else 0
    ax.set_xticks(places, texts, rotation=upright)
    ax.set(xlabel=dimension.name, xlim=(-0.06, 1.06))


def setting_ticks(dimension: Dimension) -> tuple[list[float], list[str]]:
    """Where `height` places some of the values, and these as texts."""
    values: Sequence[Any] = dimension.choices
    if dimension.kind != "choice":
        spread = np.geomspace if dimension.log else np.linspace
        values = [float(f"{value:.2g}") for value in spread(*dimension.ends, 3)]
    if dimension.kind == "int":
        values = sorted({round(value) for value in values})
    texts = [short(setting_text(value), 12) for value in values]
    return [height(dimension, value) for value in values], texts


def trial_points(ax: Axes, record: SweepRecord, places: Mapping[int, float]) -> None:
    """A point for each trial that has a value, by its state. `places` across the picture are by the trials' numbers."""
    for state, style in STATES.items():
        those = [t for t in record.trials if t.state == state and t.value is not None and t.number in places]
        dots(ax, (places[t.number] for t in those), (t.reached for t in those), label=state, **style)


def preset_and_best(record: SweepRecord) -> dict[int, tuple[Any, str]]:
    """By the numbers of the preset and the best trial, as far as they have a value, their colours and what to say."""
    marked = ((record.preset, PRESET, "preset"), (record.best, BEST, "best"))
    return {
        trial.number: (colour, f"{name}: trial {trial.number}, {value_text(record, trial)}")
        for trial, colour, name in marked
        if trial and trial.value is not None
    }


def highlight(ax: Axes, record: SweepRecord, places: Mapping[int, float]) -> None:
    """A diamond around the preset and a star on the best trial."""
    marked = preset_and_best(record)
    for trial in record.trials:
        if trial.number in marked and trial.number in places:
            colour, text = marked[trial.number]
            style: dict[str, Any] = {"color": BEST, "edgecolors": PAPER, "marker": "*", "s": 200}
            if colour == PRESET:
                style = {"facecolors": "none", "edgecolors": PRESET, "linewidths": 2, "marker": "D", "s": 90}
            dots(ax, [places[trial.number]], [trial.reached], label=text, zorder=5, **style)


def dots(ax: Axes, xs: Iterable[float], ys: Iterable[float], **style: Any) -> None:
    """Points; those beyond the ends become triangles at the edge."""
    across, up, (low, high) = np.array([*xs]), np.array([*ys]), ax.get_ylim()
    edge = (high - low) / 50
    usual = style.pop("marker", "o"), style.pop("label"), (low <= up) & (up <= high)
    for marker, text, those in (
        usual,
        ("v", "beyond the axis", up < low),
        ("^", "beyond the axis", up > high),
    ):
        if those.any():
            heights = np.clip(up[those], low + edge, high - edge)
            ax.scatter(across[those], heights, marker=marker, label=text, **style)


def with_legend(ax: Axes) -> Image.Image:
    """The whole picture, with one legend below it."""
    handles, labels = ax.get_legend_handles_labels()
    if known := dict(zip(labels, handles, strict=True)):  # one entry where many lines are called the same
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "columnspacing": 1.5}
        ax.figure.legend(known.values(), known.keys(), fontsize=9, labelcolor=INK, frameon=False, **place)
    return render(ax.figure.figure)  # the root, which `ax.figure` needn't be by its type
