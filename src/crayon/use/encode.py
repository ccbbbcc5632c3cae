"""`crayon autoencoder encode`: features of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from crayon.use.settings import Context, EncodeConfig
from crayon.use.table import Table, Told

if TYPE_CHECKING:
    from torch import Tensor

    from crayon.use.model import Model


def work(model: Model, images: Tensor) -> Mapping[str, np.ndarray]:
    return {"features": model.encode(images).numpy()}


def run(settings: EncodeConfig, context: Context) -> None:
    """Write float32 features (N, Z), with each image's path and (of a data source) its label. Raises BadInput."""
    import pyarrow as pa

    table = Table(settings, context)

    def labelled(index: np.ndarray, part: pa.Table) -> pa.Table:
        if table.reader.labels is None:
            return part
        names = np.array(table.reader.classes, dtype=object)[table.reader.labels[index]]
        return part.add_column(1, "label", pa.array(names, pa.string()))

    def finish() -> Told:
        if settings.format == "parquet":
            table.write("features.parquet", labelled)
        else:
            table.write("images.csv", lambda index, part: labelled(index, part).drop_columns("features"))
            with table.output.writing("features.npy") as path, path.open("wb") as file:
                np.save(file, table.column("features")[1])
        length = table.model.task.latent_dim
        lines = {"features": f"{length} numbers each, in features.{settings.format}"}
        return lines, {"features": length}

    table.make(work, "encoding", finish, format=settings.format)
