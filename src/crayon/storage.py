"""The folder of one run, on a local or shared disk or in an object store, and how to write to it safely.

Everything is written under a temporary name, flushed to the disk and renamed, so that whoever reads (and whatever is
left after a kill -9 or a power cut) sees the old content or the new, never a part. An object store has no rename:
there the run lives in a local staging folder, `push` uploads it (a checkpoint's manifest last) and `pull` fetches it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crayon.errors import BadInput, RunFailed

MANIFEST = "manifest.json"
"""A folder that holds a file of this name is complete only once that file is there."""
TEMPORARY = ".tmp-"
"""How names of unfinished files and folders begin."""
REMOTE_SCHEMES = ("s3", "gs")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


class RunFolder:
    """`<storage>/<name>`. Nothing is touched before `create`.

    storage: a folder, or an `s3://bucket/prefix` or `gs://bucket/prefix` URI. What follows a `?` goes to
    `pyarrow.fs.FileSystem.from_uri`: `s3://bucket/runs?endpoint_override=localhost:9000&scheme=http`.

    Raises BadInput where the storage or the name can't be one.
    """

    def __init__(self, storage: str | os.PathLike[str], name: str):
        if not _NAME.fullmatch(name):
            raise BadInput(
                f"--name {name!r} can't be a folder's name; use up to 100 letters, digits, '-', '_' and '.', "
                "and no '.' or '-' in front."
            )
        storage = os.fspath(storage)
        scheme, separator, _ = storage.partition("://")
        self.name = name
        self.is_remote = bool(separator) and scheme != "file"
        if self.is_remote:
            if scheme not in REMOTE_SCHEMES:
                raise BadInput(f"--storage {storage!r} must be a folder or begin with s3:// or gs://.")
            base, _, query = storage.partition("?")
            self._base, self._query = base.rstrip("/"), query
            if self._base in {f"{s}:" for s in REMOTE_SCHEMES}:
                raise BadInput(f"--storage {storage!r} names no bucket; write {scheme}://bucket/folder.")
            self.storage = self._base + (f"?{query}" if query else "")
            self.uri = re.sub(r"//[^/@]*@", "//", self._base) + f"/{name}"
            key = hashlib.sha256(f"{self.uri}?{query}".encode()).hexdigest()[:12]
            self.path = _cache() / "staging" / f"{name}-{key}"
        else:
            root = Path(storage.removeprefix("file://")).expanduser().absolute()
            self.storage = str(root)
            self.path = root / name
            self.uri = str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({self.uri!r})"

    # Opening ------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the folder, readable by this user alone, and try that it can be written. Raises BadInput."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            probe = self.path / f"{TEMPORARY}probe-{os.getpid()}"
            try:
                _write_synced(probe, b"\0" * 4096)
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise BadInput(f"--storage: {self.path} {_cannot(error)}; choose another folder.") from None
        if self.is_remote:
            probe = f"{self._remote}/{TEMPORARY}probe-{os.getpid()}"
            try:
                with self._fs.open_output_stream(probe) as stream:
                    stream.write(b"\0")
                self._fs.delete_file(probe)
            except OSError as error:
                raise BadInput(f"--storage: can't write to {self.uri} ({_reason(error)}).") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the operating system lets go when the process ends, however it ends.

        What killed writers left half-written is removed. For a URI the lock is the staging folder's: it keeps out
        a second run on this machine, not one on another. Raises BadInput where the run is held already.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except (Timeout, RuntimeError):
            raise BadInput(
                f"Another process is training {self.uri} now; wait for it, or choose another --name."
            ) from None
        except OSError as error:
            raise BadInput(f"--storage: {self.path} {_cannot(error)}; choose another folder.") from None
        try:
            for left in self.path.glob(TEMPORARY + "*"):
                remove(left)
            yield
        finally:
            lock.release()

    # Writing ------------------------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Replace the file at once. `name` may lie in a subfolder: "pictures/grid.png"."""
        path = self._inside(name)
        temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
        with self.guard(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(temporary, data)
                os.replace(temporary, path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
        return path

    def write_json(self, name: str, content: Any) -> Path:
        """Numbers that JSON can't express (NaN, infinities) become null."""
        return self.write_bytes(name, (json.dumps(_finite(content), indent=2) + "\n").encode())

    def append_row(self, name: str, row: dict[str, Any]) -> None:
        """Add one line of JSON. It outlives this process once this returns; a kill can tear only the last line."""
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

    # Reading ------------------------------------------------------------------------------------------------

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, None where there is none. Raises BadInput where it isn't JSON."""
        path = self._inside(name)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} can't be read as JSON ({error}); delete or mend it.") from None

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """All whole rows; a torn one is left out."""
        path = self._inside(name)
        rows = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        return rows

    def _inside(self, name: str) -> Path:
        parts = name.split("/")
        if any(not _NAME.fullmatch(part) for part in parts):
            raise BadInput(f"{name!r} can't be the name of a file in {self.path}.")
        return self.path.joinpath(*parts)

    @contextlib.contextmanager
    def guard(self, path: Path) -> Iterator[None]:
        """Turn a failure of the disk or the object store into RunFailed."""
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"{path} {_cannot(error)}; checkpoints written before are complete, and the same command resumes "
                "from the newest."
            ) from error

    # The object store -----------------------------------------------------------------------------------------

    def push(self, *names: str) -> None:
        """Upload these files and folders; without names all but the checkpoints. Does nothing for a local run."""
        if not self.is_remote:
            return
        if not names:
            names = tuple(
                p.name for p in self.path.iterdir() if not p.name.startswith(".") and p.name != "checkpoints"
            )
        with self.guard(Path(self.uri)):
            for name in names:
                path = self._inside(name)
                files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
                if (path / MANIFEST).exists():  # until all files are there, it must not look complete
                    self._delete(f"{name}/{MANIFEST}")
                for file in sorted(files, key=lambda p: (p.name == MANIFEST, p)):
                    self._copy(file, f"{self._remote}/{file.relative_to(self.path).as_posix()}", up=True)

    def remove(self, name: str) -> None:
        """Delete a file or folder here and in the object store. No reader ever sees a part of it."""
        path = self._inside(name)
        with self.guard(path):
            if self.is_remote:
                self._delete(f"{name}/{MANIFEST}")
                self._delete(name)
            remove(path)

    def pull(self) -> None:
        """Make the staging folder agree with the object store, which decides where the two differ.

        Any number of processes may call it, before training starts. Does nothing for a local run.
        """
        if not self.is_remote:
            return
        from pyarrow.fs import FileSelector, FileType

        try:
            with FileLock(self.path / ".pull"):
                listed = self._fs.get_file_info(
                    FileSelector(self._remote, recursive=True, allow_not_found=True)
                )
                start = len(self._remote) + 1
                remote = {f.path[start:]: f for f in listed if f.type == FileType.File}
                remote = {n: f for n, f in remote.items() if all(_NAME.fullmatch(p) for p in n.split("/"))}
                for folder in {n.rpartition("/")[0] for n in remote} | self._folders():
                    self._pull_folder(folder, [n for n in remote if n.rpartition("/")[0] == folder])
        except OSError as error:
            raise BadInput(f"--storage: can't read {self.uri} ({_reason(error)}).") from None

    def _folders(self) -> set[str]:
        return {f"checkpoints/{p.name}" for p in self.path.glob("checkpoints/*") if p.is_dir()}

    def _pull_folder(self, folder: str, names: list[str]) -> None:
        manifest = f"{folder}/{MANIFEST}"
        local = self.path / folder
        if folder.startswith("checkpoints/"):
            if manifest not in names:  # half-uploaded, half-deleted, or written here and never uploaded
                return remove(local)
            with self._fs.open_input_stream(f"{self._remote}/{manifest}") as stream:
                wanted = stream.read()
            if (local / MANIFEST).exists() and (local / MANIFEST).read_bytes() == wanted:
                return None
            remove(local)
        (local).mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda n: (n == manifest, n)):
            target = self.path / name
            temporary = target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")
            self._copy(temporary, f"{self._remote}/{name}", up=False)
            os.replace(temporary, target)
        return None

    @cached_property
    def _remote_root(self) -> tuple[Any, str]:
        from pyarrow.fs import FileSystem

        try:
            return FileSystem.from_uri(self._base + (f"?{self._query}" if self._query else ""))
        except (OSError, ValueError) as error:
            raise BadInput(f"--storage: {self.uri} can't be opened ({_reason(error)}).") from None

    @property
    def _fs(self) -> Any:
        return self._remote_root[0]

    @property
    def _remote(self) -> str:
        return f"{self._remote_root[1].rstrip('/')}/{self.name}"

    def _copy(self, local: Path, remote: str, *, up: bool) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        if up:
            copy_files(
                str(local), remote, source_filesystem=LocalFileSystem(), destination_filesystem=self._fs
            )
        else:
            copy_files(
                remote, str(local), source_filesystem=self._fs, destination_filesystem=LocalFileSystem()
            )

    def _delete(self, name: str) -> None:
        from pyarrow.fs import FileType

        path = f"{self._remote}/{name}"
        kind = self._fs.get_file_info(path).type
        if kind == FileType.Directory:
            self._fs.delete_dir(path)
        elif kind == FileType.File:
            self._fs.delete_file(path)


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


def sync_folder(path: Path) -> None:
    """Make renames in this folder outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "crayon"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).rstrip(".")


def _cannot(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "can't be written: the disk is full (or the quota is used up)"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "can't be a folder: a file is in the way"
    return f"can't be written ({_reason(error)})"
