"""Which folders of images are which split and which class. Looks at names only, so it is quick; torch-free."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol

from crayon.data.decode import EXTENSIONS
from crayon.data.folder import ImageFile, LeftOut, class_name, few, is_hidden, is_image, walk
from crayon.errors import BadInput

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the folders of the splits may be called, in any case."""
WHOLE_TEST = 0.1
"""Share of the images that is set aside as the test split where there are class folders and nothing else."""


class Part(NamedTuple):
    """Where the images of a split lie."""

    folder: PurePath
    inside: tuple[str, ...] = ()
    """The class folders in it; empty = all images, at any depth, without labels."""


class Tree(Protocol):
    """Where the folders lie."""

    def content(self, folder: PurePath) -> tuple[tuple[str, ...], int]:
        """The names of the folders in one that are looked at, sorted, and the number of images that lie beside them."""

    def walk(
        self, folder: PurePath, left_out: LeftOut | None = None, inside: Collection[str] = ()
    ) -> Iterator[ImageFile]:
        """As crayon.data.folder.walk."""


class Layout(NamedTuple):
    """How a folder is read."""

    parts: dict[str, Part]
    """By "train" and, as far as there are folders for them, "val" and "test"."""
    classes: tuple[str, ...]
    left_out: LeftOut
    """What was seen to be of no use."""
    notes: list[str]
    """What a person should know of it."""
    whole: bool = False
    """Whether the class folders lie in the root itself, so that a test split is to be made."""

    def test_share(self, asked: float | None) -> float:
        """The share of the images to set aside as the test split, where the folder has none. asked: by the settings."""
        return WHOLE_TEST * self.whole if asked is None else asked


def layout(root: Path, *, labels: bool | None) -> Layout:
    """How the folder `root`, which is there, is read: `root/train/<class>/`, with `test` and `val` likewise or without
    them; `root/<class>/`; without labels any folders.

    labels: whether they are needed; None = they are taken where there are some. Raises BadInput where the folder isn't
    what the job needs, or can be read in two ways.
    """
    if not os.access(root, os.R_OK | os.X_OK):
        raise BadInput(
            f"{root} may not be read; change its permissions, or set --data.root to another folder."
        )
    return layout_of(root, Disk(), labels=labels)


def layout_of(root: PurePath, tree: Tree, *, labels: bool | None) -> Layout:
    """As `layout`, wherever the folder is."""
    if labels is not False:
        try:
            return _labelled(root, tree)
        except BadInput:
            if labels:
                raise
    return _unlabelled(root, tree)


def split_of(name: str) -> str:
    """Which split a folder is by its name; empty where it is none.

    >>> split_of("Validation"), split_of("cats")
    ('val', '')
    """
    return next((split for split, names in NAMES.items() if name.lower() in names), "")


def _labelled(root: PurePath, tree: Tree) -> Layout:
    left, notes = LeftOut(), []
    folders, images = tree.content(root)
    splits = _splits(root, folders)
    others = [name for name in folders if name not in splits.values()]
    if "train" not in splits:
        return _of_classes(root, tree, splits, others, left)
    if images:
        left.beside[str(root)] += images
    train = root / splits["train"]
    inside, _ = tree.content(train)
    classes = sorted(map(class_name, inside))
    beside = [name for name in others if class_name(name) in classes or tree.content(root / name)[1]]
    if beside and len(splits) == 1:  # another split beside it, and train is no class
        raise BadInput(
            f"{root} has {few(beside)} beside {train.name}: if {train.name} is the training split, move them into it "
            f"or away; if it is a class as they are, move all, {train.name} too, into a new folder {root}/train."
        )
    left.others += others
    _check_classes(train, tree, inside, f"{train}/<class>/")
    parts = {"train": Part(train, inside)}
    for name in ("val", "test"):
        if name not in splits:
            continue
        folder = root / splits[name]
        given, images = tree.content(folder)
        if not given and images:
            notes.append(
                f"{folder.name} has no class folders, so nothing is measured on its {images:,} images"
            )
            left.others.append(folder.name)
            continue
        if sorted(map(class_name, given)) != classes:
            odd = sorted({*classes} ^ {*map(class_name, given)})
            raise BadInput(
                f"The class folders of {train} and {folder} differ ({few(odd)}); give both the same ones."
            )
        _check_images(folder, tree)
        parts[name] = Part(folder, given)
    return Layout(parts, tuple(classes), left, notes)


def _of_classes(
    root: PurePath, tree: Tree, splits: dict[str, str], others: list[str], left: LeftOut
) -> Layout:
    """`root/<class>/`."""
    classes = [name for name in others if next(tree.walk(root / name, left), None) is not None]
    left.kinds.clear()  # they are counted when all is listed
    left.hidden.clear()
    if splits and classes:
        name = next(iter(splits.values()))
        raise BadInput(
            f"{root} has {few(classes)} beside {name}, and no train folder: if {name} is a split, move the class "
            f"folders into a new folder {root}/train; if it is a class as they are, move all into it, {name} too."
        )
    left.others += [name for name in others if name not in classes and str(root / name) not in left.locked]
    _check_classes(root, tree, tuple(classes), f"{root}/<class>/ or {root}/train/<class>/")
    return Layout(
        {"train": Part(root, tuple(classes))}, tuple(sorted(map(class_name, classes))), left, [], True
    )


def _unlabelled(root: PurePath, tree: Tree) -> Layout:
    left, notes = LeftOut(), []
    folders, images = tree.content(root)
    names = [name for name in folders if split_of(name)]
    if not any(split_of(name) == "train" for name in names):
        if names:
            notes.append(f"there is no train folder, so all images are trained on, those in {few(names)} too")
        _check_images(root, tree)
        return Layout({"train": Part(root)}, (), left, notes)
    splits = _splits(root, folders)
    left.others += [name for name in folders if name not in splits.values()]
    if images:
        left.beside[str(root)] += images
    given = {name: tree.content(root / splits[name]) for name in NAMES if name in splits}
    # Classes only where they are everywhere the same: nobody needs them.
    sets = {tuple(sorted(map(class_name, inside))) if not strays else () for inside, strays in given.values()}
    classes = sets.pop() if len(sets) == 1 else ()
    parts = {n: Part(root / splits[n], inside if classes else ()) for n, (inside, _) in given.items()}
    for part in parts.values():
        _check_images(part.folder, tree)
    return Layout(parts, classes, left, notes)


class Disk:
    """Folders of this machine."""

    def content(self, folder: PurePath) -> tuple[tuple[str, ...], int]:
        try:
            _, folders, files = next(os.walk(folder, onerror=_raise))
        except PermissionError:
            return (), 0
        return tuple(sorted(n for n in folders if not is_hidden(n))), sum(map(is_image, files))

    def walk(
        self, folder: PurePath, left_out: LeftOut | None = None, inside: Collection[str] = ()
    ) -> Iterator[ImageFile]:
        return walk(folder, left_out, inside)


def _raise(error: OSError) -> None:
    raise error


def _splits(root: PurePath, folders: tuple[str, ...]) -> dict[str, str]:
    """The names of the folders in `root` that are splits. Raises BadInput where two would be one split."""
    found = {}
    for split in NAMES:
        here = [name for name in folders if split_of(name) == split]
        if len(here) > 1:
            raise BadInput(
                f"{root} has {' and '.join(here)}, each of which may be the {split} split; rename all but one, or move "
                "them away."
            )
        if here:
            found[split] = here[0]
    return found


def _check_classes(folder: PurePath, tree: Tree, inside: tuple[str, ...], wanted: str) -> None:
    if len(inside) < 2:
        has = f"only the class folder {class_name(inside[0])!r}" if inside else "no class folders"
        deeper = tree.content(folder / inside[0])[0] if inside else ()
        hint = (
            f"; if the classes are {few(deeper, 3)}, set --data.root {folder / inside[0]}"
            if len(deeper) > 1
            else ""
        )
        raise BadInput(
            f"{folder} has {has}; a classifier needs at least two, {wanted} with the images of each{hint}."
        )
    name, count = Counter(map(class_name, inside)).most_common(1)[0]
    if count > 1:
        raise BadInput(f"{folder} has {count} folders of the class {name!r}; make one of them.")
    for name in inside:
        _check_images(folder / name, tree)


def _check_images(folder: PurePath, tree: Tree) -> None:
    """Raises BadInput where there is no image that can be read."""
    left = LeftOut()
    if next(tree.walk(folder, left), None) is None:
        has = f" ({'; '.join(lines)})" if (lines := left.lines()) else ""
        raise BadInput(f"{folder} has no images{has}; known are {' '.join(sorted(EXTENSIONS))}.")
