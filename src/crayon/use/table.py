"""One row per image: read, put through a model in blocks, kept as Parquet parts, and read back in order."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.errors import BadInput
from crayon.report.events import Message
from crayon.report.words import seconds_text
from crayon.use.inputs import Inputs, Reader, quiet
from crayon.use.output import Output
from crayon.use.settings import Context, SpreadConfig, UseConfig
from crayon.use.spread import BlockFunction, run_blocks

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


def open_model(settings: UseConfig, context: Context) -> Model:
    """The model that a command is to use. Raises BadInput where it is of another job."""
    from crayon.use.model import load

    model = load(settings.run, settings.checkpoint, settings.device)
    same_job(model.job, model.uri, context)
    return model


def same_job(job: str, uri: str, context: Context) -> None:
    """Raises BadInput where the checkpoint at `uri` is of another job than the command."""
    if job != context.job:
        raise BadInput(
            f"{uri} is of a run of {job}, and {context.program} needs one of {context.job}; "
            f"crayon {job} --help names what can be done with it."
        )


def block_size(model: Model) -> int:
    """Images in a block: whole passes of the model."""
    fitting = BLOCK_BYTES // (model.channels * model.image_size**2)
    return max(min(BLOCK_IMAGES, fitting) // model.block, 1) * model.block


@dataclass(frozen=True)
class Rows:
    """Makes blocks of rows, in whatever process it is called. See crayon.use.spread."""

    run: str
    step: int
    device: str
    inputs: Inputs
    block: int
    work: Work

    def __call__(self) -> BlockFunction:
        import torch

        from crayon.fast.allocator import keep_freed_memory
        from crayon.use.model import load

        quiet()
        keep_freed_memory()
        model = load(self.run, self.step, self.device)
        reader = self.inputs.open(model)
        ahead: dict[int, Future] = {}

        def start(block: int) -> Future:
            return reader.start(block * self.block, min((block + 1) * self.block, len(reader)))

        def make(block: int, following: int | None) -> bytes:
            reading = ahead.pop(block, None) or start(block)
            ahead.clear()
            pixels, unreadable = reading.result()
            if following is not None:  # decoded while the model is at work on this one
                ahead[following] = start(following)
            first = block * self.block
            reasons: list[str | None] = [None] * len(pixels)
            for index, reason in unreadable:
                reasons[index - first] = reason
            columns = self.work(model, torch.from_numpy(pixels))
            return _encoded(list(reader.names[first : first + len(pixels)]), reasons, columns)

        return make


def rows(
    settings: SpreadConfig,
    model: Model,
    inputs: Inputs,
    reader: Reader,
    output: Output,
    work: Work,
    context: Context,
    what: str,
) -> float:
    """Make the rows of all images that `output` hasn't got yet; returns images per second."""
    size = block_size(model)
    starts = range(0, len(reader), size)
    run = settings.run if "://" in settings.run else os.path.abspath(os.path.expanduser(settings.run))
    return run_blocks(
        Rows(run, model.step, settings.device, inputs, size, work),
        [part(k) for k in range(len(starts))],
        [min(size, len(reader) - start) for start in starts],
        output,
        workers=settings.workers,
        device=settings.device,
        config=model.config,
        emit=context.emit,
        what=what,
    )


def part(block: int) -> str:
    return f"parts/{block:06d}.parquet"


def identity(context: Context, model: Model, inputs: Inputs, **more: Any) -> dict[str, Any]:
    """What decides the rows: see Output."""
    files = hashlib.sha256("\n".join(inputs.files).encode(errors="surrogateescape")).hexdigest()
    source = None if inputs.source is None else vars(inputs.source)
    return {
        "command": context.program.split()[-1],
        "model": model.uri,
        "step": model.step,
        "weights": model.digest,
        "images": {"files": len(inputs.files), "names": files, "source": source},
        **more,
    }


def _encoded(names: list[str], reasons: list[str | None], columns: Mapping[str, np.ndarray]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {"path": pa.array(names), "unreadable": pa.array(reasons, pa.string())}
    arrays |= {name: column(values) for name, values in columns.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink, use_dictionary=False, compression="none")
    return sink.getvalue().to_pybytes()


def column(values: np.ndarray) -> pa.Array:
    """(N,) as it is, (N, D) as lists of D."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
    )


def array(column: pa.ChunkedArray) -> np.ndarray:
    """What `column` made an Arrow array of."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def parts(output: Output, count: int) -> Iterator[tuple[np.ndarray, pa.Table, list[tuple[str, str]]]]:
    """(indices of the images that could be read, their rows, (path, reason) of the others), part by part in order."""
    import pyarrow.parquet as pq

    first, block = 0, 0
    while first < count:
        table = pq.read_table(output.path / part(block))
        readable = table["unreadable"].is_null().to_numpy()
        bad = table.filter(~readable)
        reasons = list(zip(bad["path"].to_pylist(), bad["unreadable"].to_pylist(), strict=True))
        yield first + np.flatnonzero(readable), table.filter(readable).drop_columns("unreadable"), reasons
        first, block = first + len(table), block + 1


def pixels(reader: Reader, index: np.ndarray) -> np.ndarray:
    """uint8 (N, C, H, W) of a few images, wherever they stand."""
    waiting = [reader.start(int(i), int(i) + 1) for i in index]
    return np.concatenate([reading.result()[0] for reading in waiting])


class Writer:
    """A table that grows part by part, as CSV or Parquet."""

    def __init__(self, path: Path, format: str):
        self.path, self.format = path, format
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        import pyarrow.csv
        import pyarrow.parquet

        if self._writer is None:
            kind = pyarrow.csv.CSVWriter if self.format == "csv" else pyarrow.parquet.ParquetWriter
            self._writer = kind(str(self.path), table.schema)
        self._writer.write_table(table) if self.format == "parquet" else self._writer.write(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Summary:
    """What is told and kept at the end, by every command that reads many images."""

    def __init__(self, output: Output, context: Context):
        self.output, self.context = output, context
        self.began = time.perf_counter()
        self.unreadable: list[tuple[str, str]] = []

    def finish(
        self, model: Model, count: int, rate: float, lines: dict[str, str], result: dict[str, Any]
    ) -> None:
        """Write result.json and tell `lines`. Raises BadInput where not one image could be read."""
        bad = len(self.unreadable)
        note = self.output.path / "unreadable.txt"
        if bad:
            # One line each, whatever characters a name has.
            lines_of = (
                f"{path if path.isprintable() else repr(path)}\t{why}\n" for path, why in self.unreadable
            )
            text = "".join(lines_of)
            self.output.write(note.name, text.encode(errors="replace"))
        whole = {
            "command": self.context.command,
            "model": model.uri,
            "step": model.step,
            "images": count - bad,
            "unreadable": bad,
            "seconds": time.perf_counter() - self.began,
            "images_per_second": rate,
            **result,
            "told": lines,
            "worst": self.unreadable[:NAMED_FILES],
        }
        if bad == count:
            path, reason = self.unreadable[0]
            raise BadInput(
                f"None of the {count:,} images can be read (first: {path}: {reason}; all: {note})."
            )
        self.output.finish(whole)
        print_result(self.output, whole, self.context)


def print_result(output: Output, result: Mapping[str, Any], context: Context) -> None:
    """A finished command's result, on the terminal."""

    def line(key: str, text: str) -> None:
        context.emit(Message(f"{key:<12}{text}"))

    rate = result["images_per_second"]
    line(
        "images",
        f"{result['images']:,} in {seconds_text(result['seconds'])}" + (f", {rate:,.0f}/s" if rate else ""),
    )
    if result["unreadable"]:
        shown = "; ".join(f"{path}: {reason}" for path, reason in result["worst"])
        more = " ..." if result["unreadable"] > len(result["worst"]) else ""
        line(
            "unreadable",
            f"{result['unreadable']:,}, left out ({shown}{more}), listed in {output.path}/unreadable.txt",
        )
    for key, text in result["told"].items():
        line(key, text)
    line("results", str(output.path))


def already_done(output: Output, context: Context) -> bool:
    """Whether the command had come to its end before; then it is told again."""
    result = output.result()
    if result is None:
        return False
    context.emit(Message("This was done already; these are its results."))
    print_result(output, result, context)
    return True
