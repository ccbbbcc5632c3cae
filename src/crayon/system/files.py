"""Files and folders on this machine's disk: whole or absent, and what must be private is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from crayon.errors import BadInput
from crayon.system.objectstore import short_message

TEMPORARY = ".tmp-"
"""How the names of unfinished files and folders begin."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes the place of `path` by one rename once the block ends well.

    A reader, or who comes after a kill -9, finds the old content or the new, never a part; of a file also after a
    power cut. A folder that is replaced is absent for a moment, since no rename replaces one. Raises OSError.
    """
    temporary = unfinished(path)
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():
            remove(path)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        if temporary.exists():
            remove(temporary)
        raise


def unfinished(path: Path, process: int | str | None = None) -> Path:
    """What `atomic` calls it until it is whole; process: which one writes it, this one by default, or "*"."""
    return path.with_name(f"{TEMPORARY}{path.name}-{process or os.getpid()}")


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
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders, and has no such promise
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fingerprint(path: Path) -> tuple[int, int]:
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


def describe_os_error(error: OSError) -> str:
    """The rest of a sentence that begins with a path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return "can't be written: the disk is full or the quota used up"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "can't be a folder: a file is in the way"
    return f"can't be written ({short_message(error)})"


def user() -> int:
    """This user's number; 0 on Windows, which has none, and gives everyone a temporary folder of his own."""
    return os.getuid() if hasattr(os, "getuid") else 0


def private_folder(path: Path) -> Path:
    """`path`, made for this user alone. Raises BadInput where someone else made it first: in a shared place such as
    /tmp anyone can."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != user():
            raise BadInput(
                f"{path} belongs to someone else or is a link; remove it, or set TMPDIR to another folder."
            )
        if status.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise BadInput(
            f"{path} can't be made a folder ({error.strerror}); set TMPDIR to another folder."
        ) from None
    return path


def refuse_links(folder: Path) -> None:
    """Raises BadInput where a link lies in a run's folder, at any depth: a run that came from someone else could make
    this one read, write or delete wherever it leads."""
    for path in folder.rglob("*"):
        # W&B makes links of its own in its folders.
        if path.is_symlink() and "wandb" not in path.relative_to(folder).parts[:-1]:
            raise BadInput(
                f"{path} is a link, and links inside a run aren't followed; put the folder or file itself there, or "
                "choose another run."
            )
