"""A folder of images as a source: found, decoded once, kept. Torch is imported only where a set is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crayon.config.settings import DataConfig
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


def class_folders(split: Path) -> tuple[str, ...]:
    """Names of the folders in `split`, sorted. Empty if there are none, or if images lie beside them."""
    _, folders, files = next(os.walk(split))
    if any(map(is_image, files)):
        return ()
    return tuple(sorted(name for name in folders if not name.startswith(".")))


def layout(root: Path, *, labels: bool) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Where the splits lie in a folder that is there, by "train" and (if there is one) "test", and the classes' names.

    Raises BadInput when the folder isn't what the job needs. Looks at folder names only, so it is quick.
    """
    splits = {name: root / name for name in ("train", "test") if (root / name).is_dir()}
    classes: tuple[str, ...] = ()
    if "train" in splits:
        train = splits["train"]
        classes = class_folders(train)
        if labels and len(classes) < 2:
            has = f"only the class folder {classes[0]!r}" if classes else "no class folders"
            raise BadInput(f"{train} has {has}; a classifier needs at least two, one folder per class.")
        if classes and "test" in splits and (others := class_folders(splits["test"])) != classes:
            odd = sorted(set(classes) ^ set(others))
            raise BadInput(
                f"The class folders of {train} and {splits['test']} differ "
                f"({', '.join(odd[:5]) or 'images beside them'}); give both the same ones."
            )
    elif labels:
        raise BadInput(
            f"{root} has no train folder; a classifier needs {root}/train/<class>/ with the images of each "
            f"class, and {root}/test/<class>/ likewise."
        )
    else:
        splits = {"train": root}
    for folder in [*(splits["train"] / name for name in classes if labels), *splits.values()]:
        if next(walk(folder), None) is None:
            raise BadInput(f"{folder} has no images (known: {' '.join(sorted(EXTENSIONS))}).")
    return splits, classes


def open_folder(
    folder: Path,
    name: str,
    classes: tuple[str, ...],
    found: list[ImageFile],
    config: DataConfig,
    emit: Emit,
) -> ImageSet:
    """The images `found` in `folder`, decoded and resized the first time and memory-mapped after that.

    The cache is keyed by the folder and by path, size and time of every file. Files that can't be read are left out
    and listed in the entry's unreadable.txt.

    Args:
        classes: names of the folders in `folder` that give the labels; empty = unlabelled.
    """
    import numpy as np

    from crayon.data.arrays import VERSION, open_set, save_images, save_set

    paths = [f.path for f in found]
    size, channels = config.image_size, config.channels
    label_of = {c: i for i, c in enumerate(classes)}
    labels = np.array([label_of[p.partition("/")[0]] if classes else 0 for p in paths])
    if config.cache == "off":
        from crayon.data.uncached import uncached

        files = [f"{folder}/{path}" for path in paths]
        return uncached(name, files, lambda i: files[i], labels, classes, config, emit)

    def told(done: int) -> None:
        emit(Progress(f"decoding {name}", done, len(paths)))

    def build(entry: Path) -> None:
        unreadable: list[tuple[int, str]] = []
        shape = (len(paths), channels, size, size)
        told(0)
        save_images(entry, shape, decode_all(str(folder), paths, size, channels, unreadable), told)
        unreadable.sort()
        # Recorded before it is judged: another run may allow more unreadable files.
        lines = [f"{folder / paths[i]}\t{reason}\n" for i, reason in unreadable]
        (entry / "unreadable.txt").write_text("".join(lines), encoding="utf-8", errors="replace")
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
        listed = entry / "unreadable.txt"
        if len(bad) == len(paths) or len(bad) > config.max_unreadable * len(paths):
            first = bad[0].replace("\t", ": ")
            raise BadInput(
                f"{len(bad):,} of {len(paths):,} images in {folder} can't be read (first: {first}; all: {listed}); "
                "mend or remove them, or raise --data.max-unreadable."
            )
        text = f"left out {len(bad):,} unreadable of {len(paths):,} images in {folder}, listed in {listed}"
        emit(Message(text, warning=True))
    return open_set(entry, name)
