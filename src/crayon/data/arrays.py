"""Cache entries that hold one ImageSet: images.npy, its digest and its images' hashes, labels.npy, rows.npy where some
rows are left out, info.json.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from crayon.data.cache import PARTIAL, cached, hold, key_of, place_of
from crayon.data.decode import Form, Limits, common
from crayon.data.fingerprint import hash_of
from crayon.data.images import ImageSet
from crayon.errors import BadInput, one_line
from crayon.system.files import atomic

Built = tuple[np.ndarray, tuple[str, ...], Limits | None]
"""Labels, the names of the classes, and which values of files of more than 8 bits became 0 and 255."""
VERSION = 5
"""Raised whenever the meaning or the layout of an entry changes."""
KEEP_SECONDS = 20.0
"""How often a builder that takes long makes durable what it has."""
DIGEST = "digest.txt"
"""Of the images, so that a run that goes on needn't read them to know that they are the same."""
HASHES = "hashes.npy"
"""Of each image, by which copies are found."""


def open_set(folder: Path, name: str) -> ImageSet:
    """The set in `folder`, memory-mapped. Raises BadInput where the entry is damaged or isn't one of ours."""
    try:
        images = _array(folder / "images.npy", np.uint8, 4)
        info = json.loads((folder / "info.json").read_text())
        classes, limits = info["classes"], info["limits"] and tuple(map(float, info["limits"]))
        digest = (folder / DIGEST).read_text()
        labels = _array(folder / "labels.npy", *((np.int64, 1) if classes else ()))
        hashes = _array(folder / HASHES, np.int64, 1)
        rows = _array(folder / "rows.npy", np.int64, 1) if (folder / "rows.npy").exists() else None
        if not len(images) == len(labels) == len(hashes) or not all(isinstance(c, str) for c in classes):
            raise ValueError("its parts don't belong together")
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < len(labels):
            raise ValueError("rows.npy names images that aren't there")
    except Exception as error:  # numpy raises a wide variety
        raise BadInput(
            f"The cache entry {folder} is damaged ({one_line(error, 120)}); delete it, and it is made anew."
        ) from None
    labels = labels if rows is None else labels[rows]
    file = folder / "images.npy"
    return ImageSet(name, images, labels, tuple(classes), rows, digest, hashes, limits=limits, file=file)


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


class Partial:
    """How many images an entry that isn't complete has, durably: those that an earlier builder had when it was killed,
    and what it knew of them, as JSON values. `Partial(folder, form)` reads it, and `keep` writes it now and then."""

    def __init__(self, folder: Path, form: Form):
        self._path = folder / PARTIAL
        self.done, self.state = 0, {}
        self._due = time.monotonic() + KEEP_SECONDS
        try:
            known = json.loads(self._path.read_bytes())
            if (folder / "images.npy").stat().st_size >= known["done"] * math.prod(form.shape):
                self.done, self.state = known["done"], known["state"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none

    def keep(self, file: BinaryIO, done: int, state: dict[str, Any]) -> None:
        """Make `done` images durable."""
        begun = time.monotonic()
        file.flush()
        os.fsync(file.fileno())
        with atomic(self._path) as temporary:
            temporary.write_text(json.dumps({"done": done, "state": state}))
        # More rarely where that takes long.
        self._due = time.monotonic() + max(KEEP_SECONDS, 20 * (time.monotonic() - begun))

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due

    def end(self) -> None:
        """The entry is complete."""
        for path in self._path.parent.glob(f"*{PARTIAL}*"):
            path.unlink()


def save_images(
    folder: Path,
    shape: tuple[int, int, int, int],
    parts: Iterable[Tensor | np.ndarray],
    progress: Callable[[int], None] = lambda done: None,
    partial: Partial | None = None,
    state: Callable[[int], dict[str, Any]] = lambda done: {},
) -> None:
    """images.npy of uint8 `shape` from its `parts` in order, of which there may be more or fewer than it says, and its
    digest and hashes. `progress` is told how many images are written. With `partial`, the `parts` are those behind what
    it has, and `state(done)` is what it keeps of the first `done`.

    Written rather than mapped: a map kills the process where the disk is full, and the page faults of small images
    cost a tenth of their decoding (benchmarks/LOG.md).
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (folder / "images.npy").open("r+b" if partial and partial.done else "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start, done, begun = file.tell(), 0, partial.done if partial else 0
        file.seek(begun * math.prod(shape[1:]), os.SEEK_CUR)
        file.truncate()
        for part in _known(folder, itertools.chain(_written(folder, start, (begun, *shape[1:])), parts)):
            if done >= begun:
                file.write(part.data)
            done += len(part)
            if done > begun:
                progress(done)
            if partial and done > begun and partial.due:
                partial.keep(file, done, state(done))
        file.seek(0)  # The header has room for any number of images.
        np.lib.format.write_array_header_1_0(file, header | {"shape": (done, *shape[1:])})
    if partial:
        partial.end()


def _written(folder: Path, start: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The images in an images.npy that isn't complete, behind `start` bytes."""
    if shape[0]:
        images = np.memmap(folder / "images.npy", np.uint8, "r", start, shape)
        yield from np.array_split(images, -(-len(images) // 256))


def _known(folder: Path, parts: Iterable[Tensor | np.ndarray]) -> Iterator[np.ndarray]:
    """`parts` as they are, whose digest and hashes are written when all have passed."""
    digest = 0
    hashes: list[int] = []
    for part in parts:
        array = np.ascontiguousarray(part)
        digest = zlib.crc32(array.data, digest)
        hashes += map(hash_of, array)
        yield array
    (folder / DIGEST).write_text(f"{digest:08x}")
    np.save(folder / HASHES, np.array(hashes, np.int64))


Decoded = Callable[[Sequence[int], Form, dict[int, Limits]], Iterable[np.ndarray]]
"""(numbers of images, form, range by place of those of more than 8 bits) to the images, uint8 (n, C, H, W) at a time.
"""


def save_decoded(
    folder: Path,
    count: int,
    form: Form,
    decoded: Decoded,
    progress: Callable[[int], None],
    problems: list[tuple[int, str]] | None = None,
) -> Limits | None:
    """images.npy of `count` images in `form`. Those of more than 8 bits are decoded again once the range of all is
    known, unless it was before. Returns that range, None where there are no such images.

    problems: where `decoded` tells which images can't be read, if that is all it tells: a builder that was killed is
        gone on with.
    """
    deep: dict[int, Limits] = {}
    partial = None
    if problems is not None:
        partial = Partial(folder, form)
        deep |= {number: (low, high) for number, low, high in partial.state.get("deep", ())}
        problems += map(tuple, partial.state.get("problems", ()))

    def state(done: int) -> dict[str, Any]:
        known = [(i, *limits) for i, limits in list(deep.items()) if i < done]  # threads are ahead
        return {"deep": known, "problems": [problem for problem in list(problems or ()) if problem[0] < done]}

    numbers = range(partial.done if partial else 0, count)
    progress(numbers.start)
    save_images(folder, (count, *form.shape), decoded(numbers, form, deep), progress, partial, state)
    limits = form.limits or (common(deep.values()) if deep else None)
    if deep and limits and form.limits is None:
        rows = iter(sorted(deep))
        path, size = folder / "images.npy", math.prod(form.shape)
        start = path.stat().st_size - count * size
        with path.open("r+b") as file:
            for part in decoded(sorted(deep), form._replace(limits=limits), {}):
                for image in part:
                    file.seek(start + next(rows) * size)
                    file.write(np.ascontiguousarray(image).data)
        for _ in _known(folder, np.array_split(np.load(path, mmap_mode="r"), -(-count // 256))):
            pass  # again, as they are where the range is given
    return limits if deep else None


def named(name: str, what: tuple, form: Form) -> tuple[str, str]:
    """What the cache calls the entry of `entry_of`, and the key that tells it from others."""
    return name.replace("/", "-"), key_of(VERSION, name, *what, form)


def entry_of(
    name: str, what: tuple, form: Form, build: Callable[[Path], None], wait: float | None = None
) -> Path:
    """The entry of images in `form`: also one made before their range was known, where it is the one asked for. wait:
    as for `cache.make`."""
    if form.limits is not None:
        made = place_of(*named(name, what, form._replace(limits=None)))
        if hold(made) and open_set(made, name).limits == form.limits:
            return made
    return cached(*named(name, what, form), build, wait)


def save_set(
    folder: Path,
    labels: np.ndarray,
    classes: tuple[str, ...],
    rows: np.ndarray | None = None,
    limits: Limits | None = None,
) -> None:
    """All but images.npy, which the builder writes into the same folder."""
    kind = np.float32 if not classes and np.issubdtype(labels.dtype, np.floating) else np.int64
    np.save(folder / "labels.npy", labels.astype(kind))
    if rows is not None:
        np.save(folder / "rows.npy", rows.astype(np.int64))
    (folder / "info.json").write_text(json.dumps({"classes": list(classes), "limits": limits}))


def cached_set(name: str, what: tuple, form: Form, build: Callable[[Path], Built]) -> ImageSet:
    """The set of `cached_entry`, opened."""
    return open_set(cached_entry(name, what, form, build), name)


def cached_entry(name: str, what: tuple, form: Form, build: Callable[[Path], Built]) -> Path:
    """The entry of the set whose images `build` saves, made the first time.

    Args:
        name: the set's name, e.g. "faces/test".
        what: everything the result depends on beside `form`, as JSON values.
        build: called with the folder of the entry, for `save_images` or `save_decoded`, at most once per node.
    """

    def make(folder: Path) -> None:
        labels, classes, limits = build(folder)
        save_set(folder, labels, classes, limits=limits)

    return entry_of(name, what, form, make)
