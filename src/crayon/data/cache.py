"""Built once, kept on disk: decoded folders, rendered sets, downloads. Torch-free.

An entry is a folder that appears by one atomic rename, complete, under a lock: two processes that want the same
entry build it once, and one that was killed half-way leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from crayon.disk import cache_root
from crayon.errors import BadInput

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, total)."""


def key_of(*parts: Any) -> str:
    """16 hexadecimal digits that name what went into an entry."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that processes of this node agree on. Creates the folder around `path`."""
    with storage_errors(path.parent):
        # What is decoded of private images is private too. A folder that is there already stays as it is.
        cache_root().mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turns "no space left" and "not permitted" into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"No space left in {where}; free some, or set CRAYON_CACHE to a larger disk."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise BadInput(f"Can't write to {where}; set CRAYON_CACHE to a folder of your own.") from None
        raise


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder of entry `name-key`, built by `build(folder)` if it isn't there yet."""
    entry = cache_root() / "images" / f"{name}-{key}"
    if entry.is_dir():
        return entry
    with locked(entry):
        if entry.is_dir():  # another process was faster
            return entry
        for leftover in entry.parent.glob(f"{entry.name}.building-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # we hold the lock, so its builder is dead
        building = entry.with_name(f"{entry.name}.building-{os.getpid()}")
        try:
            with storage_errors(entry.parent):
                building.mkdir()
                build(building)
                building.rename(entry)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return entry
