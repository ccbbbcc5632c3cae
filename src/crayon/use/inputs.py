"""What a command is to look at: image files, wherever they are, or a data source. Listing them loads no torch."""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import UnidentifiedImageError

from crayon.config.settings import DataConfig
from crayon.data.decode import EXTENSIONS, decode
from crayon.data.folder import is_image, walk
from crayon.errors import BadInput
from crayon.report.events import Emit, ignore
from crayon.system.host import usable_cores
from crayon.system.objectstore import SCHEMES, short_message
from crayon.use.settings import SourceConfig

if TYPE_CHECKING:
    from crayon.data import ImageSet
    from crayon.use.model import Model

FILES_AT_ONCE = 64
"""Files that a thread decodes at a time."""
REMOTE_THREADS = 16
"""Threads that mostly wait for an object store."""
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Inputs:
    """Either `files`, as a person named them or as they lie in a folder that was named, or images of a data source."""

    files: tuple[str, ...] = ()
    query: str = ""
    """What follows the ? in the address of an object store."""
    here: str = ""
    """What relative paths are relative to."""
    source: SourceConfig | None = None

    def open(self, model: Model, emit: Emit = ignore) -> Reader:
        """The images, as `model` takes them. `emit`: see crayon.data.load."""
        if self.source is not None:
            return _Set(opened(self.source, model, emit))
        return _Files(self, model.image_size, model.channels)


def find(words: Sequence[str], source: SourceConfig) -> Inputs:
    """The images that `words` (files, folders, globs, s3:// or gs:// prefixes) or `source` name.

    Files keep the order of `words`; those of a folder are sorted. Raises BadInput where there are none.
    """
    if source.source is not None:
        if words:
            raise BadInput(
                f"Both --data.source {source.source} and {words[0]!r} are given; give files, or a data source."
            )
        check_source(source)
        return Inputs(source=source)
    if not words:
        raise BadInput("Nothing to look at; give files, folders, globs or s3:// prefixes, or --data.source.")
    files: list[str] = []
    queries = set()
    for word in words:
        if "://" in word:
            base, _, query = word.partition("?")
            queries.add(query)
            files += _remote(base, query)
        else:
            files += _local(word)
    if len(queries) > 1:
        raise BadInput("The addresses differ in what follows the ?; give the same to all.")
    return Inputs(files=tuple(dict.fromkeys(files)), query="".join(queries), here=os.getcwd())


def _local(word: str) -> list[str]:
    path = os.path.expanduser(word)
    known = f"known: {' '.join(sorted(EXTENSIONS))}"
    try:
        if os.path.isdir(path):
            found = sorted(os.path.join(path, f.path) for f in walk(path))
            if not found:
                raise BadInput(f"{word} has no images ({known}).")
            return found
        if os.path.exists(path):
            return [path]
        if not glob.has_magic(path):
            raise BadInput(f"There is no file or folder {word}.")
        found = []
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isdir(match):
                found += sorted(os.path.join(match, f.path) for f in walk(match)) if "**" not in path else []
            elif is_image(os.path.basename(match)):
                found.append(match)
    except OSError as error:
        raise BadInput(f"{word} can't be read ({short_message(error)}).") from None
    if not found:
        raise BadInput(f"No image is called {word} ({known}).")
    return found


def _remote(base: str, query: str) -> list[str]:
    """Addresses, without the query, of the images under a prefix or that a glob matches."""
    from pyarrow.fs import FileSelector, FileType

    scheme, _, rest = base.partition("://")
    if scheme not in SCHEMES:
        raise BadInput(f"{base} must be a file or begin with s3:// or gs://.")
    fs = _filesystem(base, query)
    fixed = re.split(r"[*\[]", rest, maxsplit=1)[0]
    magic = fixed != rest
    prefix = fixed.rpartition("/")[0] if magic else rest.rstrip("/")
    try:
        if not magic and fs.get_file_info(prefix).type == FileType.File:
            return [f"{scheme}://{prefix}"]
        found = fs.get_file_info(FileSelector(prefix, recursive=True, allow_not_found=True))
    except OSError as error:
        raise BadInput(f"{base} can't be read ({short_message(error)}).") from None
    names = [f.path for f in found if f.type == FileType.File and is_image(f.base_name)]
    if magic:
        names = [name for name in names if fnmatch.fnmatchcase(name, rest)]
    if not names:
        raise BadInput(f"{base} has no images (known: {' '.join(sorted(EXTENSIONS))}).")
    return [f"{scheme}://{name}" for name in sorted(names)]


def _filesystem(base: str, query: str) -> Any:
    from pyarrow.fs import FileSystem

    bucket = re.findall(r"^\w+://[^/]*", base)[0]  # the rest may have characters that a URI can't
    try:
        return FileSystem.from_uri(f"{bucket}/{f'?{query}' if query else ''}")[0]
    except (OSError, ValueError) as error:
        raise BadInput(f"{base} can't be opened ({short_message(error)}).") from None


class Reader:
    """Images by number.

    - `names`: what each is called.
    - `labels`: int64 (N,) labels with their `classes`, or None where they aren't known.
    """

    names: Sequence[str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def start(self, start: int, stop: int) -> Future[tuple[np.ndarray, list[tuple[int, str]]]]:
        """Begin to read images start .. stop - 1: (uint8 (n, C, H, W), (index, reason) of those that can't be read,
        which are black)."""
        raise NotImplementedError


class _Set(Reader):
    def __init__(self, images: ImageSet):
        self.images = images
        self.names = _Numbered(images.name, len(images))
        self.labels = images.labels.numpy() if images.classes else None
        self.classes = images.classes

    def start(self, start: int, stop: int) -> Future:
        import torch

        done: Future = Future()
        done.set_result((self.images.gather(torch.arange(start, stop)).numpy(), []))
        return done


class _Numbered(Sequence[str]):
    def __init__(self, name: str, count: int):
        self.name, self.length = name, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [f"{self.name}/{k}" for k in range(*i.indices(self.length))]
        return f"{self.name}/{i}"


class _Files(Reader):
    """Pillow lets other threads run while it decodes and resizes, so threads are enough, and they leave the decoded
    pixels where they are needed."""

    def __init__(self, inputs: Inputs, size: int, channels: int):
        self.names, self.here = inputs.files, Path(inputs.here)
        self.size, self.channels = size, channels
        first = next((name for name in inputs.files if "://" in name), None)
        self.fs: Any = _filesystem(first, inputs.query) if first else None
        cores = usable_cores()
        self.threads = ThreadPoolExecutor(max(cores, REMOTE_THREADS) if self.fs else cores)
        self.ends = ThreadPoolExecutor(2)

    def start(self, start: int, stop: int) -> Future:
        pixels = np.zeros((stop - start, self.channels, self.size, self.size), np.uint8)
        chunks = [
            self.threads.submit(self._chunk, pixels, start, first, min(first + FILES_AT_ONCE, stop))
            for first in range(start, stop, FILES_AT_ONCE)
        ]
        return self.ends.submit(lambda: (pixels, [bad for chunk in chunks for bad in chunk.result()]))

    def _chunk(self, pixels: np.ndarray, origin: int, start: int, stop: int) -> list[tuple[int, str]]:
        unreadable = []
        for i in range(start, stop):
            try:
                name = self.names[i]
                file: Any = io.BytesIO(self._bytes(name)) if "://" in name else self.here / name
                pixels[i - origin] = decode(file, self.size, self.channels).transpose(2, 0, 1)
            except UnidentifiedImageError:
                unreadable.append((i, "it is no image, or of a kind that isn't known"))
            except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                unreadable.append((i, " ".join(f"{type(error).__name__}: {error}".split())[:300]))
        return unreadable

    def _bytes(self, address: str) -> bytes:
        with self.fs.open_input_stream(address.partition("://")[2]) as stream:
            return stream.read()


def quiet() -> None:
    """Pillow warns of odd metadata, and of images that are large but within its limit. For whole processes: Python's
    filters can't be set for a thread."""
    warnings.filterwarnings("ignore", module=r"PIL\..*")


# Labels.


def folder_labels(names: Sequence[str], classes: Sequence[str], wanted: str) -> np.ndarray | None:
    """int64 (N,) labels from the names of the folders that the files lie in.

    wanted: "folder" = every folder must be a class (raises BadInput), "auto" = labels if every folder is one and
    there are two or more, "none" = no labels.
    """
    if wanted == "none" or isinstance(names, _Numbered):
        return None
    number = {name: i for i, name in enumerate(classes)}
    folders = [name.replace("\\", "/").rpartition("/")[0].rpartition("/")[2] for name in names]
    unknown = sorted(set(folders) - number.keys())
    if not unknown and (wanted == "folder" or len(set(folders)) > 1):
        return np.array([number[folder] for folder in folders], np.int64)
    if wanted == "folder":
        raise BadInput(
            f"--labels folder: {unknown[0] or 'no folder'!r} is no class of this model ({', '.join(classes[:12])}); "
            "the folder that an image lies in must have the name of its class."
        )
    return None


# Data sources.


def check_source(source: SourceConfig) -> None:
    """Raises BadInput where it can't be used; loads no torch."""
    from crayon import data

    data.check(data_config(source, 32, 3), labels=False)


def data_config(
    source: SourceConfig, image_size: int, channels: int, val_fraction: float = 0.08
) -> DataConfig:
    root = os.path.abspath(os.path.expanduser(source.root)) if source.root else None
    return DataConfig(
        source=source.source or "",
        root=root,
        size=source.size,
        image_size=image_size,
        channels=channels,  # type: ignore[arg-type]
        val_fraction=val_fraction,
    )


def opened(source: SourceConfig, model: Model, emit: Emit = ignore) -> ImageSet:
    """The chosen split of a data source, at the model's size."""
    from crayon import data

    config = data_config(source, model.image_size, model.channels, model.config.data.val_fraction)
    splits = data.load(config, labels=False, emit=emit)
    images = getattr(splits, source.split)
    if images is None:
        has = ", ".join(name for name in SPLITS if getattr(splits, name) is not None)
        raise BadInput(f"{source.source} has no {source.split} split; choose --data.split from {has}.")
    return images
