"""Learning curves: the rows of metrics.jsonl as one chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crayon.report.style import FAINT, INK, LINES, chart, new_figure, render, set_title
from crayon.report.words import per_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@chart
def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Rows of metrics.jsonl over epochs, else steps: one panel per family of metrics, `train/x` and `val/x` on the same
    panel. Where a metric has two values at one place the later one counts: a resumed run repeats what came after its
    checkpoint."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    series, clock = _series(rows)
    panels = _panels(series)
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    lines = math.ceil(max(len(panels), 1) / columns)
    size = (4.3 * columns + 0.4, 3.1 * lines + 0.5)
    figure, axes = new_figure(*size, rows=lines, columns=columns, squeeze=False)
    first, *others = axes.flat
    for ax in others[max(len(panels), 1) - 1 :]:
        ax.set_visible(False)
    for ax, (name, keys) in zip(axes.flat, panels, strict=False):
        for i, key in enumerate(keys):
            x, y = series[key]
            dots = "o" if key.startswith("val/") or len(x) < 3 else None
            style = {"color": LINES[i], "linewidth": 1.7, "marker": dots, "markersize": 3.2}
            ax.plot(x, y, label=key.replace("_", " "), **style)
        values = np.concatenate([series[k][1] for k in keys])
        if name in ("loss", "error", "feature distance") and values.min() > 0 and np.ptp(np.log(values)) > 3:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        elif name in _LAST and values.max() > 0:
            ax.set_ylim(0, 1.08 * values.max())
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if len(keys) > 1:
            # Below the axis, where no curve runs.
            below = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.16), "borderaxespad": 0, "ncols": 2}
            ax.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4, columnspacing=1.2, **below)
        ax.set_xlabel("epoch" if any("epoch" in r for r in rows) else "step")
        set_title(ax, (name if len(keys) > 1 or name in _LAST else keys[0]).replace("_", " "))
    if panels and len(clock) > 1:
        _time_axis(first, clock)
    if not panels:
        first.text(0.5, 0.5, "no metrics yet", ha="center", color=FAINT, transform=first.transAxes)
    return render(figure)


_NOT_DRAWN = frozenset({"step", "epoch", "images", "train_seconds", "eval_seconds", "val/n", "threads"})
"""What says where and on how much a row was measured, not what."""


def _series(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, tuple[tuple[float, ...], ...]], dict[float, float]]:
    """Metric -> (x, y) in order of x, and x -> seconds."""
    values: dict[str, dict[float, float]] = {}
    clock: dict[float, float] = {}
    for row in rows:
        x = row.get("epoch", row.get("step"))
        if not _number(x):
            continue
        for key, value in row.items():
            if key == "seconds" and _number(value):
                clock[x] = value
            elif key not in _NOT_DRAWN and not key.startswith("val/n/") and _number(value):
                values.setdefault(key, {})[x] = value
    return {key: tuple(zip(*sorted(points.items()), strict=True)) for key, points in values.items()}, clock


# Which panel a metric belongs to, by what its name (without the split) contains; the first match counts.
_FAMILIES = (
    ("loss", ("loss", "penalty", "bce")),
    ("scores on real and fake", ("score", "logit")),
    ("accuracy", ("accuracy", "top")),
    ("precision and recall", ("precision", "recall", "coverage", "density", "f1")),
    ("error", ("mse", "mae")),
    ("feature distance", ("fid", "kid", "fd_", "kd_")),
    ("gradient norm", ("grad", "norm")),
)
_LAST = ("learning rate", "images/s")


def _panels(series: Mapping[str, Any], most: int = 9) -> list[tuple[str, list[str]]]:
    """(panel title, metrics), losses first, learning rate and speed last, at most `most` panels."""
    panels: dict[str, list[str]] = {}
    for key in series:
        bare = key.removeprefix("train/").removeprefix("val/")
        if key.startswith("test/") or per_class(key, series):
            continue  # one point, or one class's part of another metric
        if bare == "lr" or bare.startswith("lr/"):
            family = "learning rate"
        elif "per_second" in key or "images/s" in key:
            family = "images/s"
        else:
            family = next((f for f, words in _FAMILIES if any(w in bare for w in words)), bare)
        panels.setdefault(family, []).append(key)
    order = {family: i for i, (family, _) in enumerate(_FAMILIES)}
    last = [(name, panels.pop(name)) for name in _LAST if name in panels]
    ranked = sorted(panels.items(), key=lambda item: order.get(item[0], len(order)))
    return [
        (name, sorted(keys, key=lambda k: (k.startswith("val/"), k))[: len(LINES)])
        for name, keys in ranked[: most - len(last)] + last
    ]


def _time_axis(ax: Axes, clock: Mapping[float, float]) -> None:
    """Minutes or seconds since the start above the epochs."""
    xs = np.array(sorted(clock))
    seconds = np.array([clock[x] for x in xs])
    minutes = seconds.max() > 180
    ticks = np.linspace(xs[0], xs[-1], 4)
    labels = [f"{t / 60:.1f} min" if minutes else f"{t:.0f} s" for t in np.interp(ticks, xs, seconds)]
    if len(set(labels)) < len(labels):
        return
    top = ax.secondary_xaxis("top")
    top.set_xticks(ticks, labels, fontsize=8)
    top.tick_params(colors=FAINT, length=0, pad=1)
    top.spines["top"].set_visible(False)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
