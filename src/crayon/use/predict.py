"""`crayon JOB predict`: classify images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.report.words import headlines, metric_text
from crayon.use import inputs, table
from crayon.use.output import Output
from crayon.use.settings import Context, PredictConfig

if TYPE_CHECKING:
    from torch import Tensor

    from crayon.data.types import Batch
    from crayon.use.model import Model

IMAGES_SHOWN = 40
"""How many images are shown with their classes."""


def work(model: Model, images: Tensor) -> Mapping[str, np.ndarray]:
    return {"probabilities": model.classify(images).numpy()}


def run(settings: PredictConfig, context: Context) -> None:
    """Write a table with a row per image, pictures, and (where the classes are known) the figures of training.

    Raises BadInput.
    """
    found = inputs.find(settings.inputs, settings.data)
    model = table.open_model(settings, context)
    reader = found.open(model, context.emit)
    classes = model.classes or []
    labels = labels_of(reader, classes, settings.labels)
    more = {"format": settings.format, "top_k": settings.top_k, "labels": labels is not None}
    output = Output(settings.out, table.identity(context, model, found, **more))
    with output.locked():
        if table.already_done(output, context):
            return
        summary = table.Summary(output, context)
        rate = table.rows(settings, model, found, reader, output, work, context, "classifying")
        _finish(settings, model, reader, labels, output, summary, rate)


def labels_of(reader: inputs.Reader, classes: list[str], wanted: str) -> np.ndarray | None:
    """int64 (N,) labels among `classes`, None where they aren't known."""
    if reader.labels is None:
        return inputs.folder_labels(reader.names, classes, wanted)
    if wanted == "none" or not set(reader.classes) <= set(classes):
        return None
    return np.array([classes.index(name) for name in reader.classes])[reader.labels]


def _finish(
    settings: PredictConfig,
    model: Model,
    reader: inputs.Reader,
    labels: np.ndarray | None,
    output: Output,
    summary: table.Summary,
    rate: float,
) -> None:
    name = f"predictions.{settings.format}"
    kept: list[np.ndarray] = []
    indices: list[np.ndarray] = []
    with output.writing(name) as path:
        writer = table.Writer(path, settings.format)
        for index, part, unreadable in table.parts(output, len(reader)):
            summary.unreadable += unreadable
            probabilities = table.array(part["probabilities"])
            writer.add(_named(part, probabilities, settings.top_k, model.classes or [], labels, index))
            kept.append(probabilities)
            indices.append(index)
        writer.close()
    probabilities, index = np.concatenate(kept), np.concatenate(indices)
    counts = np.bincount(probabilities.argmax(1), minlength=len(model.classes or []))
    lines = {"classes": _most(counts, model.classes or [])}
    result: dict[str, Any] = {"classes": dict(zip(model.classes or [], counts.tolist(), strict=True))}
    if len(index):
        output.picture("pictures/predictions", _sheet(model, reader, probabilities, index))
    if labels is not None and len(index):
        metrics = _measure(model, reader, probabilities, labels[index], index, output)
        result |= metrics
        shown = headlines({f"test/{name}": value for name, value in metrics.items()})
        for key in shown:
            name = key.partition("/")[2]
            lines[name] = metric_text(name, metrics[name])
    summary.finish(model, len(reader), rate, lines, result)


def _named(
    part: Any,
    probabilities: np.ndarray,
    top_k: int,
    classes: list[str],
    labels: np.ndarray | None,
    index: np.ndarray,
) -> Any:
    """The part's rows as people read them: path, class, probability, class_2, probability_2, ..., label."""
    import pyarrow as pa

    names = np.array(classes, dtype=object)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    columns = {"path": part["path"]}
    for k in range(order.shape[1]):
        suffix = f"_{k + 1}" if k else ""
        columns[f"class{suffix}"] = pa.array(names[order[:, k]], pa.string())
        columns[f"probability{suffix}"] = pa.array(
            np.take_along_axis(probabilities, order[:, k : k + 1], 1)[:, 0]
        )
    if labels is not None:
        columns["label"] = pa.array(names[labels[index]], pa.string())
    return pa.table(columns)


def _most(counts: np.ndarray, classes: list[str], most: int = 10) -> str:
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    text = ", ".join(f"{classes[k]} {counts[k]:,}" for k in order[:most])
    return text + (" ..." if len(order) > most else "")


def _sheet(model: Model, reader: inputs.Reader, probabilities: np.ndarray, index: np.ndarray) -> Any:
    """Some of the images, evenly spaced, with class and probability."""
    from crayon.report import plots

    rows = np.unique(np.linspace(0, len(index) - 1, min(IMAGES_SHOWN, len(index))).round().astype(int))
    classes = model.classes or []
    best = probabilities[rows].argmax(1)
    titles = [f"{classes[k]}\n{100 * probabilities[i, k]:.0f} %" for i, k in zip(rows, best, strict=True)]
    return plots.image_grid(
        table.pixels(reader, index[rows]), titles, columns=8, scale=-(-96 // model.image_size)
    )


def batch(
    model: Model, reader: inputs.Reader, index: np.ndarray, labels: np.ndarray, positions: Tensor
) -> Batch:
    """The images `index` as a task's pictures take them."""
    import torch

    from crayon.data.types import Batch

    shape = (0, model.channels, model.image_size, model.image_size)
    images = torch.from_numpy(table.pixels(reader, index)) if len(index) else torch.zeros(shape)
    return Batch(
        images.to(model.device, torch.float32) / 255, torch.from_numpy(labels).to(model.device), positions
    )


def _measure(
    model: Model,
    reader: inputs.Reader,
    probabilities: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    output: Output,
) -> dict[str, float]:
    """What training would say of these images: its figures, and its pictures in `output`."""
    import torch

    from crayon.tasks.base import Seen
    from crayon.tasks.classification.task import statistics

    def show(chosen: torch.Tensor) -> Batch:
        return batch(model, reader, index[chosen.numpy()], labels[chosen.numpy()], chosen)

    stats = statistics(torch.from_numpy(probabilities), torch.from_numpy(labels))
    for name, picture in model.task.pictures(model.networks, Seen(stats, show)).items():
        output.picture(f"pictures/{name}", picture)
    return model.task.summarize(stats)
