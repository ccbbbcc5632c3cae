"""Cache entries that hold one ImageSet: images.npy, labels.npy, rows.npy where some rows are left out, info.json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crayon.data.cache import cached, key_of
from crayon.data.images import ImageSet
from crayon.errors import BadInput, one_line

VERSION = 1
"""Raised whenever the meaning or the layout of an entry changes."""


def open_set(folder: Path, name: str) -> ImageSet:
    """The set in `folder`, memory-mapped. Raises BadInput where the entry is damaged or isn't one of ours."""
    try:
        images = _array(folder / "images.npy", np.uint8, 4)
        classes = json.loads((folder / "info.json").read_text())["classes"]
        labels = _array(folder / "labels.npy", *((np.int64, 1) if classes else ()))
        rows = _array(folder / "rows.npy", np.int64, 1) if (folder / "rows.npy").exists() else None
        if len(images) != len(labels) or not all(isinstance(c, str) for c in classes):
            raise ValueError("its parts don't belong together")
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < len(labels):
            raise ValueError("rows.npy names images that aren't there")
    except Exception as error:  # numpy raises a wide variety
        raise BadInput(
            f"The cache entry {folder} is damaged ({one_line(error, 120)}); delete it, and it is made anew."
        ) from None
    labels = labels if rows is None else labels[rows]
    return ImageSet(name, images, labels, tuple(classes), rows, folder / "images.npy")


def _array(path: Path, kind: type | None = None, dimensions: int = 0) -> Tensor:
    """Mapped, which never unpickles, and takes no more memory than the file has bytes."""
    array = np.lib.format.open_memmap(path, mode="r")
    if kind is not None and (array.dtype != kind or array.ndim != dimensions):
        raise ValueError(f"{path.name} holds something else")
    return read_only(array)


def read_only(array: np.ndarray) -> Tensor:
    """A tensor over the same memory, which nobody may write to. A writable map, even one that copies on write, would
    count against the limits on a process's memory as if it were full of the process's own data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no tensors that can't be written to
        return torch.from_numpy(array)


def save_images(
    folder: Path,
    shape: tuple[int, int, int, int],
    parts: Iterable[Tensor | np.ndarray],
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """images.npy of uint8 `shape` from its `parts` in order, of which there may be more or fewer than it says.
    `progress` is told how many images are written.

    Written rather than mapped: a map kills the process where the disk is full, and the page faults of small images
    cost a tenth of their decoding (benchmarks/LOG.md).
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (folder / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
            done += len(part)
            progress(done)
        file.seek(0)  # The header has room for any number of images.
        np.lib.format.write_array_header_1_0(file, header | {"shape": (done, *shape[1:])})


def save_set(
    folder: Path, labels: np.ndarray, classes: tuple[str, ...], rows: np.ndarray | None = None
) -> None:
    """All but images.npy, which the builder writes into the same folder."""
    kind = np.float32 if not classes and np.issubdtype(labels.dtype, np.floating) else np.int64
    np.save(folder / "labels.npy", labels.astype(kind))
    if rows is not None:
        np.save(folder / "rows.npy", rows.astype(np.int64))
    (folder / "info.json").write_text(json.dumps({"classes": list(classes)}))


def cached_set(
    name: str, what: tuple, build: Callable[[Path], tuple[np.ndarray, tuple[str, ...]]]
) -> ImageSet:
    """The set whose images `build` saves and whose (labels, classes) it returns, from disk after the first time.

    Args:
        name: the set's name, e.g. "faces/test".
        what: everything the result depends on, as JSON values.
        build: called with the folder of the entry, for `save_images`, at most once per node.
    """
    key = key_of(VERSION, name, *what)
    entry = cached(name.replace("/", "-"), key, lambda folder: save_set(folder, *build(folder)))
    return open_set(entry, name)
