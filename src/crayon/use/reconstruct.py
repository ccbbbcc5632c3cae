"""`crayon autoencoder reconstruct`: images through the code and back, with errors, which are anomaly scores."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.report.style import LINES, chart, new_figure, render, set_title
from crayon.use import inputs, table
from crayon.use.output import Output
from crayon.use.settings import Context, ReconstructConfig

if TYPE_CHECKING:
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
    found = inputs.find(settings.inputs, settings.data)
    model = table.open_model(settings, context)
    model.network("autoencoder", "reconstruct")
    reader = found.open(model, context.emit)
    more = {"format": settings.format, "save": settings.save}
    output = Output(settings.out, table.identity(context, model, found, **more))
    with output.locked():
        if table.already_done(output, context):
            return
        summary = table.Summary(output, context)
        rate = table.rows(settings, model, found, reader, output, work, context, "reconstructing")
        _finish(settings, model, reader, output, summary, rate)


def _finish(
    settings: ReconstructConfig,
    model: Model,
    reader: inputs.Reader,
    output: Output,
    summary: table.Summary,
    rate: float,
) -> None:
    import pyarrow as pa

    name = f"errors.{settings.format}"
    usual = model.metrics.get("val/mse")
    indices, kept = [], []
    with output.writing(name) as path:
        writer = table.Writer(path, settings.format)
        for index, part, unreadable in table.parts(output, len(reader)):
            summary.unreadable += unreadable
            errors = table.array(part["error"])
            columns = {"path": part["path"], "error": errors}
            if usual:
                columns["score"] = errors / np.float32(usual)
            writer.add(pa.table(columns))
            indices.append(index)
            kept.append(errors)
            if settings.save:
                _save(model, reader, index, output)
        writer.close()
    index, errors = np.concatenate(indices), np.concatenate(kept)
    lines, result = {}, {}
    if len(index):
        worst = np.argsort(-errors, kind="stable")[:IMAGES_SHOWN]
        spaced = np.unique(np.linspace(0, len(index) - 1, min(IMAGES_SHOWN, len(index))).round().astype(int))
        for title, rows in (("reconstructions", spaced), ("worst", worst)):
            output.picture(f"pictures/{title}", _picture(model, reader, index[rows], errors[rows]))
        output.picture("pictures/errors", _histogram(errors, usual))
        mean = float(errors.mean(dtype=np.float64))
        result = {"mse": mean, "worst_error": float(errors.max())}
        times = f", {mean / usual:.2f} times the run's own on validation images" if usual else ""
        lines = {
            "error": f"mean {mean:.5f}{times}; largest {errors.max():.5f} ({reader.names[int(index[worst[0]])]})"
        }
    summary.finish(model, len(reader), rate, lines, result)


def _picture(model: Model, reader: inputs.Reader, index: np.ndarray, errors: np.ndarray) -> Any:
    """Input, output and absolute difference below each other, with the error."""
    import torch

    from crayon.report import plots

    images = torch.from_numpy(table.pixels(reader, index))
    made = model.reconstruct(images)
    away = (made.int() - images.int()).abs().to(torch.uint8)
    rest = [""] * (len(index) - 1)
    titles = ["input", *rest, "output", *rest, *(f"{e:.4f}" for e in errors)]
    scale = -(-72 // model.image_size)
    return plots.image_grid(torch.cat([images, made, away]), titles, columns=len(index), scale=scale)


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


def _save(model: Model, reader: inputs.Reader, index: np.ndarray, output: Output) -> None:
    """The part's reconstructions, as PNG files named by the image's number and name."""
    import torch
    from PIL import Image

    folder = f"images/{int(index[0]) if len(index) else 0:08d}"
    if not len(index) or output.holds(folder):
        return
    pixels = reader.start(int(index[0]), int(index[-1]) + 1).result()[0][index - index[0]]
    files = {}
    for i, made in zip(index, model.reconstruct(torch.from_numpy(pixels)).numpy(), strict=True):
        encoded = io.BytesIO()
        Image.fromarray(made[0] if len(made) == 1 else made.transpose(1, 2, 0)).save(encoded, "PNG")
        files[f"{int(i):08d}-{PurePosixPath(reader.names[int(i)]).stem[:60]}.png"] = encoded.getvalue()
    output.write(folder, files)
