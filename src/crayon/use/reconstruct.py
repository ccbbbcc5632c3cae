"""`crayon autoencoder reconstruct`: images through the code and back, with errors, which are anomaly scores."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.report.style import LINES, chart, new_figure, render, set_title
from crayon.use.png import encode
from crayon.use.settings import Context, ReconstructConfig
from crayon.use.table import Table, Told, array, spaced

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from crayon.use.model import Model

IMAGES_SHOWN = 12


def work(model: Model, images: Tensor) -> Mapping[str, np.ndarray]:
    return {"error": model.errors(images).numpy()}


def run(settings: ReconstructConfig, context: Context) -> None:
    """Write a table of errors (mean squared, per pixel, of images in [0, 1]) and pictures. Raises BadInput.

    `score` is the error as a multiple of the run's own on its validation images: about 1 for images like those that it
    was trained on, more for anomalies.
    """
    table = Table(settings, context)
    usual = table.model.metrics.get("val/mse")

    def rows(index: np.ndarray, part: pa.Table) -> pa.Table:
        if settings.save:
            _save(table, index)
        errors = array(part["error"])
        return part.append_column("score", [errors / np.float32(usual)]) if usual else part

    def finish() -> Told:
        table.write(f"errors.{settings.format}", rows)
        index, errors = table.column("error")
        if not len(index):
            return {}, {}
        worst = np.argsort(-errors, kind="stable")[:IMAGES_SHOWN]
        for title, chosen in (("reconstructions", spaced(len(index), IMAGES_SHOWN)), ("worst", worst)):
            table.output.picture(f"pictures/{title}", _picture(table, index[chosen], errors[chosen]))
        table.output.picture("pictures/errors", _histogram(errors, usual))
        mean = float(errors.mean(dtype=np.float64))
        times = f", {mean / usual:.2f} times the run's own on validation images" if usual else ""
        largest = f"largest {errors.max():.5f} ({table.reader.names[int(index[worst[0]])]})"
        lines = {"error": f"mean {mean:.5f}{times}; {largest}"}
        return lines, {"mse": mean, "worst_error": float(errors.max())}

    table.make(work, "reconstructing", finish, format=settings.format, save=settings.save)


def _picture(table: Table, index: np.ndarray, errors: np.ndarray) -> Any:
    """Input, output and absolute difference below each other, with the error above."""
    import torch

    from crayon.report import plots

    images = torch.from_numpy(table.pixels(index))
    made = table.model.reconstruct(images)
    away = (made.int() - images.int()).abs().to(torch.uint8)
    rows, columns = ["input", "output", "difference"], [f"{e:.4f}" for e in errors]
    scale = -(-72 // table.model.form.width)
    tiles = torch.cat([images, made, away])
    return plots.image_grid(tiles, scale=scale, row_names=rows, column_names=columns)


@chart
def _histogram(errors: np.ndarray, usual: float | None) -> Any:
    figure, ax = new_figure(6.4, 3.6)
    ax.hist(errors, bins=min(60, max(10, len(errors) // 20)), color=LINES[0])
    if usual:
        ax.axvline(usual, color=LINES[1], linewidth=1.5, label="mean of the run's validation images")
        ax.margins(y=0.2)  # room for the legend above the bars
        ax.legend(frameon=False, loc="upper right")
    ax.set_xlabel("mean squared error per pixel")
    ax.set_ylabel("images")
    set_title(ax, f"Reconstruction errors of {len(errors):,} images")
    return render(figure)


def _save(table: Table, index: np.ndarray) -> None:
    """The part's reconstructions, as PNG files named by the image's number and name."""
    import torch

    folder = f"images/{int(index[0]) if len(index) else 0:08d}"
    if not len(index) or table.output.holds(folder):
        return
    reading = table.reader.start(int(index[0]), int(index[-1]) + 1)
    images = table.model.reconstruct(torch.from_numpy(reading()[0][index - index[0]]))
    # Names that a file can have here: not all can where the locale knows no more than ASCII.
    stems = ((i, PurePosixPath(table.reader.names[i]).stem[:60]) for i in index.tolist())
    names = (
        f"{i:08d}-{os.fsdecode(stem.encode(sys.getfilesystemencoding(), 'replace'))}.png" for i, stem in stems
    )
    table.output.write(folder, dict(zip(names, map(encode, images.numpy()), strict=True)))
