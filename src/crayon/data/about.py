"""What there is to tell of a run's images, as JSON: how many of each class and split, what was left out and why."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from crayon.config.settings import DataConfig
from crayon.data.folder import ImageFile, few, kind_of
from crayon.data.layout import Layout
from crayon.data.splits import LOOKED_AT, captured, connected, copies
from crayon.report.words import name_text

if TYPE_CHECKING:
    from torch import Tensor

    from crayon.data.images import ImageSet, Splits

FEW = 20
"""A class of fewer training images is warned of."""
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def about(splits: Splits, told: dict[str, Any] | None, own: bool) -> dict[str, Any]:
    """What the page and the terminal tell of `splits`. told: what the source adds. own: whether the images are a user's
    own, so that warnings are of use."""
    classes = splits.train.classes
    found: dict[str, Any] = {"source": splits.source, "classes": list(classes), "splits": {}}
    for name, images in zip(SPLITS, (splits.train, splits.val, splits.test), strict=True):
        if images is not None:
            counts = images.labels.bincount(minlength=len(classes)).tolist() if classes else []
            found["splits"][name] = {"images": len(images), "classes": counts}
    found |= {"notes": [], "warnings": []} | (told or {})
    held = {name: share for name, share in found.pop("held", {}).items() if share}
    if texts := [
        _held(name, share, found, "test" in held) for name, share in held.items() if name in found["splits"]
    ]:
        found["notes"].append(f"held out, the same images in every run: {' and '.join(texts)}")
    missing = [SPLITS[name] for name in held if name not in found["splits"]]
    found["warnings"] += [f"too few images to hold some out as {name} split" for name in missing]
    if own:
        found["warnings"] += _warnings(found)
    return found


def _held(name: str, share: float, found: dict[str, Any], of_rest: bool) -> str:
    rest = " of the rest" if of_rest and name == "val" else ""
    return f"{100 * share:.3g} %{rest} ({found['splits'][name]['images']:,}) as {SPLITS[name]} split"


def _warnings(found: dict[str, Any]) -> list[str]:
    counts = {name: split["classes"] for name, split in found["splits"].items()}
    named = list(zip(found["classes"], *counts.values(), strict=True)) if found["classes"] else []
    lines = []
    if poor := [f"{name} {n[0]}" for name, *n in named if n[0] < FEW]:
        lines.append(f"{_classes(len(poor))} fewer than {FEW} training images: {few(poor)}")
    for i, split in enumerate(counts):
        if absent := [name for name, *n in named if not n[i]]:
            lines.append(f"{_classes(len(absent))} no {SPLITS[split]} image: {few(absent)}")
    return lines


def _classes(n: int) -> str:
    return f"{n:,} classes have" if n > 1 else "1 class has"


def of_folder(
    root: PurePath,
    read: Layout,
    files: dict[str, list[ImageFile]],
    sets: dict[str, ImageSet],
    config: DataConfig,
    share: float,
    digests: np.ndarray | None,
    shapes: np.ndarray,
) -> tuple[Tensor | None, dict[str, Any]]:
    """Which training images belong together (`ImageSet.groups`), and what there is to tell of a folder.

    files, sets: what was found in each of the parts of `read`, and what of it could be read. share: of the images that
    is set aside as the test split. digests: see `related`. shapes: int64 (M, 2), width and height of some of them.
    """
    groups, notes = None, []
    if config.groups is not None:
        names = {name: f"{part.folder.name}/" * (part.folder != root) for name, part in read.parts.items()}
        paths = [names[name] + name_text(file.path) for name, found in files.items() for file in found]
        groups = captured(config.groups, paths)
        alone = np.count_nonzero(groups == None)  # noqa: E711
        more = f"; {alone:,} images are in none" if alone else ""
        notes.append(f"{len(set(groups) - {None}):,} groups by --data.groups{more}")
    together, told = related(sets, digests, groups)
    unreadable = sum(images.storage.shape[0] - len(images) for images in sets.values())
    kinds = Counter(kind_of(file.path) for found in files.values() for file in found)
    return together, {
        "root": name_text(str(root)),
        "kinds": dict(kinds.most_common()),
        "sizes": _sizes(shapes, sum(map(len, files.values()))),
        "left_out": [*([f"unreadable: {unreadable:,}"] if unreadable else []), *read.left_out.lines()],
        "held": {
            name: part
            for name, part in (("test", share), ("val", config.val_fraction))
            if name not in read.parts
        },
        "notes": [*_said(root, read, share), *told["notes"], *notes],
        "warnings": told["warnings"],
    }


def related(
    sets: dict[str, ImageSet], digests: np.ndarray | None, groups: np.ndarray | None = None
) -> tuple[Tensor | None, dict[str, list[str]]]:
    """Which training images belong together (`ImageSet.groups`), and notes and warnings about what does.

    Args:
        digests, groups: of all images in the storage of `sets`, in order: the same for copies, or for what is of one
            group. 0 and None are nobody's. None = unknown.
    """
    import torch

    keys, notes, warnings = [], [], []
    if digests is not None and (doubles := copies(digests)):
        what = "1 image is a copy of another" if doubles == 1 else f"{doubles:,} images are copies of others"
        notes.append(f"{what}, which never are on two sides of what is held out")
    if digests is None:
        notes.append("with --data.cache off copies are looked for among files of this machine alone")
    for what, values in (
        ("copies of training images", digests),
        ("of the same group as a training image", groups),
    ):
        if values is None:
            continue
        by_split = _by_split(values, sets)
        keys.append(by_split["train"])
        train = set(keys[-1]) - {0, None}
        for name, part in by_split.items():
            if name != "train" and (shared := sum(key in train for key in part)):
                warnings.append(f"{shared:,} of {len(part):,} {SPLITS[name]} images are {what}")
    found = connected(*keys) if keys else None
    return None if found is None else torch.from_numpy(found), {"notes": notes, "warnings": warnings}


def _by_split(values: np.ndarray, sets: dict[str, ImageSet]) -> dict[str, list[Any]]:
    """`values` of all images as those of each split's that could be read, which are rows of what was found."""
    ends = np.cumsum([images.storage.shape[0] for images in sets.values()])[:-1]
    parts = zip(sets.items(), np.split(values, ends), strict=True)
    return {
        name: (v if images.rows is None else v[images.rows.numpy()]).tolist() for (name, images), v in parts
    }


def _said(root: PurePath, read: Layout, share: float) -> list[str]:
    """How the folder was read."""
    parts = read.parts
    other = [n for n, part in parts.items() if part.folder not in (root, root / n)]
    renamed = ", ".join(f"{name_text(parts[n].folder.name)} is the {SPLITS[n]} split" for n in other)
    notes = [*([renamed] if renamed else []), *read.notes]
    if not share and "test" not in parts:
        notes.append(
            "there is no test split, so no test metric; --data.test-fraction 0.1 sets some images aside"
        )
    return notes


def _sizes(shapes: np.ndarray, of: int) -> dict[str, Any]:
    """Of the images whose width and height were looked up, by area; `of` how many there are."""
    found = np.unique(shapes, axis=0).tolist()
    found.sort(key=math.prod)
    ends = {"smallest": found[0], "largest": found[-1]} if found else {}
    some = {"looked_at": LOOKED_AT} if of > LOOKED_AT else {}
    return {"different": len(found), **some, **ends} if found else {}
