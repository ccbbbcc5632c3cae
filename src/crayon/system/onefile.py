"""One file as a command's result."""

from __future__ import annotations

import os
from pathlib import Path

from crayon.errors import BadInput, RunFailed
from crayon.system.files import TEMPORARY, expanded, sync
from crayon.system.objectstore import reason


def target(out: str, endings: tuple[str, ...]) -> Path:
    """The file that `--out` asks for, its folder made. Raises BadInput where it is of another kind or unwritable."""
    path = expanded(out)
    if path.suffix.lower() not in endings:
        raise BadInput(f"--out {out!r} must be a file that ends in {' or '.join(endings)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {out!r} can't be written ({reason(error)}); choose another file.") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadInput(f"--out {out!r} can't be written; choose another file.")
    return path


def replace(path: Path, content: bytes) -> None:
    """Write the file as a whole; what was there before stays until then. Raises RunFailed."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunFailed(f"{path} can't be written ({reason(error)}).") from error
