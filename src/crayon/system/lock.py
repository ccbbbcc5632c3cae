"""A lock between processes, on a file that all of them can see. It ends with its holder, also at kill -9."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class Held(Exception):
    """Another process has the lock, or this one has it already."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock on the file `path`, which is made. Raises Held, or with `wait` waits; OSError where it can't be
    made."""
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except (Timeout, RuntimeError):  # RuntimeError: held by this very thread
        raise Held(path) from None
    try:
        yield
    finally:
        lock.release()
