"""`crayon autoencoder neighbours`: the images whose features are nearest to those of a given one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.errors import BadInput
from crayon.use import inputs
from crayon.use.encode import work
from crayon.use.settings import Context, NeighboursConfig, SourceConfig
from crayon.use.table import Table, Told

if TYPE_CHECKING:
    from torch import Tensor

MOST_SHOWN = 12
"""How many queries are shown with their neighbours."""


def run(settings: NeighboursConfig, context: Context) -> None:
    """Write neighbours.csv (query, rank, path, Euclidean distance of the standardised codes) and a picture.

    A query's own file is left out of its neighbours. Raises BadInput.
    """
    if not settings.among and settings.data.source is None:
        raise BadInput("Nothing to look among; give --among with files, folders or globs, or --data.source.")
    asked = inputs.find(settings.inputs, SourceConfig(), context.emit)
    table = Table(settings, context, inputs.find(settings.among, settings.data, context.emit))
    queries = asked.open(table.model)

    def finish() -> Told:
        import pyarrow as pa
        import torch
        from pyarrow.csv import write_csv

        index, features = table.column("features")
        pixels, bad = queries.start(0, len(queries))()
        if bad:
            raise BadInput(f"The image {queries.names[bad[0][0]]} can't be read ({bad[0][1]}).")
        codes = table.model.encode(torch.from_numpy(pixels))
        known = table.reader.names
        number = {name: i for i, name in enumerate(known)} if table.inputs.files else {}
        own = np.array([number.get(name, -1) for name in queries.names])
        where, distances = _nearest(codes, features, index, own, settings.count)
        count = where.shape[1]
        rows = {
            "query": np.repeat(np.array(list(queries.names), dtype=object), count),
            "rank": np.tile(np.arange(1, count + 1), len(queries)),
            "path": np.array([known[int(i)] for i in where.flatten()], dtype=object),
            "distance": distances.flatten(),
        }
        with table.output.writing("neighbours.csv") as path:
            write_csv(pa.table(rows), path)
        table.output.picture("pictures/neighbours", _picture(table, pixels, where, distances))
        return {"neighbours": f"{count} of each of {len(queries):,} images"}, {}

    table.make(work, "encoding", finish, queries=list(asked.files), count=settings.count)


def _nearest(
    codes: Tensor, features: np.ndarray, index: np.ndarray, own: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(image numbers, distances), (Q, count) each, the nearest first. `own`: each query's number among the
    images, -1 where it isn't one of them."""
    import torch

    from crayon.tasks.adversarial.distances import nearest

    count = max(min(count, len(index) - bool((own >= 0).any())), 0)
    if not count:
        raise BadInput("There is no image to compare with; give more with --among.")
    distances, places = nearest(codes, torch.from_numpy(features), count + 1)
    numbers = index[places.numpy()]
    # One more than is wanted: a query's own is left out, or else the last.
    chosen = np.argsort(numbers == own[:, None], axis=1, kind="stable")[:, :count]
    return np.take_along_axis(numbers, chosen, 1), np.take_along_axis(distances.float().numpy(), chosen, 1)


def _picture(table: Table, queries: np.ndarray, where: np.ndarray, distances: np.ndarray) -> Any:
    """A query per row, its neighbours to the right."""
    from crayon.report import plots

    tiles, titles = [], []
    for query, numbers, far in zip(queries[:MOST_SHOWN], where, distances, strict=False):
        tiles += [query[None], table.pixels(numbers)]
        titles += ["query", *(f"{d:.2f}" for d in far)]
    scale = -(-72 // table.model.form.width)
    return plots.image_grid(np.concatenate(tiles), titles, columns=1 + where.shape[1], scale=scale)
