"""A folder on this machine, whose files are written so that a reader, a kill -9 or a power cut finds the old content or
the new, never a part: under a temporary name, flushed to the disk and renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crayon.errors import BadInput, CrayonError, RunFailed
from crayon.system.files import atomic, describe_os_error

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


class Folder:
    """The folder at `path`. Names of files in it may have subfolders, "pictures/grid.png"; BadInput for others."""

    path: Path

    def guard(self, path: Path | str) -> contextlib.AbstractContextManager[None]:
        """Turn a failure of the disk or the object store into RunFailed."""
        then = "checkpoints written before are whole, and the same command resumes from the newest."
        return failing(lambda error: RunFailed(f"{path} {describe_os_error(error)}; {then}"))

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Replace the file as a whole. `name` may lie in a subfolder: "pictures/grid.png"."""
        path = self._inside(name)
        with self.guard(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                temporary.write_bytes(data)
        return path

    def write_json(self, name: str, content: Any) -> Path:
        """Numbers that JSON can't express (NaN, infinities) become null."""
        return self.write_bytes(name, (json.dumps(_finite(content), indent=2) + "\n").encode())

    def append_row(self, name: str, row: dict[str, Any]) -> None:
        """Add one line of JSON, which outlives this process from then on; a kill can tear only the last line."""
        path = self._inside(name)
        with self.guard(path), path.open("ab+") as file:
            line = json.dumps(_finite(row)).encode() + b"\n"
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line
            file.write(line)

    def truncate_rows(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only these rows: a resumed run first drops what lies after the step it resumes from."""
        path = self._inside(name)
        if path.exists():
            kept = [row for row in self.read_rows(name) if keep(row)]
            self.write_bytes(name, b"".join(json.dumps(row).encode() + b"\n" for row in kept))

    def holds(self, name: str) -> bool:
        """Whether there is a file or folder of this name here, after `pull` or `fetch`."""
        return self._inside(name).exists()

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, None where there is none. Raises BadInput where it isn't JSON."""
        path = self._inside(name)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(f"{path} can't be read as JSON ({error}); delete or mend it.") from None

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """All whole rows; a torn one is left out."""
        path = self._inside(name)
        rows = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        return rows

    def _inside(self, name: str) -> Path:
        if not within(name):
            raise BadInput(f"{name!r} can't be the name of a file in {self.path}.")
        return self.path / name


@contextlib.contextmanager
def failing(sentence: Callable[[OSError], CrayonError]) -> Iterator[None]:
    """Raise, in place of an OSError of the block, what `sentence` makes of it."""
    try:
        yield
    except OSError as error:
        raise sentence(error) from error


def within(name: str) -> bool:
    return all(NAME.fullmatch(part) for part in name.split("/"))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
