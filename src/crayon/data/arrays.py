"""Cache entries that hold one ImageSet: images.npy, labels.npy, rows.npy where some rows are left out, info.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crayon.data.cache import cached, key_of
from crayon.data.images import ImageSet
from crayon.errors import BadInput

VERSION = 1
"""Raised whenever the meaning or the layout of an entry changes."""


def open_set(folder: Path, name: str) -> ImageSet:
    """The set in `folder`, memory-mapped. Raises BadInput where the entry is damaged or isn't one of ours."""
    try:
        images = _array(folder / "images.npy", np.uint8, 4)
        labels = _array(folder / "labels.npy", np.int64, 1)
        rows = _array(folder / "rows.npy", np.int64, 1) if (folder / "rows.npy").exists() else None
        classes = json.loads((folder / "info.json").read_text())["classes"]
        if len(images) != len(labels) or not all(isinstance(c, str) for c in classes):
            raise ValueError("its parts don't belong together")
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < len(labels):
            raise ValueError("rows.npy names images that aren't there")
    except Exception as error:  # numpy raises a wide variety
        raise BadInput(
            f"The cache entry {folder} is damaged ({' '.join(str(error).split())[:120]}); delete it, and it is made "
            "anew."
        ) from None
    kept = labels if rows is None else labels[rows]
    return ImageSet(name, images, kept, tuple(classes), rows)


def _array(path: Path, kind: type, dimensions: int) -> Tensor:
    """Mapped, which never unpickles, and takes no more memory than the file has bytes.

    Copy-on-write rather than read-only, only because torch warns of read-only memory: nobody writes to it.
    """
    array = np.lib.format.open_memmap(path, mode="c")
    if array.dtype != kind or array.ndim != dimensions:
        raise ValueError(f"{path.name} holds something else")
    return torch.from_numpy(array)


def save_set(
    folder: Path, labels: np.ndarray, classes: tuple[str, ...], rows: np.ndarray | None = None
) -> None:
    """All but images.npy, which the builder writes into the same folder."""
    np.save(folder / "labels.npy", labels.astype(np.int64))
    if rows is not None:
        np.save(folder / "rows.npy", rows.astype(np.int64))
    (folder / "info.json").write_text(json.dumps({"classes": list(classes)}))


def cached_set(
    name: str, what: tuple, build: Callable[[Path], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]
) -> ImageSet:
    """The set `build` returns as (uint8 images, labels, classes), from disk after the first time.

    Args:
        name: the set's name, e.g. "faces/test".
        what: everything the result depends on, as JSON values.
        build: called with the folder of the entry (for scratch files), at most once per node.
    """

    def save(folder: Path) -> None:
        images, labels, classes = build(folder)
        np.save(folder / "images.npy", images)
        save_set(folder, labels, classes)

    return open_set(cached(name.replace("/", "-"), key_of(VERSION, name, *what), save), name)
