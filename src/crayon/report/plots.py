"""Every picture a run leaves, in one style, as PIL images.

Charts are built on matplotlib's `Figure` objects without pyplot, so nothing here touches global state or
needs a display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crayon.report.style import (
    FAINT,
    INK,
    LINES,
    PAPER,
    chart,
    class_colours,
    lay_out,
    library,
    new_figure,
    render,
    set_title,
    short,
)
from crayon.report.words import metric_text


@chart
def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Of counts (K, K): rows are true classes, columns predictions. Colours are shares of the row."""
    counts = np.asarray(counts)
    k = len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"{counts.shape} counts for {k} classes")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(0.52 * k, 4.2), 15.0)
    figure, ax = new_figure(side + 1.6, side + 1.6)
    # A square root lets a class's one percent of confusions show beside its 99 percent of hits.
    image = ax.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    size = min(10.0, max(4.0, 260 / k))
    names = [short(c) for c in classes]
    upright = max(map(len, names), default=0) > 3
    ax.set_xticks(range(k), names, rotation=90 if upright else 0, fontsize=size, parse_math=False)
    ax.set_yticks(range(k), names, fontsize=size, parse_math=False)
    ax.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    ax.grid(False)
    ax.grid(which="minor", color=PAPER, linewidth=1.2 if k <= 15 else 0.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = PAPER if shares[i, j] > 0.36 else INK
        label = f"{counts[i, j]:d}"
        fitted = min(size, 90 * side / k / len(label))
        ax.text(j, i, label, ha="center", va="center", color=colour, fontsize=fitted)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    right = f"{metric_text('accuracy', np.trace(counts) / max(counts.sum(), 1))} of {counts.sum():,} right"
    set_title(ax, f"Confusion matrix  ·  {right}")
    bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_ticks(
        np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1.0]).tolist(), labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"]
    )
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    bar.outline.set_visible(False)
    return render(figure)


def image_grid(
    images: Any,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    scale: int | None = 1,
    gap: int = 2,
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Images side by side, row by row. In all texts but `title`, "\\n" breaks a line.

    images: (N, C, H, W) tensor or array, C = 1 or 3, uint8 or floating point in [0, 1] (clipped).
    titles: N captions below the images.
    columns: images in a row, where `column_names` doesn't say.
    scale: each pixel becomes `scale` x `scale`; small images are enlarged further when they carry titles, so that the
        text fits. None: images become about 96 pixels wide.
    """
    array = _rgb(images)
    n, h, w, _ = array.shape
    columns = len(column_names) or min(columns, n)
    rows = math.ceil(n / columns)
    if row_names and len(row_names) != rows:
        raise ValueError(f"{n} images in {columns} columns have not {len(row_names)} rows")
    scale = max(1, round(96 / w)) if scale is None else scale
    scale = math.ceil(72 / w) if titles is not None and w * scale < 72 else scale
    array = array.repeat(scale, 1).repeat(scale, 2)
    h, w = h * scale, w * scale
    caption, head = _height(titles or ()), _height(column_names)
    left = max((_width(name) + 14 for name in row_names if name), default=0)
    top = head + (26 if title else 0)
    canvas = Image.new(
        "RGB", (left + columns * (w + gap) + gap, top + rows * (h + gap + caption) + gap), PAPER
    )
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((6, 5), _shorten(title, _font(14), canvas.width - 12), fill=INK, font=_font(14))
    for k, name in enumerate(column_names):
        _write(draw, name, left + gap + k * (w + gap), top - head + 2, w, FAINT)
    for r, name in enumerate(row_names):
        y = top + gap + r * (h + gap + caption) + h / 2 - LINE * (name.count("\n") + 1) / 2
        _write(draw, name, 6, y, _width(name) + 1)
    for i in range(n):
        x, y = left + gap + (i % columns) * (w + gap), top + gap + (i // columns) * (h + gap + caption)
        canvas.paste(Image.fromarray(array[i]), (x, y))
        if titles is not None:
            _write(draw, titles[i], x, y + h + 2, w)
    return canvas


WORDS, LINE = 13, 16
"""Pixels of a letter's height in a grid, and from one line of text to the next: legible at two thirds of the size."""


def _rgb(images: Any) -> np.ndarray:
    """uint8 (N, H, W, 3). images: as `image_grid` takes them."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise ValueError(f"images of shape {array.shape} are not (N, 1 or 3, H, W)")
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(array, 3 // array.shape[1], 1).transpose(0, 2, 3, 1)


def _height(texts: Sequence[str]) -> int:
    lines = max((text.count("\n") + 1 for text in texts), default=0)
    return lines * LINE + 6 if lines else 0


def _width(text: str) -> int:
    return math.ceil(max(_font(WORDS).getlength(line) for line in text.split("\n")))


def _write(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, width: int, colour: str = INK) -> None:
    """Lines of text in the middle of `width` pixels, cut off where they are wider."""
    face = _font(WORDS)
    for row, line in enumerate(text.split("\n")):
        line = _shorten(line, face, width)
        draw.text((x + (width - face.getlength(line)) / 2, y + row * LINE), line, fill=colour, font=face)


def _font(size: int) -> Any:
    fonts = Path(library().get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)


def _shorten(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@chart
def scatter(
    points: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str, axes: str
) -> Image.Image:
    """Points in the plane coloured by class, with a legend; a class is named at its median where there is room.

    points: (N, 2). labels: (N,) integers into `classes`, where there are some. axes: such as "PCA component".
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    present = [c for c in range(len(classes)) if (labels == c).any()]
    columns = math.ceil(len(present) / 26)
    widest = max((len(short(classes[c])) for c in present), default=0)
    figure, ax = new_figure(7.2 + (0.35 + 0.08 * widest) * columns, 6.4)
    order = np.random.default_rng(0).permutation(len(points))  # no class on top of the others
    palette = np.array(class_colours(max(len(classes), 1)))
    colours = palette[labels[order]] if len(classes) else palette[0]
    size = float(np.clip(24_000 / max(len(points), 1), 3, 26))
    ax.scatter(*points[order].T, c=colours, s=size, alpha=0.7, linewidths=0)
    ax.set(xlabel=f"{axes} 1", ylabel=f"{axes} 2")
    set_title(ax, title)
    if present:
        dots = [ax.plot([], [], "o", color=palette[c], label="?")[0] for c in present]
        legend = ax.legend(
            handles=dots, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns, frameon=False,
            fontsize=9 if len(present) <= 20 else 7.5, labelcolor=INK, handletextpad=0.2, columnspacing=1,
        )  # fmt: skip
        for text, c in zip(
            legend.get_texts(), present, strict=True
        ):  # as they are: no formulas, "_" is a letter
            text.set_parse_math(False)
            text.set_text(short(classes[c]))
        _name_at_medians(figure, ax, points, labels, {c: short(classes[c]) for c in present})
    return render(figure)


def _name_at_medians(
    figure: Any, ax: Any, points: np.ndarray, labels: np.ndarray, names: dict[int, str]
) -> None:
    """Write each class's name into its points, the largest class first, but for names that would lie on another."""
    from matplotlib.patheffects import withStroke

    style = {"ha": "center", "va": "center", "fontweight": "bold", "parse_math": False, "color": INK}
    style |= {"path_effects": [withStroke(linewidth=3.5, foreground=PAPER)]}
    style |= {"fontsize": 11 if len(names) <= 15 else 8}
    texts = [
        ax.text(*np.median(points[labels == c], 0), names[c], **style)
        for c in sorted(names, key=lambda c: -(labels == c).sum())
    ]
    lay_out(figure)
    taken: list[Any] = []
    for text in texts:
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


@chart
def reliability(confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray) -> Image.Image:
    """How often a classifier is right when it is this sure, and how often it is that sure (Guo et al. 2017).

    Args are of bins, (bins,): mean confidence and share right, in [0, 1], and images. Empty ones are left out.
    """
    confidence, accuracy, counts = (np.asarray(a, dtype=np.float64) for a in (confidence, accuracy, counts))
    used = counts > 0
    gap = float((np.abs(confidence - accuracy) * counts)[used].sum() / max(counts.sum(), 1))
    figure, (ax, below) = new_figure(5.6, 6.6, rows=2, height_ratios=(3.2, 1), sharex=True)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.vlines(confidence[used], accuracy[used], confidence[used], color=LINES[1], linewidth=5, alpha=0.3)
    ax.plot(confidence[used], accuracy[used], color=LINES[0], marker="o", markersize=5, linewidth=1.6)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    ax.set_title(f"calibration error {metric_text('ece', gap)}", loc="right", color=INK, fontsize=10)
    width = 0.8 / max(len(counts), 1)
    below.bar(confidence[used], counts[used] / max(counts.sum(), 1), width=width, color=LINES[0])
    below.set(xlabel="confidence", ylabel="share of images")
    set_title(ax, "Reliability")
    return render(figure)
