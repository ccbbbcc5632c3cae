"""What there is in an object store, or in shards wherever they are: splits, their files and the images in these.
Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from crayon.config.settings import DataConfig
from crayon.data.decode import EXTENSIONS
from crayon.data.folder import ImageFile, is_image
from crayon.data.shards import KINDS, Item, items, kind_of
from crayon.errors import BadInput, RunFailed
from crayon.report.events import Emit, Message, ignore
from crayon.system.files import expanded
from crayon.system.objectstore import opened, patiently, short_message, shown

if TYPE_CHECKING:
    pass

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "dev"), "val")
"""What folders, and the beginnings of shards' names, say of what is in them."""
PATIENCE = 60.0
"""Seconds for which a store is asked again that can't be reached."""


class Split(NamedTuple):
    """The files of a split, in order; it can be sent to another process."""

    name: str
    root: str
    kind: str
    """Image, Parquet or WebDataset."""
    files: tuple[ImageFile, ...]
    labels: tuple[str, ...]
    """Of the files, where they are images: the folders they lie in, or empty."""

    def __str__(self) -> str:
        return f"{shown(self.root)} ({self.name})"

    def name_of(self, number: int) -> str:
        """Of a file, to show to people."""
        return f"{shown(self.root).rstrip('/')}/{self.files[number].path}"

    def open(self, number: int, at: int | None = None) -> BinaryIO:
        """One of the files, as a stream or, from `at` on, as a file to read parts of."""
        files, base = _place(self.root)
        path = f"{base}/{self.files[number].path}"
        if at is None and self.kind != "Parquet":
            return files.open_input_stream(path)
        file = files.open_input_file(path)
        file.seek(at or 0)
        return file

    def read(self, number: int, start: int | None = None, size: int | None = None) -> bytes:
        """One of the files, or `size` bytes of it. Raises RunFailed where the store can't be reached."""

        def content() -> bytes:
            with self.open(number, start) as file:
                return file.read() if size is None else file.read(size)

        try:
            return patiently(content, seconds=PATIENCE, tell=lambda text: None, where=self.root)
        except FileNotFoundError:
            return b""  # removed since: no image
        except OSError as error:
            raise RunFailed(f"{self.name_of(number)} can't be read ({short_message(error)}).") from None


@lru_cache(maxsize=4)
def _place(root: str) -> tuple[Any, str]:
    """pyarrow's file system, and the path in it."""
    if "://" in root:
        return opened(root)
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), expanded(root).as_posix()


def takes(root: str) -> bool:
    """Whether this module is what reads a folder: one in an object store, or one that holds shards."""
    if "://" in root:
        return True
    folders = [expanded(root) / name for name in (".", *SPLITS, "data")]
    return any(kind_of(name) for folder in folders if folder.is_dir() for name in os.listdir(folder))


def check(config: DataConfig) -> None:
    """Raises BadInput where the root isn't there. One request."""
    assert config.root is not None
    files, base = _place(config.root)
    try:
        kind = files.get_file_info(base).type.name
    except OSError as error:
        raise BadInput(f"{shown(config.root)} can't be reached ({short_message(error)}).") from None
    if kind != "Directory":
        raise BadInput(
            f"There is no folder {shown(config.root)}; set --data.root to the bucket and folder that hold your images."
        )


def find(config: DataConfig, *, labels: bool, emit: Emit = ignore) -> dict[str, Split]:
    """The splits there are: "train", and perhaps "test" and "val".

    Raises BadInput where there are no images, or not what the job needs; the first shard of each split is looked into.
    """
    assert config.root is not None
    where = shown(config.root)
    found = _list(config.root)
    shards = {kind for file in found if (kind := kind_of(file.path))}
    if len(shards) > 1:
        raise BadInput(
            f"{where} holds {' and '.join(sorted(shards))} files; set --data.root to a folder of one kind."
        )
    kind = shards.pop() if shards else "Image"
    wanted = [
        f for f in found if (kind_of(f.path) if kind != "Image" else is_image(os.path.basename(f.path)))
    ]
    if not wanted:
        raise BadInput(f"{where} has no images (known: {' '.join(sorted({*EXTENSIONS, *KINDS}))}).")
    named: dict[str, list[ImageFile]] = {}
    for file in wanted:
        named.setdefault(_split_of(file.path, kind), []).append(file)
    if "train" not in named:
        if set(named) != {""}:
            others = ", ".join(sorted(filter(None, named)))
            raise BadInput(f"{where} has {others} but no train images; name those to learn from train.")
        named = {"train": named[""]}
    if beside := named.pop("", None):
        text = f"left out {len(beside):,} files in {where} that belong to no split, such as {beside[0].path}"
        emit(Message(text, warning=True))
    splits = {name: _split(name, config.root, kind, files) for name, files in named.items()}
    if kind == "Image":
        _check_folders(splits, where, labels)
    elif config.cache == "off" and not all(f.path.lower().endswith(".tar") for f in wanted):
        raise BadInput(
            f"{where} holds Parquet or compressed files, out of which single images can't be read fast; leave "
            "--data.cache on, or write them to .tar files."
        )
    else:
        for name, split in splits.items():
            next(images_in(split, [0], labels=labels and name == "train"))
    return splits


def _list(root: str) -> list[ImageFile]:
    from pyarrow.fs import FileSelector

    files, base = _place(root)
    try:
        found = files.get_file_info(FileSelector(base, recursive=True))
    except OSError as error:
        raise BadInput(f"{shown(root)} can't be listed ({short_message(error)}).") from None
    relative = [(file.path[len(base) :].lstrip("/"), file) for file in found if file.is_file]
    visible = [(path, file) for path, file in relative if not re.search(r"(^|/)\.", path)]
    return sorted(ImageFile(path, file.size, file.mtime_ns or 0) for path, file in visible)


def _split_of(path: str, kind: str) -> str:
    """The split that a file belongs to; empty where it has no such name."""
    first, _, _ = path.partition("/")
    if kind == "Image":
        return SPLITS.get(first.lower(), "") if "/" in path else ""
    for part in path.lower().split("/"):
        if name := SPLITS.get(re.split(r"[-_.]", part)[0]):
            return name
    return ""


def _split(name: str, root: str, kind: str, files: list[ImageFile]) -> Split:
    within = [file.path.split("/")[:-1] for file in files]
    if kind == "Image" and all(within):
        depth = int(within[0][0].lower() in SPLITS)  # the first folder is the split's
        if all(len(folders) > depth for folders in within):
            return Split(name, root, kind, tuple(files), tuple(folders[depth] for folders in within))
    return Split(name, root, kind, tuple(files), ())


def _check_folders(splits: dict[str, Split], where: str, labels: bool) -> None:
    classes = set(splits["train"].labels)
    if labels and len(classes) < 2:
        has = f"only the class folder {min(classes)!r}" if classes else "no class folders"
        raise BadInput(
            f"{where} has {has}; a classifier needs at least two, one folder per class: train/<class>/."
        )


def images_in(split: Split, numbers: Iterable[int], *, labels: bool = False) -> Iterator[tuple[int, Item]]:
    """The images in some of the files, with the number of the file each is from."""
    for number in numbers:
        name = split.name_of(number)
        if split.kind == "Image":
            yield number, Item(name, split.labels[number] if split.labels else "", None)
            continue
        try:
            file = split.open(number)
        except OSError as error:
            raise BadInput(f"{name} can't be opened ({short_message(error)}).") from None
        with file:
            for item in items(split.kind, file, name, labels=labels):
                yield number, item
