"""What belongs on one side of a split: images of the same content, and what `data.groups` says of files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from crayon.data.ahead import ahead
from crayon.data.cache import cached
from crayon.data.decode import FORMATS
from crayon.data.folder import ImageFile
from crayon.errors import BadInput
from crayon.report.events import Emit, Progress
from crayon.system.host import usable_cores

if TYPE_CHECKING:
    from crayon.data.images import ImageSet

VERSION = 1
"""Raised whenever the meaning of an entry changes."""
TAIL = 1 << 14
"""Bytes at a file's end that are compared first."""
FILES_AT_ONCE = 256
"""Files that a thread reads at a time."""
LOOKED_AT = 500
"""Files whose width and height are looked up."""


def examined(
    folders: Sequence[tuple[PurePath, list[ImageFile]]], emit: Emit
) -> tuple[np.ndarray, np.ndarray]:
    """What the files of some folders hold, found out once per node:

    int64 (N,), the same number for files of the same bytes, 0 for those unlike all others; and int64 (M, 2), width and
    height of at most 500 of them, evenly spaced.
    """
    paths = [f"{folder}/{file.path}" for folder, found in folders for file in found]
    sizes = np.array([file.size for _, found in folders for file in found], np.int64)
    times = np.array([file.time for _, found in folders for file in found], np.int64)
    key = hashlib.sha256("\0".join([str(VERSION), *paths]).encode(errors="surrogatepass"))
    key.update(sizes.tobytes() + times.tobytes())

    def build(entry: Path) -> None:
        np.save(entry / "digests.npy", _digests(paths, sizes, emit))
        np.save(entry / "shapes.npy", _shapes(paths))

    entry = cached("files", key.hexdigest()[:16], build)
    try:
        digests, shapes = (np.load(entry / f"{name}.npy") for name in ("digests", "shapes"))
        if digests.shape != sizes.shape or shapes.ndim != 2 or digests.dtype != shapes.dtype != np.int64:
            raise ValueError
    except Exception:  # numpy raises a wide variety
        raise BadInput(f"The cache entry {entry} is damaged; delete it, and it is made anew.") from None
    return digests, shapes


def alike(sets: Iterable[ImageSet]) -> np.ndarray | None:
    """int64, of all images in the sets' storage, one set after the other: the same number for those of the same pixels,
    0 for those unlike all others and those that can't be read. None where pixels aren't kept."""
    parts = []
    for images in sets:
        if images.hashes is None:
            return None
        rows = slice(None) if images.rows is None else images.rows
        parts.append(np.zeros(len(images.hashes), np.int64))
        parts[-1][rows] = images.hashes[rows]
    found = np.concatenate(parts)
    return np.where(_repeated(found), found, 0)


def _digests(paths: Sequence[str], sizes: np.ndarray, emit: Emit) -> np.ndarray:
    """Only files of the same size are read, and beyond their ends only those whose ends are the same."""
    digests = sizes.copy()
    for most in (TAIL, None):
        again = np.flatnonzero(_repeated(digests) & (sizes > (0 if most else TAIL)))
        threads, parts = usable_cores(), np.split(again, range(FILES_AT_ONCE, len(again), FILES_AT_ONCE))

        def some(part: np.ndarray, most: int | None = most) -> list[int]:
            return [_digest(paths[i], most) for i in part]

        done = 0
        for part, found in zip(parts, ahead(some, parts, 2 * threads, threads), strict=True):
            digests[part] = found
            done += len(part)
            if most and len(again) > FILES_AT_ONCE:
                emit(Progress("comparing files", done, len(again)))
    return np.where(_repeated(digests) & (sizes > 0), digests, 0)


def _repeated(values: np.ndarray) -> np.ndarray:
    """Whether there is another one like each."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _digest(path: str, most: int | None) -> int:
    """int64 of a file's last `most` bytes, or of all. 0 where it can't be read."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most) if most else 0)
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError:
        return 0
    digest.update(b"%d" % size)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _shapes(paths: Sequence[str]) -> np.ndarray:
    found = []
    for i in np.unique(np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths))).round().astype(int)):
        try:
            with Image.open(paths[i], formats=FORMATS) as image:
                found.append(image.size)
        except Exception:  # Pillow's plugins raise nearly anything on damaged files
            continue
    return np.array(found, np.int64).reshape(-1, 2)


def captured(pattern: str, paths: Sequence[str]) -> np.ndarray:
    """object (N,): what the regular expression `pattern` captures in each path, or what it matches where it captures
    nothing; None where it doesn't match. Raises BadInput where it matches nowhere."""
    found: list[Hashable] = []
    for path in paths:
        match = re.search(pattern, path)
        groups = match.groups() if match else ()
        found.append(groups if any(groups) else match[0] if match and not groups else None)
    if not any(found):
        raise BadInput(f"--data.groups {pattern!r} matches nothing in the images' paths, such as {paths[0]}.")
    return np.fromiter(found, object, len(found))


def connected(*keys: Sequence[Hashable]) -> np.ndarray | None:
    """int64 (N,): images that have a key in common, or are connected by others that do, have the same number, that of
    the first of them. None where no two have.

    keys: N of each kind; None and 0 are nobody's.

    >>> connected(["a", None, "a", None], [0, 7, 7, 0]).tolist()
    [0, 0, 0, 3]
    """
    parent = list(range(len(keys[0])))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for kind in keys:
        first: dict[Hashable, int] = {}
        for i, key in enumerate(kind):
            if key:
                low, high = sorted((root(first.setdefault(key, i)), root(i)))
                parent[high] = low
    found = np.array([root(i) for i in range(len(parent))], np.int64)
    return found if (found != np.arange(len(found))).any() else None


def copies(digests: np.ndarray) -> int:
    """How many images are one more of another."""
    known = digests[digests != 0]
    return len(known) - len(np.unique(known))
