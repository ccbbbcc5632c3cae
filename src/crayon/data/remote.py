"""What there is in an object store, or in shards wherever they are: splits, their files and the images in these.
Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from crayon.config.settings import DataConfig
from crayon.data.folder import ImageFile, LeftOut, class_name, walk
from crayon.data.layout import Layout, Part, layout_of, split_of
from crayon.data.listing import Address, Listing
from crayon.data.shards import Item, items, shard_kind
from crayon.errors import BadInput, RunFailed
from crayon.report.words import name_text
from crayon.system.files import expanded
from crayon.system.objectstore import opened, patiently, short_message, shown

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
    """Of the files, where they are images: their classes, or empty."""

    def __str__(self) -> str:
        return f"{name_text(shown(self.root))} ({self.name})"

    def name_of(self, number: int) -> str:
        """Of a file, to show to people."""
        return name_text(f"{shown(self.root).rstrip('/')}/{self.files[number].path}")

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


class Found(NamedTuple):
    """What there is."""

    root: PurePath
    layout: Layout
    splits: dict[str, Split]
    """Of each of the layout's parts."""


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
    top = expanded(root)
    try:
        inside = [top / name for name in os.listdir(top) if split_of(name) or name == "data"]
    except OSError:
        return False
    return any(map(_holds_shards, (top, *inside)))


def _holds_shards(folder: Path) -> bool:
    """Shards and, at any depth, no images; as `Listing.shards`."""
    try:
        return any(map(shard_kind, os.listdir(folder))) and next(walk(folder), None) is None
    except OSError:
        return False


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


def find(config: DataConfig, *, labels: bool | None) -> Found:
    """The splits there are, read as a folder of this machine is.

    Raises BadInput where there are no images, or not what the job needs; the first shard of each split is looked into.
    """
    assert config.root is not None
    root = Address(shown(config.root)) if "://" in config.root else expanded(config.root)
    tree = Listing(root, _list(config.root))
    shards = tree.shards()
    kinds = sorted({kind for file in shards if (kind := shard_kind(file.path))})
    if len(kinds) > 1:
        raise BadInput(f"{root} holds {' and '.join(kinds)} files; set --data.root to a folder of one kind.")
    if kinds:
        return _of_shards(config, root, kinds[0], shards, tree, labels)
    read = layout_of(root, tree, labels=labels)
    base, mark, query = config.root.partition("?")
    splits = {}
    for name, part in read.parts.items():
        files = sorted(tree.walk(part.folder, read.left_out, part.inside))
        classes = tuple(class_name(f.path.partition("/")[0]) for f in files) if read.classes else ()
        place = "/".join((base.rstrip("/"), *part.folder.relative_to(root).parts))
        splits[name] = Split(name, f"{place}{mark}{query}", "Image", tuple(files), classes)
    return Found(root, read, splits)


def _of_shards(
    config: DataConfig, root: PurePath, kind: str, shards: list[ImageFile], tree: Listing, labels: bool | None
) -> Found:
    assert config.root is not None
    if config.groups is not None:
        raise BadInput(
            f"--data.groups is for the paths of image files, and {root} holds shards; leave it out."
        )
    if config.cache == "off" and not all(f.path.lower().endswith(".tar") for f in shards):
        raise BadInput(
            f"{root} holds Parquet or compressed files, out of which single images can't be read fast; leave "
            "--data.cache on, or write them to .tar files."
        )
    left, notes = LeftOut(), []
    tree.count_others(shards, left)
    named: dict[str, list[ImageFile]] = {}
    for file in shards:
        named.setdefault(_split_of(file.path), []).append(file)
    whole = set(named) == {""}
    if whole:
        named = {"train": named[""]}
    elif "train" not in named:
        others = ", ".join(sorted(filter(None, named)))
        raise BadInput(f"{root} has {others} but no train images; name those to learn from train.")
    if beside := named.pop("", None):
        notes.append(
            f"{len(beside):,} shards belong to no split and are left out, such as {name_text(beside[0].path)}"
        )
    splits = {name: Split(name, config.root, kind, tuple(files), ()) for name, files in named.items()}
    for name, split in splits.items():
        _, item = next(images_in(split, [0], labels=bool(labels) and name == "train"))
        whole = whole and bool(item.label)
    return Found(root, Layout({name: Part(root) for name in splits}, (), left, notes, whole), splits)


def _list(root: str) -> list[ImageFile]:
    """All files, sorted by their paths below `root`."""
    from pyarrow.fs import FileSelector

    files, base = _place(root)
    try:
        found = files.get_file_info(FileSelector(base, recursive=True))
    except OSError as error:
        raise BadInput(f"{shown(root)} can't be listed ({short_message(error)}).") from None
    relative = [(file.path[len(base) :].lstrip("/"), file) for file in found if file.is_file]
    return sorted(ImageFile(path, file.size, file.mtime_ns or 0) for path, file in relative)


def _split_of(path: str) -> str:
    """The split that a shard belongs to; empty where it has no such name."""
    for part in path.split("/"):
        if name := split_of(re.split(r"[-_.]", part)[0]):
            return name
    return ""


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
