"""One row per image: read, put through a model in blocks, kept as Parquet parts, and read back in order."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.errors import BadInput
from crayon.report.events import Message
from crayon.report.words import seconds_text
from crayon.use import inputs
from crayon.use.inputs import Inputs, Reading
from crayon.use.output import Output
from crayon.use.settings import Context, SpreadConfig
from crayon.use.spread import BlockFunction, opener, run_blocks

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from crayon.use.model import Model

BLOCK_IMAGES = 2048
BLOCK_BYTES = 64 << 20
"""A block has at most so many images, and pixels: two of them are in memory at a time."""
NAMED_FILES = 3
"""How many unreadable files are named on the terminal."""
Work = Callable[["Model", "Tensor"], Mapping[str, np.ndarray]]
"""(model, uint8 (B, C, H, W)) -> columns by name, (B,) or (B, D)."""
Told = tuple[dict[str, str], dict[str, Any]]
"""What a command tells at its end by name, and what it adds to result.json."""


def same_job(job: str, uri: str, context: Context) -> None:
    """Raises BadInput where the checkpoint at `uri` is of another job than the command."""
    if job != context.job:
        raise BadInput(
            f"{uri} is of a run of {job}, and {context.program} needs one of {context.job}; "
            f"crayon {job} --help names what can be done with it."
        )


class Table:
    """What a command makes of many images: opens the model and the images, makes the rows, tells the result.

    `reader` has the images, `output` (once `make` is called) the folder for the results.
    """

    def __init__(self, settings: SpreadConfig, context: Context, found: Inputs | None = None):
        """found: the images; those of `settings.inputs` by default. Raises BadInput."""
        self.settings, self.context = settings, context
        self.inputs = found or inputs.find(settings.inputs, settings.data, context.emit)
        from crayon.use.model import load

        self.model = load(settings.run, settings.checkpoint, settings.device)
        same_job(self.model.job, self.model.uri, context)
        self.reader = self.inputs.open(self.model, context.emit)
        self.unreadable: dict[int, tuple[str, str]] = {}
        """(name, reason) by number, once the rows were read."""

    def make(self, work: Work, what: str, finish: Callable[[], Told], **identity: Any) -> None:
        """All of a command: the rows by `work`, then what `finish` makes of them; or, where that was done before, the
        same result told again.

        what: is being done, for the progress shown. identity: what decides the results beside model and images.
        """
        self.output = output = Output(self.settings.out, self._identity() | identity)
        model, began, count = self.model, time.perf_counter(), len(self.reader)
        with output.locked():
            if (result := output.result()) is not None:
                self.context.emit(Message("This was done already; these are its results."))
                return self._tell(result)
            size = block_size(model)
            starts = range(0, count, size)
            rate = run_blocks(
                partial(blocks, opener(self.settings, model), self.inputs, size, work),
                [_part(k) for k in range(len(starts))],
                [min(size, count - start) for start in starts],
                output,
                self.settings,
                model.config,
                self.context.emit,
                what,
            )
            lines, more = finish()
            bad = list(self.unreadable.values())
            if bad:
                # One line each: names are as `name_text` has them.
                output.write("unreadable.txt", "".join(f"{name}\t{why}\n" for name, why in bad).encode())
            if len(bad) == count:
                (name, why), note = bad[0], output.path / "unreadable.txt"
                raise BadInput(
                    f"None of the {count:,} images can be read (first: {name}: {why}; all: {note})."
                )
            result = {
                "command": self.context.command,
                "model": model.uri,
                "step": model.step,
                "images": count - len(bad),
                "unreadable": len(bad),
                "seconds": time.perf_counter() - began,
                "images_per_second": rate,
                **more,
                "told": lines,
                "worst": bad[:NAMED_FILES],
            }
            output.finish(result)
            self._tell(result)

    def _identity(self) -> dict[str, Any]:
        files = hashlib.sha256("\n".join(self.inputs.files).encode(errors="surrogateescape")).hexdigest()
        source = None if self.inputs.source is None else vars(self.inputs.source)
        return {
            "command": self.context.program.split()[-1],
            "model": self.model.uri,
            "step": self.model.step,
            "weights": self.model.digest,
            "images": {"files": len(self.inputs.files), "names": files, "source": source},
        }

    def _tell(self, result: Mapping[str, Any]) -> None:
        rate, bad, worst = result["images_per_second"], result["unreadable"], result["worst"]
        speed = f", {rate:,.0f}/s" if rate else ""
        lines = {"images": f"{result['images']:,} in {seconds_text(result['seconds'])}{speed}"}
        if bad:
            shown = "; ".join(f"{path}: {reason}" for path, reason in worst)
            more = " ..." if bad > len(worst) else ""
            note = f"{self.output.path}/unreadable.txt"
            lines["unreadable"] = f"{bad:,}, left out ({shown}{more}), listed in {note}"
        lines |= result["told"] | {"results": str(self.output.path)}
        width = max(12, *(len(key) + 2 for key in lines))
        for key, text in lines.items():
            self.context.emit(Message(f"{key:<{width}}{text}"))

    def parts(self) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """(numbers of the images that could be read, their rows), part by part in order."""
        import pyarrow.parquet as pq

        first = block = 0
        while first < len(self.reader):
            rows = pq.read_table(self.output.path / _part(block))
            readable = rows["unreadable"].is_null().to_numpy()
            for i in np.flatnonzero(~readable).tolist():
                self.unreadable[first + i] = (rows["path"][i].as_py(), rows["unreadable"][i].as_py())
            yield first + np.flatnonzero(readable), rows.filter(readable).drop_columns("unreadable")
            first, block = first + len(rows), block + 1

    def write(self, name: str, rows: Callable[[np.ndarray, pa.Table], pa.Table]) -> None:
        """A table of what `rows` makes of each of `parts`, as CSV or Parquet by the ending of its name."""
        import pyarrow.csv
        import pyarrow.parquet

        kind = pyarrow.csv.CSVWriter if name.endswith(".csv") else pyarrow.parquet.ParquetWriter
        tables = (rows(index, part) for index, part in self.parts())
        first = next(tables)
        with self.output.writing(name) as path, kind(str(path), first.schema) as writer:
            writer.write(first)
            for table in tables:
                writer.write(table)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers int64 (N,), values (N,) or (N, D)) of all images that could be read."""
        found = [(index, array(part[name])) for index, part in self.parts()]
        return np.concatenate([index for index, _ in found]), np.concatenate([v for _, v in found])

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) of a few images, wherever they stand."""
        waiting = [self.reader.start(int(i), int(i) + 1) for i in index]
        return np.concatenate([reading()[0] for reading in waiting])


def spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0..count-1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def block_size(model: Model) -> int:
    """Images in a block: whole passes of the model."""
    fitting = BLOCK_BYTES // (math.prod(model.form.shape))
    return max(min(BLOCK_IMAGES, fitting) // model.block, 1) * model.block


def blocks(opened: Callable[[], Model], found: Inputs, size: int, work: Work) -> BlockFunction:
    """What makes blocks of `size` rows, in whatever process it is called: see crayon.use.spread."""
    import torch

    model = opened()
    reader = found.open(model)
    ahead: dict[int, Reading] = {}

    def start(block: int) -> Reading:
        return reader.start(block * size, min((block + 1) * size, len(reader)))

    def make(block: int, following: int | None) -> bytes:
        reading = ahead.pop(block, None) or start(block)
        ahead.clear()
        pixels, unreadable = reading()
        if following is not None:  # decoded while the model is at work on this one
            ahead[following] = start(following)
        first = block * size
        reasons: list[str | None] = [None] * len(pixels)
        for index, reason in unreadable:
            reasons[index - first] = reason
        columns = work(model, torch.from_numpy(pixels))
        return _encoded(list(reader.names[first : first + len(pixels)]), reasons, columns)

    return make


def _part(block: int) -> str:
    return f"parts/{block:06d}.parquet"


def _encoded(names: list[str], reasons: list[str | None], columns: Mapping[str, np.ndarray]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {"path": pa.array(names), "unreadable": pa.array(reasons, pa.string())}
    for name, values in columns.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        arrays[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink, use_dictionary=False, compression="none")
    return sink.getvalue().to_pybytes()


def array(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) of numbers, (N, D) of lists of D numbers."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
