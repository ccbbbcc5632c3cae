"""`crayon JOB predict`: classify images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.report.events import Emit, Message
from crayon.report.words import headlines, metric_text, plain
from crayon.use import inputs
from crayon.use.settings import Context, PredictConfig
from crayon.use.table import Table, Told, array, spaced

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
    import pyarrow as pa

    table = Table(settings, context)
    classes = table.model.classes or []
    names = np.array(classes, dtype=object)
    labels = labels_of(table.reader, classes, settings.labels, context.emit)

    def rows(index: np.ndarray, part: pa.Table) -> pa.Table:
        """As people read them: path, class, probability, class_2, probability_2, ..., label."""
        probabilities = array(part["probabilities"])
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : settings.top_k]
        columns = {"path": part["path"]}
        for k in range(order.shape[1]):
            suffix = f"_{k + 1}" if k else ""
            columns[f"class{suffix}"] = pa.array(names[order[:, k]], pa.string())
            columns[f"probability{suffix}"] = np.take_along_axis(probabilities, order[:, [k]], 1)[:, 0]
        if labels is not None:
            columns["label"] = pa.array(names[labels[index]], pa.string())
        return pa.table(columns)

    def finish() -> Told:
        table.write(f"predictions.{settings.format}", rows)
        index, probabilities = table.column("probabilities")
        counts = np.bincount(probabilities.argmax(1), minlength=len(classes))
        lines = {"classes": _most(counts, classes)}
        result: dict[str, Any] = {"classes": dict(zip(classes, counts.tolist(), strict=True))}
        if len(index):
            table.output.picture("pictures/predictions", _sheet(table, probabilities, index))
        if labels is not None and len(index):
            metrics = _measure(table, probabilities, labels[index], index)
            for key in headlines({f"test/{name}": value for name, value in metrics.items()}):
                name = key.partition("/")[2]
                lines[plain(name)] = metric_text(name, metrics[name])
            result |= metrics
        return lines, result

    more = {"format": settings.format, "top_k": settings.top_k, "labels": labels is not None}
    table.make(work, "classifying", finish, **more)


def labels_of(reader: inputs.Reader, classes: list[str], wanted: str, emit: Emit) -> np.ndarray | None:
    """int64 (N,) labels among `classes`, by name; None where they aren't known."""
    if wanted == "none":
        return None
    if reader.labels is None:
        labels = inputs.folder_labels(reader.names, classes, wanted)
        strange = inputs.folders(reader.names) - set(classes) if labels is None else set()
        unlabelled = len(strange) == len(inputs.folders(reader.names))  # folders of another kind
    else:
        strange, unlabelled = set(reader.classes) - set(classes), False
        labels = None if strange else np.array([classes.index(c) for c in reader.classes])[reader.labels]
    if strange and not unlabelled:
        text = f"No figures: the model has no class {min(strange)!r}, and its classes are {', '.join(classes[:12])}."
        emit(Message(text, warning=True))
    return labels


def _most(counts: np.ndarray, classes: list[str], most: int = 10) -> str:
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    text = ", ".join(f"{classes[k]} {counts[k]:,}" for k in order[:most])
    return text + (" ..." if len(order) > most else "")


def _sheet(table: Table, probabilities: np.ndarray, index: np.ndarray) -> Any:
    """Some of the images, evenly spaced, with class and probability."""
    from crayon.report import plots

    rows, classes = spaced(len(index), IMAGES_SHOWN), table.model.classes or []
    best = probabilities[rows].argmax(1)
    titles = [f"{classes[k]}\n{100 * probabilities[i, k]:.0f} %" for i, k in zip(rows, best, strict=True)]
    scale = -(-96 // table.model.form.width)
    return plots.image_grid(table.pixels(index[rows]), titles, columns=8, scale=scale)


def _measure(
    table: Table, probabilities: np.ndarray, labels: np.ndarray, index: np.ndarray
) -> dict[str, float]:
    """What training would say of these images: its figures, and its pictures in the table's folder."""
    import torch

    from crayon.data.types import Batch
    from crayon.tasks.base import Seen
    from crayon.tasks.classification.task import statistics

    model = table.model

    def show(chosen: Tensor) -> Batch:
        shape = (0, *model.form.shape)
        rows = index[chosen.numpy()]
        images = torch.from_numpy(table.pixels(rows)) if len(rows) else torch.zeros(shape)
        known = torch.from_numpy(labels[chosen.numpy()])
        return Batch(images.to(model.device, torch.float32) / 255, known.to(model.device), chosen)

    stats = statistics(torch.from_numpy(probabilities), torch.from_numpy(labels))
    for name, picture in model.task.pictures(model.networks, Seen(stats, show)).items():
        table.output.picture(f"pictures/{name}", picture)
    return model.task.summarize(stats)
