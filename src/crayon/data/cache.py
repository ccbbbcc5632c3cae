"""Built once, kept on disk: decoded folders, rendered sets, downloads. Torch-free.

An entry is a folder that appears by one atomic rename, complete, under a lock: two processes that want the same
entry build it once, and one that was killed half-way leaves nothing that looks finished; the next one goes on with what
it had made durable (PARTIAL). It is removed, by one rename, only while no process holds it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crayon.errors import BadInput
from crayon.system import lock
from crayon.system.files import TEMPORARY, atomic, cache_root, remove, unfinished

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DEFAULT_LIMIT = "20GiB"
PARTIAL = "partial.json"
"""In an entry that isn't complete: how far it is."""
NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
"""What is said of a place where nothing can be made; ENOENT in /proc."""


def key_of(*parts: Any) -> str:
    """16 hexadecimal digits that name what went into an entry."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]


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
        if error.errno in NO_FOLDER:
            raise BadInput(f"Can't write to {where}; set CRAYON_CACHE to a folder of your own.") from None
        raise


def place_of(name: str, key: str) -> Path:
    """Where the entry `name-key` is, or will be."""
    return cache_root() / "images" / f"{name}-{key}"


def cached(name: str, key: str, build: Callable[[Path], None], wait: float | None = None) -> Path:
    """The folder of entry `name-key`, built by `build(folder)` if it isn't there yet. It stays as long as this process
    lives; others that were used longer ago may go for it. wait: as for `make`."""
    most = limit()
    entry = place_of(name, key)
    if not hold(entry):
        make(entry, build, wait)
        if most is not None:
            trim(entry.parent, most)
    return entry


def make(entry: Path, build: Callable[[Path], None], wait: float | None = None) -> None:
    """A folder of the cache, built by `build(folder)` unless another process does it first; held from now on.

    Raises lock.Held where that takes longer than `wait` seconds; None = wait for as long as it takes."""
    with storage_errors(entry.parent):
        # What is decoded of private images is private too. A folder that is there already stays as it is.
        cache_root().mkdir(mode=0o700, parents=True, exist_ok=True)
        entry.parent.mkdir(parents=True, exist_ok=True)
        with lock.locked(_lock_of(entry), wait):
            if hold(entry):
                return
            # We hold the lock, so who made these is dead.
            left = sorted(entry.parent.glob(unfinished(entry, "*").name), key=_kept)
            if left and _kept(left[-1]):
                os.rename(left.pop(), unfinished(entry))
            for leftover in left:
                shutil.rmtree(leftover, ignore_errors=True)
            with atomic(entry) as folder:
                folder.mkdir(exist_ok=True)
                try:
                    build(folder)
                except BaseException as error:
                    if _kept(folder) and not isinstance(error, (BadInput, OSError)):
                        os.rename(folder, unfinished(entry, "left"))
                    raise
            hold(entry)


def _kept(folder: Path) -> float:
    """When the builder of an entry last made durable what it had; 0 where it didn't, or was another user's."""
    with contextlib.suppress(OSError):
        if os.access(folder / "images.npy", os.W_OK):
            return (folder / PARTIAL).stat().st_mtime
    return 0


# What goes, and what stays.


def limit() -> int | None:
    """The most bytes that decoded and rendered images may take: $CRAYON_CACHE_LIMIT. None = any number.

    Raises BadInput."""
    text = os.environ.get("CRAYON_CACHE_LIMIT") or DEFAULT_LIMIT
    if text.lower() == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise BadInput(
            f"CRAYON_CACHE_LIMIT is {text!r}; give a size, such as {DEFAULT_LIMIT}, or none for no limit."
        )
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


_held: dict[Path, int] = {}
"""What this process holds: the file that is locked, by folder."""


def hold(folder: Path) -> bool:
    """Keep a folder of the cache from being removed as long as this process lives, and note that it was used now.

    Returns whether it is there."""
    here = folder.is_dir()
    with contextlib.suppress(OSError):  # the cache may be another user's, whom we can't tell
        os.utime(folder)
    if fcntl is None or not here:
        return here
    try:
        if folder in _held:
            if _same(_held[folder], folder):
                return True
            os.close(_held.pop(folder))
        handle = _held[folder] = os.open(_lockable(folder), os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)  # waits for who is removing it
        return _same(handle, folder) or hold(folder)  # removed meanwhile, and perhaps made anew
    except FileNotFoundError:
        return False
    except OSError:  # a file system without locks
        return True


def _lockable(folder: Path) -> Path:
    """Not the folder itself where there is a choice: over NFS only files are locked for other machines, too."""
    file = folder / "info.json"
    return file if file.exists() else folder


def _same(handle: int, folder: Path) -> bool:
    """Whether an open file is still the one that `folder` is locked by."""
    return os.path.samestat(os.fstat(handle), os.stat(_lockable(folder)))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no process holds a folder of the cache; while it doesn't, none can begin to."""
    with contextlib.ExitStack() as stack:
        free = fcntl is None  # Windows doesn't let go of files that are mapped
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path = _lockable(folder)
                handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
        yield free


def discard(folder: Path) -> bool:
    """Remove a folder of the cache, unless a process makes or holds it; whether it went."""
    name = folder.name
    if name.startswith(TEMPORARY):
        name = name.removeprefix(TEMPORARY).rpartition("-")[0]
    with storage_errors(folder.parent):
        try:
            with lock.locked(_lock_of(folder.with_name(name))), alone(folder) as free:
                if free:
                    remove(folder)
                return free
        except lock.Held:
            return False
        except PermissionError:
            if fcntl is not None:
                raise
            return False  # mapped by a process of Windows


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def size_of(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # gone meanwhile
                status = os.lstat(os.path.join(parent, file))
                total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return total


def folders(parent: Path) -> list[Path]:
    """The folders in one, the one that was used longest ago first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(parent):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.stat().st_mtime, Path(entry.path)))
    return [path for _, path in sorted(found)]


def trim(parent: Path, most: int) -> None:
    """Remove what was used longest ago until the folders in `parent` take at most `most` bytes, or the rest is held."""
    sizes = {folder: size_of(folder) for folder in folders(parent)}
    excess = sum(sizes.values()) - most
    for folder, size in sizes.items():
        with contextlib.suppress(BadInput):  # another user's
            if excess > 0 and discard(folder):
                excess -= size
