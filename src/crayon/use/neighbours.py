"""`crayon autoencoder neighbours`: the images whose features are nearest to those of a given one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from crayon.errors import BadInput
from crayon.use import inputs, table
from crayon.use.encode import gathered, work
from crayon.use.output import Output
from crayon.use.settings import Context, NeighboursConfig, SourceConfig

if TYPE_CHECKING:
    from crayon.use.model import Model

MOST_SHOWN = 12
"""How many queries are shown with their neighbours."""
QUERIES_AT_ONCE = 256


def run(settings: NeighboursConfig, context: Context) -> None:
    """Write neighbours.csv (query, rank, path, Euclidean distance of the standardised codes) and a picture.

    A query's own file is left out of its neighbours. Raises BadInput.
    """
    import pyarrow as pa
    import torch

    if not settings.among and settings.data.source is None:
        raise BadInput("Nothing to look among; give --among with files, folders or globs, or --data.source.")
    asked = inputs.find(settings.inputs, SourceConfig())
    found = inputs.find(settings.among, settings.data)
    model = table.open_model(settings, context)
    model.network("autoencoder", "neighbours")
    queries, reader = asked.open(model), found.open(model, context.emit)
    about = {"queries": list(asked.files), "count": settings.count}
    output = Output(settings.out, table.identity(context, model, found, **about))
    with output.locked():
        if table.already_done(output, context):
            return
        summary = table.Summary(output, context)
        rate = table.rows(settings, model, found, reader, output, work, context, "encoding")
        index, features = gathered(reader, output, summary)
        pixels, bad = queries.start(0, len(queries)).result()
        if bad:
            raise BadInput(f"The image {queries.names[bad[0][0]]} can't be read ({bad[0][1]}).")
        codes = model.encode(torch.from_numpy(pixels))
        own = {name: i for i, name in enumerate(reader.names)} if found.files else {}
        where, distances = _nearest(
            codes.numpy(), features, index, [own.get(n) for n in queries.names], settings.count
        )
        count = where.shape[1]
        rows = {
            "query": np.repeat(np.array(list(queries.names), dtype=object), count),
            "rank": np.tile(np.arange(1, count + 1), len(queries)),
            "path": np.array([reader.names[int(i)] for i in where.flatten()], dtype=object),
            "distance": distances.flatten(),
        }
        with output.writing("neighbours.csv") as path:
            writer = table.Writer(path, "csv")
            writer.add(pa.table(rows))
            writer.close()
        output.picture("pictures/neighbours", _picture(model, pixels, reader, where, distances))
        summary.finish(
            model, len(reader), rate, {"neighbours": f"{count} of each of {len(queries):,} images"}, {}
        )


def _nearest(
    codes: np.ndarray, features: np.ndarray, index: np.ndarray, own: list[int | None], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(image numbers, distances), (Q, count) each, the nearest first. `own`: a query's number among the images."""
    import torch

    count = max(min(count, len(index) - any(i is not None for i in own)), 0)
    if not count:
        raise BadInput("There is no image to compare with; give more with --among.")
    data = torch.from_numpy(features)
    numbers, distances = [], []
    for first in range(0, len(codes), QUERIES_AT_ONCE):
        part = torch.cdist(torch.from_numpy(codes[first : first + QUERIES_AT_ONCE]), data)
        for row, self_index in enumerate(own[first : first + QUERIES_AT_ONCE]):
            if self_index is not None:
                part[row, torch.from_numpy(index == self_index)] = torch.inf
        found = part.topk(count, largest=False)
        numbers.append(index[found.indices.numpy()])
        distances.append(found.values.numpy())
    return np.concatenate(numbers), np.concatenate(distances)


def _picture(
    model: Model, queries: np.ndarray, reader: inputs.Reader, where: np.ndarray, distances: np.ndarray
) -> object:
    """A query per row, its neighbours to the right."""
    from crayon.report import plots

    tiles, titles = [], []
    for query, numbers, far in zip(queries[:MOST_SHOWN], where, distances, strict=False):
        tiles += [query[None], table.pixels(reader, numbers)]
        titles += ["query", *(f"{d:.2f}" for d in far)]
    columns = 1 + where.shape[1]
    scale = -(-72 // model.image_size)
    return plots.image_grid(np.concatenate(tiles), titles, columns=columns, scale=scale)
