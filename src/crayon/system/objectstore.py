"""A folder in an object store (S3, Google Cloud Storage), reached the way Ray itself does it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from crayon.errors import BadInput

SCHEMES = ("s3", "gs")
T = TypeVar("T")


class ObjectStore:
    """The objects under `<storage>/<folder>/`. No request is made before the first method is called.

    storage: `s3://bucket/prefix` or `gs://bucket/prefix`; what follows a `?` goes to
    `pyarrow.fs.FileSystem.from_uri`, for example `?endpoint_override=localhost:9000&scheme=http`. Credentials are
    looked for where the cloud's own tools do. Methods raise OSError where the store can't be reached.
    """

    def __init__(self, storage: str, folder: str):
        base, _, query = storage.partition("?")
        scheme, _, rest = base.rstrip("/").partition("://")
        if scheme not in SCHEMES:
            raise BadInput(f"--storage {storage!r} must be a folder or begin with s3:// or gs://.")
        if not rest.strip("/"):
            raise BadInput(f"--storage {storage!r} names no bucket; write {scheme}://bucket/folder.")
        if scheme == "gs" and "retry_limit_seconds" not in query:
            query += ("&" if query else "") + "retry_limit_seconds=60"  # pyarrow's own default is 15 minutes
        self._root, self._folder = f"{scheme}://{rest}" + (f"?{query}" if query else ""), folder
        self.uri = re.sub(r"//[^/@]*@", "//", f"{scheme}://{rest}/{folder}")
        """To show to people: no credentials, no options."""
        self.key = f"{self.uri}?{query}"
        """Tells this store from any other."""

    @cached_property
    def _files(self) -> Any:
        """pyarrow's file system, whose root is the folder."""
        from pyarrow.fs import FileSystem, SubTreeFileSystem

        try:
            fs, path = FileSystem.from_uri(self._root)
        except ValueError as error:  # an option it doesn't know, an impossible bucket name
            raise BadInput(f"--storage: {self.uri} can't be opened ({short_message(error)}).") from None
        return SubTreeFileSystem(f"{path.rstrip('/')}/{self._folder}", fs)

    def list(self) -> list[str]:
        """Names of all objects, relative to the folder, in subfolders too."""
        from pyarrow.fs import FileSelector

        found = self._files.get_file_info(FileSelector("", recursive=True, allow_not_found=True))
        return [info.path for info in found if info.is_file]

    def times(self, folder: str) -> dict[str, float]:
        """When each object under a folder was last written, in seconds by the store's clock, by its name."""
        from pyarrow.fs import FileSelector

        found = self._files.get_file_info(FileSelector(folder, allow_not_found=True))
        return {info.path: info.mtime_ns / 1e9 for info in found if info.is_file}

    def open(self, name: str) -> BinaryIO:
        """An object as a file: of it only the parts are fetched that are read."""
        return self._files.open_input_file(name)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        with self._files.open_output_stream(name) as stream:
            stream.write(data)

    def upload(self, file: Path, name: str) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(str(file), name, LocalFileSystem(), self._files)

    def download(self, name: str, file: Path) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(name, str(file), self._files, LocalFileSystem())

    def delete(self, name: str) -> None:
        """Delete an object, or all under a folder; fine where there is none."""
        _delete(self._files, name)

    def remove(self) -> None:
        """Delete the folder itself with all in it. pyarrow may leave an empty object for the folder above."""
        _delete(self._files.base_fs, self._files.base_path.rstrip("/"))


def opened(address: str) -> tuple[Any, str]:
    """pyarrow's file system of `s3://bucket/folder?options` or `gs://...`, and the path there. No request is made, but
    where S3 is asked for a bucket's region. Raises BadInput."""
    from pyarrow.fs import FileSystem

    base, _, query = address.partition("?")
    scheme, _, path = base.partition("://")
    if scheme not in SCHEMES:
        raise BadInput(f"{shown(address)} must be a file or begin with s3:// or gs://.")
    bucket = re.findall(r"^\w+://[^/]*", base)[0]  # the rest may have characters that a URI can't
    try:
        files, _ = FileSystem.from_uri(f"{bucket}/{f'?{query}' if query else ''}")
    except (OSError, ValueError) as error:
        raise BadInput(f"{shown(address)} can't be opened ({short_message(error)}).") from None
    return files, path.rpartition("@")[2].strip("/")


def shown(address: str) -> str:
    """An address to show to people: no credentials, no options."""
    return re.sub(r"//[^/@]*@", "//", address.partition("?")[0])


def patiently(
    do: Callable[..., T], *arguments: Any, seconds: float, tell: Callable[[str], None], where: str
) -> T:
    """What `do` gives, tried again and again for `seconds` while a store can't be reached, which `tell` is told once.
    Raises its OSError in the end."""
    begun, pause = time.monotonic(), 1.0
    while True:
        try:
            return do(*arguments)
        except OSError as error:
            if not _unreachable(error) or time.monotonic() - begun + pause > seconds:
                raise
            if pause == 1.0:
                tell(f"{where} can't be reached ({short_message(error)}); trying for {seconds:.0f} s.")
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def _delete(files: Any, path: str) -> None:
    from pyarrow.fs import FileType

    kind = files.get_file_info(path).type
    if kind == FileType.Directory:
        files.delete_dir(path)
    elif kind == FileType.File:
        files.delete_file(path)


def short_message(error: Exception) -> str:
    """What went wrong, in one line: without the request's details that cloud errors carry."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    text = re.sub(r"^.*(?=AWS Error )", "", text)
    return re.sub(r"(AWS Error \w+) during \w+ operation|\s*\(Request ID[^)]*\)", r"\1", text).rstrip(". ")


def _unreachable(error: OSError) -> bool:
    """Whether it may be better in a while: no connection, or a store that asks for patience."""
    signs = r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING|curlCode"
    more = r"timed? ?out|deadline|unavailable|connection (refused|reset)|couldn't connect"
    return re.search(f"{signs}|{more}", str(error), re.IGNORECASE) is not None
