"""The folder that a command leaves its results in. Blocks of a long job are whole or absent, so it can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from crayon.errors import BadInput, RunFailed
from crayon.report.style import png
from crayon.system.files import TEMPORARY, atomic, expanded, remove
from crayon.system.lock import Held, locked
from crayon.system.objectstore import short_message
from crayon.system.runfolder import RESULT
from crayon.use.settings import COMMANDS, UseConfig

if TYPE_CHECKING:
    from crayon.use.model import Model

IDENTITY = "command.json"
PLACE = ("run", "checkpoint", "device", "out", "workers")
"""Settings that don't decide what the results are."""
Content = bytes | Mapping[str, bytes]
"""A file's content, or a folder's: contents by file name."""


class Output:
    """A folder for the results of exactly one command, which may be stopped and given again.

    Args:
        folder: made if it isn't there.
        identity: JSON, everything that decides the results.
    """

    def __init__(self, folder: str, identity: Mapping[str, Any]):
        if "://" in folder:
            raise BadInput(f"--out {folder} must be a folder on this machine; copy the results from there.")
        self.path = expanded(folder)
        self.identity = json.loads(json.dumps(identity))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises BadInput where another does, or where it has other things in it."""
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.path / ".lock"))
            except Held:
                raise BadInput(
                    f"Another command writes into {self.path} now; wait for it, or choose another --out."
                ) from None
            except OSError as error:
                raise BadInput(
                    f"--out {self.path} can't be written ({short_message(error)}); choose another folder."
                ) from None
            try:
                self._claim()
                yield
            except OSError as error:
                raise RunFailed(
                    f"{self.path} can't be written ({short_message(error)}); what was written before is whole, and the "
                    "same command goes on with it."
                ) from error

    def _claim(self) -> None:
        for left in self.path.rglob(f"{TEMPORARY}*"):
            remove(left)
        note = self.path / IDENTITY
        if not note.exists():
            if any(p.name != ".lock" for p in self.path.iterdir()):
                raise BadInput(f"--out {self.path} has other files in it; choose another folder.")
            self.write(IDENTITY, (json.dumps(self.identity, indent=1) + "\n").encode())
        before = json.loads(note.read_bytes())
        different = [k for k in before | self.identity if before.get(k) != self.identity.get(k)]
        if different:
            raise BadInput(
                f"--out {self.path} has the results of another command (different: {', '.join(different[:4])}); "
                "choose another folder, or delete that one."
            )

    def holds(self, name: str) -> bool:
        return (self.path / name).exists()

    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote, None where the command hasn't come to its end."""
        return json.loads((self.path / RESULT).read_bytes()) if self.holds(RESULT) else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, after everything else, and delete the blocks that went into other files."""
        self.write(RESULT, (json.dumps(result, indent=1) + "\n").encode())
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def write(self, name: str, made: Content) -> None:
        """Put a file, or a folder of files, into place by one rename. A folder that is there already is replaced."""
        with self.writing(name) as temporary:
            if isinstance(made, Mapping):
                temporary.mkdir()
                for file, content in made.items():
                    (temporary / file).write_bytes(content)
            else:
                temporary.write_bytes(made)

    def writing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path to write to, which gets its name when the block ends, and only if it ends well."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return atomic(path)

    def picture(self, name: str, image: Image.Image) -> None:
        """Write `<name>.png`."""
        self.write(f"{name}.png", png(image))


def identity(settings: UseConfig, model: Model, **changes: Any) -> dict[str, Any]:
    """What decides a command's results: the model, and all that was asked for but where it runs and writes."""
    asked = {name: value for name, value in vars(settings).items() if name not in PLACE}
    command = next(name for name, known in COMMANDS.items() if type(settings) is known)
    return {"command": command, "run": model.uri, "weights": model.digest, **asked, **changes}


def file_for(out: str, endings: tuple[str, ...]) -> Path:
    """The file that `--out` asks for, its folder made. Raises BadInput where it is of another kind or unwritable."""
    path = expanded(out)
    if path.suffix.lower() not in endings:
        raise BadInput(f"--out {out!r} must be a file that ends in {' or '.join(endings)}.")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadInput(f"--out {out!r} can't be written; choose another file.")
    return path


def write_file(path: Path, content: bytes) -> None:
    """Write the file as a whole; what was there before stays until then. Raises RunFailed."""
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise RunFailed(f"{path} can't be written ({short_message(error)}).") from error
