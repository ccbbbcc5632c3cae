"""A set in an object store, or in shards, as a source: decoded once, kept. Torch is imported where a set is opened."""

from __future__ import annotations

import io
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from crayon.config.settings import DataConfig
from crayon.data.ahead import ahead
from crayon.data.cache import cached, key_of
from crayon.data.decode import FILES_AT_ONCE, READERS, Form, decode_alone
from crayon.data.folder import judge, save_unreadable
from crayon.data.remote import Found, Split, find, images_in
from crayon.data.shards import Item
from crayon.errors import BadInput, with_type
from crayon.report.events import Emit, Progress
from crayon.report.words import name_text
from crayon.system.host import usable_cores
from crayon.system.objectstore import shown

if TYPE_CHECKING:
    from crayon.data.images import ImageSet

Batch = dict[str, np.ndarray]
"""Decoded images: "image", uint8 (n, C, H, W), black where one can't be read; "label"; "deep", whether one has more
than 8 bits; "problem", name and reason where one can't be read, else empty; "file", the number of the file that each is
from."""

Read = Callable[[int], Iterable[Batch]]
"""All batches of a split from the file of that number on."""


def batches(split: Split, numbers: Sequence[int], config: DataConfig, threads: int) -> Iterator[Batch]:
    """The images in some of the files, decoded by threads, in order and a few at a time."""
    form = Form.of(config)

    def some(part: list[tuple[int, Item]]) -> Batch:
        pixels, deep = np.zeros((len(part), *form.shape), np.uint8), np.zeros(len(part), bool)
        problems = [""] * len(part)
        for row, (number, item) in enumerate(part):
            content = split.read(number) if item.content is None else item.content
            try:
                image, deep[row] = decode_alone(io.BytesIO(content), form, name_text(item.name))
                pixels[row] = image.transpose(2, 0, 1)
            except BadInput:
                raise
            except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                reason = with_type(error, 280)
                problems[row] = f"{name_text(item.name)}\t{name_text(reason)}"
        return {
            "image": pixels,
            "label": np.array([item.label for _, item in part], dtype=object),
            "deep": deep,
            "problem": np.array(problems, dtype=object),
            "file": np.array([number for number, _ in part]),
        }

    stream = images_in(split, numbers)
    parts = iter(lambda: list(itertools.islice(stream, FILES_AT_ONCE)), [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, of images that are large but within the limit
        yield from ahead(some, parts, 2 * threads, threads)


def here(split: Split, config: DataConfig, first: int) -> Iterator[Batch]:
    """The images of a split from its file number `first` on, decoded in this process."""
    threads = usable_cores()
    if split.kind == "Image":
        threads = max(threads, READERS)
    return batches(split, range(first, len(split.files)), config, threads)


# The cache


def keys(split: Split, config: DataConfig) -> tuple[str, str]:
    """What the cache's entry of a split is called, and by what it is told from others."""
    from crayon.data.arrays import named

    return named(f"folder/{split.name}", _what(split), Form.of(config))


def entry(split: Split, config: DataConfig, read: Read, emit: Emit) -> Path:
    """The cache's entry of a split, made of what `read` gives where it isn't there."""
    from crayon.data.arrays import entry_of

    build = partial(_build, split=split, config=config, read=read, emit=emit)
    return entry_of(f"folder/{split.name}", _what(split), Form.of(config), build)


def _what(split: Split) -> tuple[Any, ...]:
    base, _, query = split.root.partition("?")
    return "remote", shown(base), query, split.kind, split.files, split.labels


def _build(folder: Path, split: Split, config: DataConfig, read: Read, emit: Emit) -> None:
    """What the cache keeps of a split: its images, labels and classes, and which can't be read."""
    from crayon.data.arrays import Partial, save_images, save_set

    form = Form.of(config)
    begun = Partial(folder, form)
    before = begun.state
    labels: list[str] = before.get("labels", [])
    problems: list[str] = before.get("problems", [])
    deep = before.get("deep", False)
    file, of_file = before.get("file", 0), before.get("of_file", 0)  # the newest, and how many images it gave

    def pixels() -> Iterator[np.ndarray]:
        nonlocal deep, file, of_file
        known = of_file
        for whole in read(file):
            batch = {name: values[known:] for name, values in whole.items()}
            known = max(0, known - len(whole["file"]))
            if not len(batch["file"]):
                continue
            labels.extend(batch["label"])
            problems.extend(batch["problem"])
            deep |= bool(batch["deep"].any())
            before, file = file, int(batch["file"][-1])
            of_file = of_file * (file == before) + int((batch["file"] == file).sum())
            emit(Progress(f"reading {split}", file, len(split.files)))
            yield batch["image"]
        emit(Progress(f"reading {split}", len(split.files), len(split.files)))

    def state(done: int) -> dict[str, Any]:
        return {"labels": labels, "problems": problems, "deep": deep, "file": file, "of_file": of_file}

    save_images(folder, (0, *form.shape), pixels(), partial=begun, state=state)
    save_unreadable(folder, (tuple(problem.split("\t")) for problem in problems if problem))
    numbers, classes = _numbered(labels, split)
    rows = np.flatnonzero([not problem for problem in problems]) if any(problems) else None
    save_set(folder, numbers, classes, rows, form.limits if deep else None)


def _numbered(labels: list[str], split: Split) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, and the classes' names: in the order of the alphabet, or of numbers where all are."""
    names = {*labels, *split.labels}
    if names <= {""}:
        return np.zeros(len(labels)), ()
    if "" in names:
        missing = labels.count("")
        raise BadInput(
            f"{missing:,} of {len(labels):,} images in {split} have no label; give all one, or none."
        )
    numeric = not split.labels and all(re.fullmatch(r"-?\d+", name) for name in names)  # folders have names
    classes = tuple(sorted(names, key=int if numeric else None))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in labels]), classes


def load(config: DataConfig, *, labels: bool | None, emit: Emit) -> tuple[Found, dict[str, ImageSet]]:
    """What there is, and its splits, decoded the first time and memory-mapped after that."""
    found = find(config, labels=labels)
    sets: dict[str, ImageSet] = {}
    for name in sorted(found.splits, key="train".__ne__):
        split = found.splits[name]
        images = open_split(split, config, emit)
        classes = sets["train"].classes if sets else images.classes
        if labels and not sets and len(classes) < 2:
            has = f"only the class {classes[0]!r}" if classes else "no labels"
            raise BadInput(f"{split} has {has}; a classifier needs at least two classes.")
        if classes and not images.classes:
            found.layout.notes.append(f"{name} has no labels, so nothing is measured on its images")
            del found.layout.parts[name], found.splits[name]
            continue
        try:
            sets[name] = images.relabelled(classes)
        except ValueError as error:
            raise BadInput(
                f"{split} has the class {error.args[0]!r}, of which there is no training image; remove it."
            ) from None
    return found, sets


def open_split(split: Split, config: DataConfig, emit: Emit) -> ImageSet:
    """Raises BadInput where too many of its images can't be read."""
    from crayon.data.arrays import open_set

    name = f"folder/{split.name}"
    if config.cache == "off":
        from crayon.data.uncached import uncached

        places, labels = _index(split, emit)
        numbers, classes = _numbered(labels, split)

        def name_of(image: int) -> str:
            number, start, _ = places[image]
            return f"{split.name_of(number)}{f' at byte {start}' if start is not None else ''}"

        opened = [partial(_opened, split, *place) for place in places]
        sizes = [
            (split.files[number].path, split.files[number].size if start is None else (start, size))
            for number, start, size in places
        ]
        return uncached(name, opened, name_of, numbers, classes, sizes, config, emit)
    folder = entry(split, config, partial(here, split, config), emit)
    images = open_set(folder, name)
    judge(folder, images, split, config, emit)
    return images


Place = tuple[int, "int | None", "int | None"]
"""Of an image: the number of its file, where in that it begins, and how many bytes it has; None for all of the file."""


def _index(split: Split, emit: Emit) -> tuple[list[Place], list[str]]:
    """Where each image is, and its label. Shards are read through for that, once per node."""
    if split.kind == "Image":
        return [(i, None, None) for i in range(len(split.files))], list(split.labels) or [""] * len(
            split.files
        )

    def build(folder: Path) -> None:
        found = []
        for number, item in images_in(split, range(len(split.files))):
            emit(Progress(f"looking through {split}", number, len(split.files)))
            found.append((number, item.start, len(item.content or b""), item.label))
        emit(Progress(f"looking through {split}", len(split.files), len(split.files)))
        (folder / "index.json").write_text(json.dumps(found))

    base, _, query = split.root.partition("?")
    folder = cached(f"index-{split.name}", key_of("index", shown(base), query, split.files), build)
    found = json.loads((folder / "index.json").read_text())
    return [(number, start, size) for number, start, size, _ in found], [label for *_, label in found]


def _opened(split: Split, number: int, start: int | None, size: int | None) -> BinaryIO:
    return io.BytesIO(split.read(number, start, size))
