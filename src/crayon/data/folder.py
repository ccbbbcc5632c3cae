"""A folder of images as a source: found, decoded once, kept. Torch is imported only where a set is opened."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crayon.config.settings import DataConfig
from crayon.data.decode import EXTENSIONS, HEIF, Form, decode_all
from crayon.errors import BadInput
from crayon.report.events import Emit, Message, Progress
from crayon.report.words import name_text

if TYPE_CHECKING:
    from crayon.data.images import ImageSet

SYSTEM = frozenset(
    ("@eadir", "#recycle", "@recycle", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found")
)
"""What storage and operating systems put beside the images, thumbnails of them among it; in lower case."""
RAW = frozenset("3fr arw cr2 cr3 dng erf nef nrw orf pef raf raw rw2 rwl srw x3f".split())  # noqa: SIM905
"""Endings of what cameras write before it is an image."""


OURS = ("metrics.jsonl", "sweep.json", "command.json")
"""What lies in a run's folder, a sweep's or a command's: somebody trains where the images are."""


class ImageFile(NamedTuple):
    """An image file: its path relative to the root, its size in bytes and its time of change in nanoseconds."""

    path: str
    size: int
    time: int


class LeftOut:
    """What lay in a folder and was left out, counted by the reason."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        """Files by kind: "HEIC", "RAW", "PDF"."""
        self.hidden: Counter[str] = Counter()
        """What is hidden or of a storage system, by name."""
        self.locked: set[str] = set()
        """What may not be read."""
        self.beside: Counter[str] = Counter()
        """Images in no class, by the folder that they lie in."""
        self.others: list[str] = []
        """Folders in no split, or without an image."""

    def lines(self) -> list[str]:
        """A line for each reason."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common())
        extra = next(filter(None, (needs_extra(f"x.{kind}") for kind in self.kinds)), "")
        kinds += f" ({extra})" if extra else ""
        hidden = ", ".join(
            f"{name_text(n)} ({c:,})" if c > 1 else name_text(n) for n, c in self.hidden.most_common(5)
        )
        if len(self.hidden) > 5:
            hidden += f" and {len(self.hidden) - 5:,} more"
        beside = (
            f"{n:,} image{'s' * (n > 1)} beside the class folders of {name_text(f)}"
            for f, n in self.beside.items()
        )
        return [
            *([f"of other kinds: {kinds}"] if kinds else []),
            *([f"hidden or a storage system's: {hidden}"] if hidden else []),
            *([f"no permission to read: {few(sorted(self.locked))}"] if self.locked else []),
            *beside,
            *([f"folders in no split or without images: {few(self.others)}"] if self.others else []),
        ]


def few(names: Collection[str], most: int = 5) -> str:
    """The first of some names of files or folders, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name_text(name) for name in list(names)[:most]) + more


def is_image(name: str) -> bool:
    """Whether a file is taken, by its name."""
    # Not os.path.splitext, which takes four times as long; a name without a dot has all of it behind the "last one".
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS and name[0] != "." and "." in name


def needs_extra(name: str) -> str:
    """What to install to read a file of this name; empty where it is read, or can't be."""
    missing = f".{name.rpartition('.')[2].lower()}" in HEIF - EXTENSIONS
    return "HEIC is read after pip install 'crayon-ray[heic]'" if missing else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder isn't looked at, by its name."""
    return name[0] == "." or name.lower() in SYSTEM


def kind_of(name: str) -> str:
    """What kind of file one is, by the ending of its name: "JPG", "RAW"."""
    stem, _, ending = name.lower().rpartition(".")
    ending = {"jpeg": "jpg", "jfif": "jpg", "tiff": "tif"}.get(ending, ending)
    return "RAW" if ending in RAW else ending.upper() if stem and len(ending) <= 8 else "without an ending"


def class_name(folder: str) -> str:
    """What the class of a folder is called, however its name is encoded: macOS takes letters and accents apart."""
    return unicodedata.normalize("NFC", name_text(folder))


def _is(kind: Callable[[], bool]) -> bool:
    """A link that leads in a circle is nothing."""
    try:
        return kind()
    except OSError:
        return False


def walk(
    root: str | os.PathLike[str], left_out: LeftOut | None = None, inside: Collection[str] = ()
) -> Iterator[ImageFile]:
    """Every image file under `root`, at any depth, in no particular order. Follows links, each folder once.
    inside: names of folders in `root`: only what lies in these; none = all.
    """
    left, inside = left_out or LeftOut(), frozenset(inside)
    seen: set[tuple[int, int]] = set()
    todo = [("", os.fspath(root))]
    while todo:
        prefix, folder = todo.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            queued, ours = len(todo), False
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if is_image(name) and _is(entry.is_file):
                        if inside and not prefix:
                            left.beside[folder] += 1
                            continue
                        try:
                            status = entry.stat()
                        except PermissionError:  # a folder that may be listed and not entered
                            left.locked.add(entry.path)
                            continue
                        yield ImageFile(prefix + name, status.st_size, status.st_mtime_ns)
                    elif is_hidden(name):
                        left.hidden[name] += 1
                    elif _is(entry.is_dir):
                        if prefix or not inside or name in inside:
                            todo.append((f"{prefix}{name}/", entry.path))
                    elif prefix and name in OURS:
                        ours = True
                    else:
                        left.kinds[kind_of(name) if _is(entry.is_file) else "links to nothing"] += 1
            if ours:
                left.kinds["run of Crayon's"] += 1
                del todo[queued:]  # its pictures
        except PermissionError:
            left.locked.add(folder)


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
        classes: those that the folders in `folder` give the labels of (`class_name`); empty = unlabelled.
    """
    import numpy as np

    from crayon.data.arrays import entry_of, open_set, save_decoded, save_set

    paths = [f.path for f in found]
    form = Form.of(config)

    def labels() -> np.ndarray:
        folders = [p.partition("/")[0] if classes else "" for p in paths]
        number = {name: i for i, name in enumerate(classes)}
        label_of = {name: number[class_name(name)] if classes else 0 for name in set(folders)}
        return np.array([label_of[name] for name in folders])

    if config.cache == "off":
        from crayon.data.uncached import uncached

        files = [f"{folder}/{path}" for path in paths]
        known = [(file.path, file.size) for file in found]
        return uncached(name, files, files.__getitem__, labels(), classes, known, config, emit)

    def told(done: int) -> None:
        emit(Progress(f"decoding {name}", done, len(paths)))

    def build(entry: Path) -> None:
        unreadable: list[tuple[int, str]] = []
        decoded = partial(decode_all, str(folder), paths, unreadable)
        limits = save_decoded(entry, len(paths), form, decoded, told, unreadable)
        unreadable.sort()
        save_unreadable(entry, ((f"{folder}/{paths[i]}", reason) for i, reason in unreadable))
        rows = None
        if unreadable:
            rows = np.setdiff1d(np.arange(len(paths)), [i for i, _ in unreadable])
        save_set(entry, labels(), classes, rows, limits)

    entry = entry_of(name, (str(folder.resolve()), classes, found), form, build)
    images = open_set(entry, name)
    judge(entry, images, folder, config, emit)
    return images


def save_unreadable(entry: Path, problems: Iterable[tuple[str, ...]]) -> None:
    """Record which images of an entry can't be read: (name, reason) of each, on a line, whatever their names. Before it
    is judged: another run may allow more of them."""
    lines = [f"{name_text(name)}\t{name_text(reason)}\n" for name, reason in problems]
    (entry / "unreadable.txt").write_bytes("".join(lines).encode())


def judge(entry: Path, images: ImageSet, where: object, config: DataConfig, emit: Emit) -> None:
    """Tell how many of an entry's images can't be read. Raises BadInput for more than the settings allow."""
    listed, count = entry / "unreadable.txt", images.storage.shape[0]
    bad = count - len(images)
    try:
        first = listed.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        raise BadInput(f"The cache entry {entry} is damaged; delete it, and it is made anew.") from None
    if bad:
        if bad == count or bad > config.max_unreadable * count:
            raise BadInput(
                f"{bad:,} of {count:,} images in {where} can't be read (first: {first.replace(chr(9), ': ')}; "
                f"all: {listed}); mend or remove them, or raise --data.max-unreadable."
            )
        text = f"left out {bad:,} unreadable of {count:,} images in {where}, listed in {listed}"
        emit(Message(text, warning=True))
