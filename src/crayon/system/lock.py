"""A lock between processes, on a file that all of them can see. It ends with its holder, also at kill -9."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class Held(Exception):
    """Another process has the lock, or this one has it already."""


@contextlib.contextmanager
def locked(path: Path, wait: float | None = 0.0) -> Iterator[None]:
    """Hold the lock on the file `path`, which is made. Raises Held when it isn't free within `wait` seconds (None =
    wait for as long as it takes); OSError where it can't be made."""
    lock = FileLock(path, timeout=-1 if wait is None else wait)
    try:
        lock.acquire()
    except (Timeout, RuntimeError):  # RuntimeError: held by this very thread
        raise Held(path) from None
    try:
        yield
    finally:
        lock.release()
