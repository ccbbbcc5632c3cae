"""`crayon autoencoder encode`: features of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.use import inputs, table
from crayon.use.output import Output
from crayon.use.settings import Context, EncodeConfig

if TYPE_CHECKING:
    from torch import Tensor

    from crayon.use.model import Model


def work(model: Model, images: Tensor) -> Mapping[str, np.ndarray]:
    return {"features": model.encode(images).numpy()}


def run(settings: EncodeConfig, context: Context) -> None:
    """Write float32 features (N, Z), with each image's path and (of a data source) its label. Raises BadInput."""
    found = inputs.find(settings.inputs, settings.data)
    model = table.open_model(settings, context)
    network: Any = model.network("autoencoder", "encode")
    reader = found.open(model, context.emit)
    output = Output(settings.out, table.identity(context, model, found, format=settings.format))
    with output.locked():
        if table.already_done(output, context):
            return
        summary = table.Summary(output, context)
        rate = table.rows(settings, model, found, reader, output, work, context, "encoding")
        features = _write(settings, reader, output, summary)
        length = int(network.latent_dim)
        lines = {"features": f"{length} numbers each, in {features}"}
        summary.finish(model, len(reader), rate, lines, {"features": length})


def _write(settings: EncodeConfig, reader: inputs.Reader, output: Output, summary: table.Summary) -> str:
    import pyarrow as pa

    def labelled(part: pa.Table, index: np.ndarray) -> pa.Table:
        if reader.labels is None:
            return part
        names = np.array(reader.classes, dtype=object)[reader.labels[index]]
        return part.add_column(1, "label", pa.array(names, pa.string()))

    if settings.format == "parquet":
        with output.writing("features.parquet") as path:
            writer = table.Writer(path, "parquet")
            for index, part, unreadable in table.parts(output, len(reader)):
                summary.unreadable += unreadable
                writer.add(labelled(part, index))
            writer.close()
        return "features.parquet"
    rows: list[np.ndarray] = []
    with output.writing("images.csv") as path:
        writer = table.Writer(path, "csv")
        for index, part, unreadable in table.parts(output, len(reader)):
            summary.unreadable += unreadable
            rows.append(table.array(part["features"]))
            writer.add(labelled(part, index).drop_columns("features"))
        writer.close()
    with output.writing("features.npy") as path, path.open("wb") as file:
        np.save(file, np.concatenate(rows))
    return "features.npy"


def gathered(reader: inputs.Reader, output: Output, summary: table.Summary) -> tuple[np.ndarray, np.ndarray]:
    """(indices int64 (N,), features float32 (N, Z)) of all images that could be read."""
    found: list[tuple[Any, Any]] = []
    for index, part, unreadable in table.parts(output, len(reader)):
        summary.unreadable += unreadable
        found.append((index, table.array(part["features"])))
    return np.concatenate([i for i, _ in found]), np.concatenate([f for _, f in found])
