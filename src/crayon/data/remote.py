"""A set in an object store, or in shards wherever they are, as a source: found, decoded once, kept. Torch is imported
only where a set is opened."""

from __future__ import annotations

import io
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from crayon.config.settings import DataConfig
from crayon.data.ahead import ahead
from crayon.data.cache import cached, entry_of, key_of
from crayon.data.decode import EXTENSIONS, FILES_AT_ONCE, decode
from crayon.data.folder import ImageFile, is_image
from crayon.data.shards import KINDS, Item, items, kind_of
from crayon.errors import BadInput, RunFailed, one_line
from crayon.report.events import Emit, Message, Progress, ignore
from crayon.system.files import expanded
from crayon.system.host import usable_cores
from crayon.system.objectstore import opened, patiently, short_message, shown

if TYPE_CHECKING:
    from crayon.data.images import ImageSet

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "dev"), "val")
"""What folders, and the beginnings of shards' names, say of what is in them."""
READERS = 16
"""Threads that mostly wait for an object store."""
PATIENCE = 60.0
"""Seconds for which a store is asked again that can't be reached."""
Batch = dict[str, np.ndarray]
"""Decoded images: "image", uint8 (n, C, H, W), black where one can't be read; "label"; "problem", the reason for that,
else empty; "file", the number of the file that each is from."""


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

    def open(self, number: int) -> BinaryIO:
        files, base = _place(self.root)
        path = f"{base}/{self.files[number].path}"
        if self.kind == "Parquet":
            return files.open_input_file(path)
        return files.open_input_stream(path)

    def read(self, number: int) -> bytes:
        def content() -> bytes:
            with self.open(number) as file:
                return file.read()

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
    elif config.cache == "off":
        raise BadInput(
            f"{where} holds {kind} files, out of which single images can't be read fast; leave --data.cache on."
        )
    else:
        for name, split in splits.items():
            next(_items(split, [0], labels=labels and name == "train"))
    return splits


def _list(root: str) -> list[ImageFile]:
    from pyarrow.fs import FileSelector

    files, base = _place(root)
    try:
        found = files.get_file_info(FileSelector(base, recursive=True))
    except OSError as error:
        raise BadInput(f"{shown(root)} can't be listed ({short_message(error)}).") from None
    relative = [(file.path[len(base) :].lstrip("/"), file) for file in found if file.is_file]
    visible = [(path, file) for path, file in relative if not re.search(r"(^|/)[._]", path)]
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


# Reading


def _items(split: Split, numbers: Iterable[int], *, labels: bool = False) -> Iterator[tuple[int, Item]]:
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


def batches(split: Split, numbers: Sequence[int], config: DataConfig, threads: int) -> Iterator[Batch]:
    """The images in some of the files, decoded by threads, in order and a few at a time."""
    size, channels = config.image_size, config.channels

    def some(part: list[tuple[int, Item]]) -> Batch:
        pixels = np.zeros((len(part), channels, size, size), np.uint8)
        problems = [""] * len(part)
        for row, (number, item) in enumerate(part):
            content = split.read(number) if item.content is None else item.content
            try:
                pixels[row] = decode(io.BytesIO(content), size, channels).transpose(2, 0, 1)
            except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                problems[row] = f"{item.name}\t{type(error).__name__}: {one_line(error, 280)}"
        return {
            "image": pixels,
            "label": np.array([item.label for _, item in part], dtype=object),
            "problem": np.array(problems, dtype=object),
            "file": np.array([number for number, _ in part]),
        }

    stream = _items(split, numbers)
    parts = iter(lambda: list(itertools.islice(stream, FILES_AT_ONCE)), [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, of images that are large but within the limit
        yield from ahead(some, parts, 2 * threads, threads)


def here(split: Split, config: DataConfig) -> Iterator[Batch]:
    """All images of a split, decoded in this process."""
    threads = usable_cores()
    if split.kind == "Image":
        threads = max(threads, READERS)
    return batches(split, range(len(split.files)), config, threads)


# The cache


def entry(split: Split, config: DataConfig) -> Path:
    """Where the decoded images of a split are kept."""
    return entry_of(*_keys(split, config))


def _keys(split: Split, config: DataConfig) -> tuple[str, str]:
    from crayon.data.arrays import VERSION

    base, _, query = split.root.partition("?")
    what = (shown(base), query, split.kind, split.files, split.labels, config.image_size, config.channels)
    return f"folder-{split.name}", key_of(VERSION, "remote", *what)


def build(folder: Path, split: Split, config: DataConfig, decoded: Iterable[Batch], emit: Emit) -> None:
    """What the cache keeps of a split: its readable images, labels and classes, and a list of the others."""
    from crayon.data.arrays import save_images, save_set

    labels: list[str] = []
    problems: list[str] = []

    def readable() -> Iterator[np.ndarray]:
        for batch in decoded:
            good = batch["problem"] == ""
            labels.extend(batch["label"][good])
            problems.extend(batch["problem"][~good])
            emit(Progress(f"reading {split}", int(batch["file"][-1]) + 1, len(split.files)))
            yield batch["image"][good]

    size = config.image_size
    save_images(folder, (0, config.channels, size, size), readable())
    (folder / "unreadable.txt").write_text("".join(f"{line}\n" for line in problems), encoding="utf-8")
    numbers, classes = _numbered(labels, split)
    save_set(folder, numbers, classes)


def _numbered(labels: list[str], split: Split) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, and the classes' names: in the order of the alphabet, or of numbers where all are."""
    names = set(labels)
    if names <= {""}:
        return np.zeros(len(labels)), ()
    if "" in names:
        missing = labels.count("")
        raise BadInput(
            f"{missing:,} of {len(labels):,} images in {split} have no label; give all one, or none."
        )
    numeric = all(re.fullmatch(r"-?\d+", name) for name in names)
    classes = tuple(sorted(names, key=int if numeric else None))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in labels]), classes


def load(config: DataConfig, *, labels: bool, emit: Emit) -> dict[str, ImageSet]:
    """The splits there are, decoded the first time and memory-mapped after that."""
    sets: dict[str, ImageSet] = {}
    for name, split in sorted(find(config, labels=labels, emit=emit).items(), key=lambda s: s[0] != "train"):
        images = open_split(split, config, emit)
        classes = sets["train"].classes if sets else images.classes
        if labels and not sets and len(classes) < 2:
            has = f"only the class {classes[0]!r}" if classes else "no labels"
            raise BadInput(f"{split} has {has}; a classifier needs at least two classes.")
        if classes and not images.classes:
            emit(Message(f"{split} has no labels and is left out", warning=True))
            continue
        sets[name] = _relabelled(images, classes, str(split))
    return sets


def open_split(split: Split, config: DataConfig, emit: Emit) -> ImageSet:
    from crayon.data.arrays import open_set

    name = f"folder/{split.name}"
    if config.cache == "off":
        from crayon.data.uncached import uncached

        numbers, classes = _numbered(list(split.labels) or [""] * len(split.files), split)
        read = [partial(_opened, split, number) for number in range(len(split.files))]
        return uncached(name, read, split.name_of, numbers, classes, config, emit)
    folder = cached(
        *_keys(split, config), lambda folder: build(folder, split, config, here(split, config), emit)
    )
    images = open_set(folder, name)
    bad = (folder / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    if bad:
        listed, total = folder / "unreadable.txt", len(bad) + len(images)
        if not len(images) or len(bad) > config.max_unreadable * total:
            raise BadInput(
                f"{len(bad):,} of {total:,} images in {split} can't be read (first: {bad[0].replace(chr(9), ': ')}; "
                f"all: {listed}); mend or remove them, or raise --data.max-unreadable."
            )
        text = f"left out {len(bad):,} unreadable of {total:,} images in {split}, listed in {listed}"
        emit(Message(text, warning=True))
    return images


def _opened(split: Split, number: int) -> BinaryIO:
    return io.BytesIO(split.read(number))


def _relabelled(images: ImageSet, classes: tuple[str, ...], where: str) -> ImageSet:
    """`images` with the training images' labels."""
    import dataclasses

    import torch

    if images.classes == classes:
        return images
    if other := set(images.classes) - set(classes):
        raise BadInput(
            f"{where} has the class {min(other)!r}, of which there is no training image; remove it."
        )
    number = torch.tensor([classes.index(name) for name in images.classes])
    return dataclasses.replace(images, labels=number[images.labels], classes=classes)
