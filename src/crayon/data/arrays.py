"""Cache entries that hold one ImageSet: images.npy, labels.npy, rows.npy where some rows are left out, info.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crayon.data.cache import cached, key_of
from crayon.data.images import ImageSet

VERSION = 1
"""Raised whenever the meaning or the layout of an entry changes."""


def open_set(folder: Path, name: str) -> ImageSet:
    """The set in `folder`, memory-mapped."""
    # Copy-on-write rather than read-only, only because torch warns of read-only memory: nobody writes to it.
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    labels = torch.from_numpy(np.load(folder / "labels.npy"))
    rows = torch.from_numpy(np.load(folder / "rows.npy")) if (folder / "rows.npy").exists() else None
    info = json.loads((folder / "info.json").read_text())
    return ImageSet(name, images, labels if rows is None else labels[rows], tuple(info["classes"]), rows)


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
