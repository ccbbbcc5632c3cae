"""The folder of one run, on a local or shared disk or in an object store. That has no rename: there the run lives in a
local staging folder, `push` uploads it, file by file, and `pull` fetches it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from crayon.config.settings import Experiment
from crayon.errors import BadInput, RunFailed
from crayon.system import lease
from crayon.system.files import (
    TEMPORARY,
    atomic,
    cache_root,
    describe_os_error,
    expanded,
    fingerprint,
    header,
    refuse_links,
    remove,
)
from crayon.system.folder import NAME, Folder, failing, within
from crayon.system.lock import Held, locked
from crayon.system.objectstore import ObjectStore, patiently, short_message

CHECKPOINTS = "checkpoints"
SWEEP = "sweep.json"
"""What a sweep's folder has and a run's has not."""
SOURCES = "sources.json"
"""Which files a job of one's own is made by, and their digests."""
RESULT = "result.json"
"""What the end of a run, or of a command that uses one, leaves in its folder."""
TRAINED = (CHECKPOINTS, "trials", "metrics.jsonl", RESULT)
"""What only a run or a sweep has that was really begun."""
PATIENCE_SECONDS = 300.0
"""How long training waits for an object store that can't be reached, before it gives up."""


class RunFolder(Folder):
    """`<storage>/<name>`. Nothing is touched before `create`.

    storage: a folder, or a URI as `ObjectStore` takes it. Raises BadInput where it or the name is impossible.
    """

    def __init__(self, storage: str | os.PathLike[str], name: str):
        if not NAME.fullmatch(name):
            raise BadInput(
                f"--name {name!r} can't be a folder's name; use up to 100 letters, digits, '-', '_' and '.', "
                "and begin with a letter or digit."
            )
        storage = os.fspath(storage).removeprefix("file://")
        self.name = name
        self.store = ObjectStore(storage, name) if "://" in storage else None
        self.storage = storage if self.store else str(expanded(storage))
        """Absolute, so that a worker in another working directory opens the same run."""
        self.path = Path(self.storage, name)
        """Where the files are on this machine."""
        if self.store:
            key = sha256(self.store.key.encode()).hexdigest()[:12]
            self.path = cache_root() / "staging" / f"{name}-{key}"
        self.uri = self.store.uri if self.store else str(self.path)
        """Where the run is, to show to people."""
        self.tell: Callable[[str], None] = lambda text: None
        """Receives what a person should know meanwhile."""
        self.patience = PATIENCE_SECONDS
        self._synced: dict[Path, tuple[int, int]] = {}
        self._made = False
        """Whether `create` made the folder, where there was nothing, and no training has begun since."""

    @classmethod
    def of(cls, config: Experiment) -> RunFolder:
        """The one of a run, or sweep, whose storage and name are set."""
        return cls(config.storage, str(config.name))

    @classmethod
    def at(cls, folder: str | os.PathLike[str]) -> RunFolder:
        """A folder on this machine, whatever its name: where a run is kept here, or what looks like one."""
        folder = Path(folder).absolute()
        found = cls(folder.parent, "folder")
        found.name, found.path, found.uri = folder.name, folder, str(folder)
        return found

    def inside(self, *folders: str) -> str:
        """This folder, or one in it, as the storage of runs that lie there: with the options that a store's URI has."""
        base, mark, query = self.storage.partition("?")
        return "/".join([base.rstrip("/"), self.name, *folders]) + mark + query

    def create(self) -> None:
        """Make the folder, readable by this user alone, and try that it can be written. Raises BadInput."""
        probe = f"{TEMPORARY}probe-{os.getpid()}"
        with self._usable():
            if self.store:
                cache_root().mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not self.path.exists()
            self.path.mkdir(mode=0o700, exist_ok=True)
            refuse_links(self.path)
            with atomic(self.path / probe) as temporary:
                temporary.write_bytes(bytes(4096))
            (self.path / probe).unlink()
        if self.store:
            with self._reached("write to"):
                self._made = self._made and not self.store.list()
                self.store.write(probe, b"\0")
                self.store.delete(probe)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the operating system lets go of it when the process ends or is killed.

        What killed writers left half-written is removed. In an object store the run is held against other machines,
        too (crayon.system.lease). Of a new run whose command was wrong, ended by BadInput before anything was trained,
        nothing stays. Raises BadInput where the run is held.
        """
        with contextlib.ExitStack() as held:
            try:
                with self._usable():
                    held.enter_context(locked(self.path / ".lock"))
            except Held:
                raise BadInput(
                    f"Another process is training {self.uri} now; wait for it, or choose another --name."
                ) from None
            for left in self.path.glob(TEMPORARY + "*"):
                remove(left)
            if self.store:
                with self._reached("write to"):
                    held.enter_context(lease.held(self.store))
            try:
                yield
            except BadInput:
                if self._made:
                    self._forget()
                raise

    def keep(self) -> None:
        """Training begins, here or elsewhere: whatever happens, nothing is deleted any more."""
        self._made = False

    def _forget(self) -> None:
        with contextlib.suppress(OSError, RunFailed):
            stored = self.stored()
            if any(name.split("/")[0] in TRAINED for name in (*stored, *os.listdir(self.path))):
                return
            for name in stored:
                self.remove(name)
            remove(self.path)

    def _usable(self) -> contextlib.AbstractContextManager[None]:
        """Turn a failure of the disk, before there is anything to lose, into BadInput."""
        return failing(
            lambda error: BadInput(
                f"--storage: {self.path} {describe_os_error(error)}; choose another folder."
            )
        )

    def _reached(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Turn a failure of the object store, before there is anything to lose, into BadInput."""
        return failing(
            lambda error: BadInput(f"--storage: can't {what} {self.uri} ({short_message(error)}).")
        )

    # The object store (for a local run there is nothing to push or pull)

    def push(self, *names: str) -> None:
        """Upload these files and folders; without names all that changed here since, but the checkpoints."""
        if not self.store:
            return
        if not names:
            every = (p.name for p in self.path.iterdir())
            names = tuple(n for n in every if n != CHECKPOINTS and not n.startswith("."))
        with self.guard(self.uri):
            for path in map(self._inside, names):
                for file in sorted(path.rglob("[!.]*")) if path.is_dir() else [path]:
                    self._upload(self.store, file)

    def _upload(self, store: ObjectStore, file: Path) -> None:
        try:
            written = fingerprint(file)
            if not file.is_dir() and self._synced.get(file) != written:
                name = file.relative_to(self.path).as_posix()
                self._patiently(store.upload, file, name)
                self._synced[file] = written
        except FileNotFoundError:
            if file.exists():
                raise  # else a library's own passing file, gone since it was listed

    def pull(self) -> None:
        """Make the files here agree with the object store, which decides where the two differ.

        For all processes at once, before training: never while another writes. Raises BadInput.
        """
        if not self.store:
            return
        with self._reached("read"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.path / ".pull", wait=None):
                names = self.stored()
                for path in self.path.glob(f"{CHECKPOINTS}/*"):
                    if f"{CHECKPOINTS}/{path.name}" not in names:  # written here and never uploaded
                        remove(path)
                for name in names:
                    self._download(self.store, name)

    def fetch(self, *names: str) -> None:
        """Bring files from the object store here, as far as they are there. Raises BadInput."""
        for name in names:
            self._inside(name)
        if self.store:
            with self._reached("read"):
                for name in set(names) & set(self.stored()):
                    self._download(self.store, name)

    def stored(self) -> list[str]:
        """The run's files in the object store. Raises OSError."""
        notes = f"{lease.FOLDER}/"
        return [n for n in self.store.list() if not n.startswith(notes) and within(n)] if self.store else []

    def _download(self, store: ObjectStore, name: str) -> None:
        target = self.path / name
        if name.startswith(f"{CHECKPOINTS}/") and target.is_file():
            with target.open("rb") as here, store.open(name) as there:
                if header(here) == header(there):
                    return
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic(target) as temporary:
            store.download(name, temporary)
        self._synced[target] = fingerprint(target)

    def remove(self, name: str) -> None:
        """Delete a file or folder here and in the object store. No reader ever sees a part of it."""
        path = self._inside(name)
        with self.guard(path):
            if self.store:
                self._patiently(self.store.delete, name)
            remove(path)

    def _patiently(self, do: Callable[..., None], *arguments: Any) -> None:
        patiently(do, *arguments, seconds=self.patience, tell=self.tell, where=self.uri)
