"""A folder of images as a source: found, decoded once, kept. Torch is imported only where a set is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crayon.data.cache import cached, key_of
from crayon.data.decode import EXTENSIONS, decode_all
from crayon.errors import BadInput
from crayon.report.events import Emit, Message, Progress

if TYPE_CHECKING:
    from crayon.data.images import ImageSet


class ImageFile(NamedTuple):
    """An image file: its path relative to the root, its size in bytes and its time of change in nanoseconds."""

    path: str
    size: int
    time: int


def is_image(name: str) -> bool:
    """Whether a file is taken, by its name."""
    # Not os.path.splitext, which takes four times as long; a name without a dot has all of it behind the "last one".
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS and name[0] != "." and "." in name


def _is(kind: Callable[[], bool]) -> bool:
    """A link that leads in a circle is nothing."""
    try:
        return kind()
    except OSError:
        return False


def walk(root: str | os.PathLike[str]) -> Iterator[ImageFile]:
    """Every image file under `root`, at any depth, in no particular order. Follows links, each folder once."""
    seen: set[tuple[int, int]] = set()
    todo = [("", os.fspath(root))]
    while todo:
        prefix, folder = todo.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image(entry.name) and _is(entry.is_file):
                    status = entry.stat()
                    yield ImageFile(prefix + entry.name, status.st_size, status.st_mtime_ns)
                elif not entry.name.startswith(".") and _is(entry.is_dir):
                    todo.append((f"{prefix}{entry.name}/", entry.path))


def has_image(root: Path) -> bool:
    """Whether there is an image file anywhere under `root`; stops at the first."""
    return next(walk(root), None) is not None


def class_folders(split: Path) -> tuple[str, ...]:
    """Names of the folders in `split`, sorted. Empty if there are none, or if images lie beside them."""
    names = []
    with os.scandir(split) as entries:
        for entry in entries:
            if is_image(entry.name) and _is(entry.is_file):
                return ()
            if not entry.name.startswith(".") and _is(entry.is_dir):
                names.append(entry.name)
    return tuple(sorted(names))


def layout(root: Path, *, labels: bool) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Where the splits lie, by "train" and (if there is one) "test", and the names of the classes.

    Raises BadInput when the folder isn't what the job needs. Looks at folder names only, so it is quick.
    """
    if not root.exists():
        raise BadInput(f"There is no folder {root}; set --data.root to the folder of your images.")
    if not root.is_dir():
        raise BadInput(f"{root} is a file; set --data.root to the folder of your images.")
    train, test = root / "train", root / "test"
    classes: tuple[str, ...] = ()
    if not train.is_dir():
        if labels:
            raise BadInput(
                f"{root} has no train folder; a classifier needs {root}/train/<class>/ with the images of each "
                f"class, and {root}/test/<class>/ likewise."
            )
        splits = {"train": root}
    else:
        splits = {"train": train, "test": test} if test.is_dir() else {"train": train}
        classes = class_folders(train)
        if labels and len(classes) < 2:
            has = f"only the class folder {classes[0]!r}" if classes else "no class folders"
            raise BadInput(f"{train} has {has}; a classifier needs at least two, one folder per class.")
        if classes and "test" in splits and (others := class_folders(test)) != classes:
            odd = sorted(set(classes) ^ set(others))
            raise BadInput(
                f"The class folders of {train} and {test} differ ({', '.join(odd[:5]) or 'images beside them'}); "
                "give both the same ones."
            )
        for name in classes if labels else ():
            if not has_image(train / name):
                raise BadInput(f"{train / name} has no images; add some or remove the folder.")
    for folder in splits.values():
        if not has_image(folder):
            raise BadInput(f"{folder} has no images (known: {' '.join(sorted(EXTENSIONS))}).")
    return splits, classes


def open_folder(
    folder: Path,
    name: str,
    classes: tuple[str, ...],
    *,
    size: int,
    channels: int,
    max_unreadable: float,
    emit: Emit,
    found: list[ImageFile] | None = None,
) -> ImageSet:
    """The images under `folder`, decoded and resized the first time and memory-mapped after that.

    The cache is keyed by the folder and by path, size and time of every file. Files that can't be read are left out
    and listed in the entry's unreadable.txt.

    Args:
        classes: names of the folders in `folder` that give the labels; empty = unlabelled.
        found: the files to take. None = all images under `folder`.
    """
    import numpy as np

    from crayon.data.arrays import VERSION, open_set, save_set

    found = sorted(walk(folder)) if found is None else found
    paths = [f.path for f in found]

    def build(entry: Path) -> None:
        title = f"decoding {name}"
        emit(Progress(title, 0, len(paths)))
        unreadable = decode_all(
            folder,
            paths,
            entry,
            size=size,
            channels=channels,
            progress=lambda n: emit(Progress(title, n, len(paths))),
        )
        # Recorded before it is judged: another run may allow more unreadable files.
        lines = [f"{folder / paths[i]}\t{reason}\n" for i, reason in unreadable]
        (entry / "unreadable.txt").write_text("".join(lines), encoding="utf-8", errors="replace")
        label_of = {c: i for i, c in enumerate(classes)}
        labels = np.array([label_of[p.partition("/")[0]] if classes else 0 for p in paths])
        rows = None
        if unreadable:
            rows = np.setdiff1d(np.arange(len(paths)), [i for i, _ in unreadable])
        save_set(entry, labels, classes, rows)

    key = key_of(VERSION, str(folder.resolve()), size, channels, classes, found)
    entry = cached(name.replace("/", "-"), key, build)
    try:
        bad = (entry / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        raise BadInput(f"The cache entry {entry} is damaged; delete it, and it is made anew.") from None
    if bad:
        first = bad[0].replace("\t", ": ")
        if len(bad) == len(paths) or len(bad) > max_unreadable * len(paths):
            raise BadInput(
                f"{len(bad):,} of {len(paths):,} images in {folder} can't be read (first: {first}; all: "
                f"{entry / 'unreadable.txt'}); mend or remove them, or raise --data.max-unreadable."
            )
        text = f"left out {len(bad):,} unreadable of {len(paths):,} images in {folder}, listed in "
        emit(Message(f"{text}{entry / 'unreadable.txt'}", warning=True))
    return open_set(entry, name)
