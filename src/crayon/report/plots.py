"""Every picture a run leaves, in one style, as PIL images.

Charts are built on matplotlib's `Figure` objects without pyplot, so nothing here touches global state or
needs a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from crayon.report.style import (
    FAINT,
    INK,
    LINES,
    PAPER,
    chart,
    class_colours,
    compact,
    fit,
    font,
    new_figure,
    render,
    set_title,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@chart
def confusion_matrix(
    counts: np.ndarray, classes: Sequence[str], title: str = "Confusion matrix"
) -> Image.Image:
    """Rows are true classes, columns predictions. Colours are shares of the row, numbers are counts.

    Args:
        counts: (K, K) non-negative integers, `counts[i, j]` = images of class i predicted as j.
        classes: K names.
    """
    counts = np.asarray(counts)
    k = len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"{counts.shape} counts for {k} classes")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(0.52 * k, 4.2), 15.0)
    figure, ax = new_figure(side + 1.6, side + 1.6)
    # A square root lets a class's one percent of confusions show beside its 99 percent of hits.
    image = ax.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    size = 10 if k <= 12 else max(4.0, 260 / k)
    names = [short(c) for c in classes]
    upright = max(map(len, names), default=0) > 3
    ax.set_xticks(range(k), names, rotation=90 if upright else 0, fontsize=size, parse_math=False)
    ax.set_yticks(range(k), names, fontsize=size, parse_math=False)
    ax.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    ax.grid(False)
    ax.grid(which="minor", color=PAPER, linewidth=1.2 if k <= 15 else 0.5)
    ax.tick_params(which="both", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = PAPER if shares[i, j] > 0.36 else INK
        label = f"{counts[i, j]:d}" if counts.max() < 100_000 else compact(float(counts[i, j]))
        digits = len(label) if k > 12 else max(len(label) - 2, 1)
        fitted = min(size, 3.4 * size / (digits + 1)) if k > 12 else size if digits < 4 else size * 0.8
        ax.text(j, i, label, ha="center", va="center", color=colour, fontsize=fitted)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    set_title(ax, f"{title}  ·  {np.trace(counts) / max(counts.sum(), 1):.2%} of {counts.sum():,} right")
    bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_ticks(
        np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1.0]).tolist(), labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"]
    )
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    bar.outline.set_visible(False)
    return render(figure)


def image_grid(
    images: Any, titles: Sequence[str] | None = None, columns: int = 8, scale: int = 1, gap: int = 2
) -> Image.Image:
    """Images side by side, row by row.

    Args:
        images: (N, C, H, W) tensor or array, C = 1 or 3, uint8 or floating point in [0, 1] (clipped).
        titles: N captions below the images; "\\n" breaks a line.
        scale: each pixel becomes `scale` x `scale`; small images are enlarged further when they carry titles,
            so that the text fits.
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise ValueError(f"images of shape {array.shape} are not (N, 1 or 3, H, W)")
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    array = np.repeat(array, 3, 1) if array.shape[1] == 1 else array
    n, _, h, w = array.shape
    if titles is not None and w * scale < 72:
        scale = math.ceil(72 / w)
    array = array.repeat(scale, 2).repeat(scale, 3).transpose(0, 2, 3, 1)
    h, w = h * scale, w * scale
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    lines = max((t.count("\n") + 1 for t in titles), default=0) if titles is not None else 0
    line = 14
    caption = lines * line + 6 if lines else 0
    canvas = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap + caption) + gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    face: Any = font(11) if lines else None
    for i in range(n):
        x, y = gap + (i % columns) * (w + gap), gap + (i // columns) * (h + gap + caption)
        canvas.paste(Image.fromarray(array[i]), (x, y))
        for row, text in enumerate(titles[i].split("\n") if titles is not None else ()):
            text = fit(text, face, w)
            left = x + (w - face.getlength(text)) / 2
            draw.text((left, y + h + 2 + row * line), text, fill=INK, font=face)
    return canvas


@chart
def scatter(
    points: np.ndarray, labels: np.ndarray, classes: Sequence[str] = (), title: str = "", axes: str = ""
) -> Image.Image:
    """Points in the plane coloured by class, each class named at its median.

    Args:
        points: (N, 2) floats.
        labels: (N,) integers into `classes`; ignored when `classes` is empty.
        axes: what the two axes are, such as "PCA component".
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    figure, ax = new_figure(7.2, 6.4)
    order = np.random.default_rng(0).permutation(len(points))  # no class on top of the others
    palette = np.array(class_colours(max(len(classes), 1)))
    colours = palette[labels[order]] if len(classes) else palette[0]
    size = float(np.clip(24_000 / max(len(points), 1), 3, 26))
    ax.scatter(*points[order].T, c=colours, s=size, alpha=0.7, linewidths=0)
    from matplotlib.patheffects import withStroke

    for c, name in enumerate(classes):
        if (labels == c).any():
            x, y = np.median(points[labels == c], 0)
            halo = [withStroke(linewidth=3.5, foreground=PAPER)]
            style = {"ha": "center", "va": "center", "fontweight": "bold", "parse_math": False}
            small = 11 if len(classes) <= 15 else 8
            ax.text(x, y, short(name), color=INK, fontsize=small, path_effects=halo, **style)
    ax.set_xlabel(f"{axes} 1" if axes else "")
    ax.set_ylabel(f"{axes} 2" if axes else "")
    set_title(ax, title)
    return render(figure)


@chart
def reliability(
    confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray, title: str = "Reliability"
) -> Image.Image:
    """How often a classifier is right when it is this sure, and how often it is that sure (Guo et al. 2017).

    Args:
        confidence, accuracy: (bins,) mean confidence and share right in each bin, in [0, 1].
        counts: (bins,) images per bin. Empty bins are left out.
    """
    confidence, accuracy, counts = (np.asarray(a, dtype=np.float64) for a in (confidence, accuracy, counts))
    used = counts > 0
    gap = float((np.abs(confidence - accuracy) * counts)[used].sum() / max(counts.sum(), 1))
    figure, (ax, below) = new_figure(5.6, 6.6, rows=2, height_ratios=(3.2, 1), sharex=True)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.vlines(confidence[used], accuracy[used], confidence[used], color=LINES[1], linewidth=5, alpha=0.3)
    ax.plot(confidence[used], accuracy[used], color=LINES[0], marker="o", markersize=5, linewidth=1.6)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    ax.set_title(f"calibration error {gap:.2%}", loc="right", color=INK, fontsize=10)
    width = 0.8 / max(len(counts), 1)
    below.bar(confidence[used], counts[used] / max(counts.sum(), 1), width=width, color=LINES[0])
    below.set(xlabel="confidence", ylabel="share of images")
    set_title(ax, title)
    return render(figure)


@chart
def learning_curves(rows: Sequence[Mapping[str, Any]], title: str = "") -> Image.Image:
    """Metrics over epochs: one panel per family of metrics, `train/x` and `val/x` on the same panel.

    Args:
        rows: of metrics.jsonl. `epoch` (else `step`) is the x axis, `seconds` the one above
            it. Where a metric has two values at one place the later one counts: a resumed run repeats what
            came after its checkpoint.
    """
    from matplotlib.ticker import MaxNLocator

    series, clock = _series(rows)
    panels = _panels(series)
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    count = max(len(panels), 1)
    lines = math.ceil(count / columns)
    figure, axes = new_figure(4.3 * columns + 0.4, 3.1 * lines + 0.5, rows=lines, columns=columns)
    flat: list[Axes] = list(np.ravel(np.array(axes, dtype=object)))
    for ax in flat[count:]:
        ax.set_visible(False)
    for ax, (name, keys) in zip(flat, panels, strict=False):
        for i, key in enumerate(keys):
            x, y = series[key]
            validation = key.startswith("val/")
            sparse: dict[str, Any] = {"marker": "o", "markersize": 3.2} if validation or len(x) < 3 else {}
            ax.plot(x, y, color=LINES[i % len(LINES)], linewidth=1.7, label=key.replace("_", " "), **sparse)
        values = np.concatenate([series[k][1] for k in keys])
        if name in ("loss", "error", "feature distance") and values.min() > 0 and np.ptp(np.log(values)) > 3:
            ax.set_yscale("log")
        elif name in ("learning rate", "images/s") and values.max() > 0:
            ax.set_ylim(0, 1.08 * values.max())
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if len(keys) > 1:
            ax.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4)
        ax.set_xlabel("epoch" if any("epoch" in r for r in rows) else "step")
        set_title(
            ax,
            (name if len(keys) > 1 or name in ("learning rate", "images/s") else keys[0]).replace("_", " "),
        )
    if panels and len(clock) > 1:
        _time_axis(flat[0], clock)
    if not panels:
        flat[0].text(0.5, 0.5, "no metrics yet", ha="center", color=FAINT, transform=flat[0].transAxes)
    if title:
        figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", parse_math=False)
    return render(figure)


def gif(frames: Sequence[Image.Image], seconds: float = 8.0) -> bytes:
    """`frames` (same size) as an endless animation of about `seconds`, resting on the last one, as GIF."""
    if not frames:
        raise ValueError("an animation needs at least one frame")
    each = int(np.clip(seconds * 1000 / len(frames), 40, 600))
    durations = [each] * (len(frames) - 1) + [1800]
    paletted = [f.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for f in frames]
    file = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": paletted[1:], "loop": 0}
    paletted[0].save(file, "GIF", duration=durations[0] if len(frames) == 1 else durations, **options)
    return file.getvalue()


_NOT_DRAWN = frozenset({"step", "epoch", "images", "train_seconds", "eval_seconds", "val/n"})
"""What says where and on how much a row was measured, not what."""


def _series(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[float, float]]:
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
            elif key not in _NOT_DRAWN and _number(value):
                values.setdefault(key, {})[x] = value
    series = {}
    for key, points in values.items():
        xs = sorted(points)
        series[key] = (xs, [points[x] for x in xs])
    return series, clock


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


def _panels(series: Mapping[str, Any], most: int = 9) -> list[tuple[str, list[str]]]:
    """(panel title, metrics), losses first, learning rate and speed last, at most `most` panels."""
    panels: dict[str, list[str]] = {}
    last: dict[str, list[str]] = {}
    for key in series:
        bare = key.split("/", 1)[1] if key.startswith(("train/", "val/")) else key
        if key.startswith("test/") or (key.count("/") >= 2 and "/".join(key.split("/")[:2]) in series):
            continue  # one point, or one class's part of another metric
        if bare == "lr" or bare.startswith("lr/"):
            last.setdefault("learning rate", []).append(key)
        elif "per_second" in key or "images/s" in key:
            last.setdefault("images/s", []).append(key)
        else:
            family = next((f for f, words in _FAMILIES if any(w in bare for w in words)), bare)
            panels.setdefault(family, []).append(key)
    order = {family: i for i, (family, _) in enumerate(_FAMILIES)}
    ranked = sorted(panels.items(), key=lambda item: order.get(item[0], len(order)))
    kept = ranked[: most - len(last)] + list(last.items())
    return [
        (name, sorted(keys, key=lambda k: (k.startswith("val/"), k))[: len(LINES)]) for name, keys in kept
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
