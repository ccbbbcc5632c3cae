"""Files and folders on this machine's disk: written to outlive a power cut, removed without a half-way state."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from crayon.errors import BadInput
from crayon.system.objectstore import reason

TEMPORARY = ".tmp-"
"""How the names of unfinished files and folders begin."""


def remove(path: Path) -> None:
    """Delete a file or a folder; a folder first gets a temporary name, so that no part of it is ever seen."""
    if path.is_dir() and not path.is_symlink():
        gone = path
        if not path.name.startswith(TEMPORARY):
            gone = path.with_name(f"{TEMPORARY}removed-{path.name}-{os.getpid()}")
            os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, so that they outlive a power cut."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders, and has no such promise
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and return once it would outlive a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def stamp(path: Path) -> tuple[int, int]:
    """Tells whether a file was written since."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def header(file: BinaryIO) -> bytes:
    """The length and the JSON that a safetensors file begins with. A checkpoint's have the digests of all the rest, so
    that two with the same header are the same."""
    length = file.read(8)
    # No more than that library itself takes: what is no such file may begin with any number.
    return length + file.read(min(int.from_bytes(length, "little"), 100_000_000))


def cache_root() -> Path:
    """What can be made or fetched again: `$CRAYON_CACHE`, else `$XDG_CACHE_HOME/crayon`, else `~/.cache/crayon`."""
    if chosen := os.environ.get("CRAYON_CACHE"):
        return expanded(chosen)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "crayon"


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path`, absolute, with a home folder in place of `~`. Raises BadInput where there is none, as for a user of a
    container whom the system doesn't know."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise BadInput(
            f"{path}: there is no such home folder; give a path without ~, and set HOME or CRAYON_CACHE."
        ) from None


def cannot(error: OSError) -> str:
    """The rest of a sentence that begins with a path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return "can't be written: the disk is full or the quota used up"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "can't be a folder: a file is in the way"
    return f"can't be written ({reason(error)})"
