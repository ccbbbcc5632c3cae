"""What a command is to look at: image files, wherever they are, or a data source. Listing them loads no torch."""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import UnidentifiedImageError

from crayon.config.settings import DataConfig
from crayon.data.decode import EXTENSIONS, Form, decode
from crayon.data.folder import LeftOut, class_name, is_image, needs_extra, walk
from crayon.errors import BadInput, with_type
from crayon.report.events import Emit, Message, ignore
from crayon.report.words import name_text
from crayon.system.host import usable_cores
from crayon.system.objectstore import opened, short_message
from crayon.use.settings import SourceConfig

if TYPE_CHECKING:
    from crayon.data import ImageSet
    from crayon.use.model import Model

FILES_AT_ONCE = 64
"""Files that a thread decodes at a time."""
REMOTE_THREADS = 16
"""Threads that mostly wait for an object store."""
SPLITS = ("test", "val", "train")
_KNOWN = f"known: {' '.join(sorted(EXTENSIONS))}"
Reading = Callable[[], tuple[np.ndarray, list[tuple[int, str]]]]
"""Waits for images: (uint8 (n, C, H, W), (index, reason) of those that can't be read, which are black)."""


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
        if self.source is None:
            return _from_files(self, model.form)
        from crayon import data

        config = _data(self.source, model.config.data)
        splits = data.load(config, labels=None if model.config.needs_labels else False, emit=emit)
        images = getattr(splits, self.source.split)
        if images is None:
            has = ", ".join(name for name in SPLITS if getattr(splits, name) is not None)
            raise BadInput(
                f"{config.source} has no {self.source.split} split; choose --data.split from {has}."
            )
        return from_set(images)


def find(words: Sequence[str], source: SourceConfig, emit: Emit = ignore) -> Inputs:
    """The images that `words` (files, folders, globs, s3:// or gs:// prefixes) or `source` name.

    Files keep the order of `words`; those of a folder are sorted, and `emit` is told what of it was left out. Raises
    BadInput where there are none.
    """
    if source.source is not None:
        if words:
            raise BadInput(
                f"Both --data.source {source.source} and {words[0]!r} are given; give files, or a data source."
            )
        from crayon import data

        data.check(_data(source, DataConfig(image_size=32)), labels=False)
        return Inputs(source=source)
    if not words:
        raise BadInput("Nothing to look at; give files, folders, globs or s3:// prefixes, or --data.source.")
    files: list[str] = []
    queries, left = set(), LeftOut()
    for word in words:
        if "://" in word:
            base, _, query = word.partition("?")
            queries.add(query)
            files += _remote(base, query)
        else:
            files += _local(word, left)
    for line in left.lines():
        emit(Message(f"left out: {line}"))
    if len(queries) > 1:
        raise BadInput("The addresses differ in what follows the ?; give the same to all.")
    return Inputs(files=tuple(dict.fromkeys(files)), query="".join(queries), here=os.getcwd())


def absolute(path: str) -> str:
    """An address as it is; a path so that another process finds it, too."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _data(source: SourceConfig, like: DataConfig) -> DataConfig:
    """The images of `source`, in the form of those that a model was trained on, and split as they were."""
    same = source.source == like.source
    return DataConfig(
        source=source.source or "",
        root=absolute(source.root) if source.root else None,
        size=source.size,
        image_size=like.image_size,
        fit=like.fit,
        channels=like.channels,
        range=like.range,
        val_fraction=like.val_fraction,
        test_fraction=like.test_fraction if same else None,
        groups=like.groups if same else None,
        cache=like.cache if same else "on",
    )


def _local(word: str, left: LeftOut) -> list[str]:
    path = os.path.expanduser(word)
    try:
        if os.path.isdir(path):
            found = _under(path, left)
            if not found:
                raise BadInput(f"{word} has no images ({'; '.join([*left.lines(), _KNOWN])}).")
            return found
        if os.path.exists(path):
            return [path]
        if not glob.has_magic(path):
            raise BadInput(f"There is no file or folder {word}.")
        found = []
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isdir(match):
                found += _under(match, left) if "**" not in path else []
            elif is_image(os.path.basename(match)):
                found.append(match)
    except OSError as error:
        raise BadInput(f"{word} can't be read ({short_message(error)}).") from None
    if not found:
        raise BadInput(f"No image is called {word} ({_KNOWN}).")
    return found


def _under(folder: str, left: LeftOut) -> list[str]:
    return sorted(os.path.join(folder, file.path) for file in walk(folder, left))


def _remote(base: str, query: str) -> list[str]:
    """Addresses, without the query, of the images under a prefix or that a glob matches."""
    from pyarrow.fs import FileSelector, FileType

    scheme, _, rest = base.partition("://")
    fs, _ = opened(f"{base}?{query}")
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
    names = [name for name in names if not magic or fnmatch.fnmatchcase(name, rest)]
    if not names:
        raise BadInput(f"{base} has no images ({_KNOWN}).")
    return [f"{scheme}://{name}" for name in sorted(names)]


@dataclass(frozen=True)
class Reader:
    """Images by number."""

    names: Sequence[str]
    """What each is called."""
    start: Callable[[int, int], Reading]
    """Begins to read images start .. stop - 1."""
    labels: np.ndarray | None = None
    """int64 (N,), None where they aren't known."""
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def from_set(images: ImageSet) -> Reader:
    """The images of a split."""
    import torch

    def start(first: int, stop: int) -> Reading:
        return lambda: (images.gather(torch.arange(first, stop)).numpy(), [])

    names = [f"{images.name}/{k}" for k in range(len(images))]
    return Reader(names, start, images.labels.numpy() if images.classes else None, images.classes)


def _from_files(inputs: Inputs, form: Form) -> Reader:
    """Pillow lets other threads run while it decodes and resizes, so threads are enough, and they leave the decoded
    pixels where they are needed."""
    # Pillow warns of odd metadata, and of images that are large but within its limit. For the whole process: Python's
    # filters can't be set for a thread.
    warnings.filterwarnings("ignore", module=r"PIL\..*")
    names, here = inputs.files, inputs.here
    remote = next((name for name in names if "://" in name), None)
    store: Any = opened(f"{remote}?{inputs.query}")[0] if remote else None
    cores = usable_cores()
    threads = ThreadPoolExecutor(max(cores, REMOTE_THREADS) if remote else cores)

    def found(name: str) -> Any:
        if "://" not in name:
            return os.path.join(here, name)
        with store.open_input_stream(name.partition("://")[2]) as stream:
            return io.BytesIO(stream.read())

    def read(pixels: np.ndarray, origin: int, first: int, stop: int) -> list[tuple[int, str]]:
        unreadable = []
        for i in range(first, stop):
            try:
                pixels[i - origin] = decode(found(names[i]), form).transpose(2, 0, 1)
            except UnidentifiedImageError:
                unreadable.append(
                    (i, needs_extra(names[i]) or "it is no image, or of a kind that isn't known")
                )
            except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                unreadable.append((i, with_type(error, 280)))
        return unreadable

    def start(first: int, stop: int) -> Reading:
        pixels = np.zeros((stop - first, *form.shape), np.uint8)
        chunks = [
            threads.submit(read, pixels, first, at, min(at + FILES_AT_ONCE, stop))
            for at in range(first, stop, FILES_AT_ONCE)
        ]
        return lambda: (pixels, [bad for chunk in chunks for bad in chunk.result()])

    return Reader([name_text(name) for name in names], start)


def folder_labels(names: Sequence[str], classes: Sequence[str], wanted: str) -> np.ndarray | None:
    """int64 (N,) labels from the names of the folders that the files lie in.

    wanted: "folder" = every folder must be a class (raises BadInput), "auto" = labels if every folder is one and
    there are two or more, "none" = no labels.
    """
    if wanted == "none":
        return None
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(folders(names) - number.keys())
    if not unknown and (wanted == "folder" or len(folders(names)) > 1):
        return np.array([number[_folder(name)] for name in names], np.int64)
    if wanted == "folder":
        raise BadInput(
            f"--labels folder: {unknown[0] or 'no folder'!r} is no class of this model ({', '.join(classes[:12])}); "
            "the folder that an image lies in must have the name of its class."
        )
    return None


def folders(names: Sequence[str]) -> set[str]:
    """Names of the folders that files lie in."""
    return set(map(_folder, names))


def _folder(name: str) -> str:
    return class_name(name.replace("\\", "/").rpartition("/")[0].rpartition("/")[2])
