"""What `ray job submit --working-dir .` would upload, by Ray's own rules and limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from crayon.ops.doctor.findings import Finding, count, size

LARGE = 20 * 2**20
NAMED = 3
"""How many of the largest files are named."""


class _Stop(Exception):
    pass


def working_dir(folder: Path, large: int = LARGE, stop: Callable[[], bool] = lambda: False) -> Finding:
    """The size of the upload of `folder`, with the largest files where it is large. Files are not read.

    stop: asked at every file; when true, the sum so far is all there is.
    """
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE as LIMIT

    try:
        files, whole = list_files(folder, stop)
    except OSError as error:
        return Finding("upload", "warning", f"{error.filename or folder} can't be read ({error.strerror})")
    total = sum(number for number, _ in files)
    files.sort(key=lambda entry: (-entry[0], entry[1]))
    text = f"ray job submit --working-dir . uploads {size(total)} in {count(len(files), 'file')}"
    if not whole:
        text = text.replace("uploads", "uploads at least")
    if total < large and whole:
        return Finding("upload", "ok", f"{text} (Ray's limit is {size(LIMIT)})")
    largest = ", ".join(f"{path} ({size(number)})" for number, path in files[:NAMED])
    text = f"{text}; Ray's limit is {size(LIMIT)}; the largest: {largest}"
    mend = "write what the job doesn't need into .rayignore, or submit from the project's own folder"
    return Finding("upload", "error" if total >= LIMIT else "warning", text, mend)


def list_files(folder: Path, stop: Callable[[], bool] = lambda: False) -> tuple[list[tuple[int, str]], bool]:
    """((size, path in `folder`) of each file that Ray would pack, whether that is all of them)."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    folder = folder.absolute()
    found: list[tuple[int, str]] = []

    def handle(path: Path) -> None:
        if stop():
            raise _Stop
        if path.is_file():
            found.append((path.stat().st_size, str(path.relative_to(folder))))

    try:
        _dir_travel(
            folder,
            [_get_excludes(folder, get_runtime_env_default_excludes())],
            handle,
            include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
            logger=_Quiet(),
        )
    except _Stop:
        return found, False
    return found, True


class _Quiet:
    """Ray logs every ignore file that it finds, and the path at which its handler raised."""

    def info(self, *text: object) -> None: ...

    def error(self, *text: object) -> None: ...
