"""What a set of images is known by, wherever it lies: how many there are, of which classes, and a digest of them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crayon.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from crayon.data.images import ImageSet

SHOWN = 12
"""How many classes a sentence names."""
PART = 1024
"""Images that are read at a time."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def digest_of(parts: Iterable[Tensor | np.ndarray]) -> str:
    """CRC-32 of arrays' bytes, one after the other. It tells sets apart that differ by accident, and costs a start
    nothing."""
    import numpy as np

    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data, value)
    return f"{value:08x}"


def hash_of(image: np.ndarray) -> int:
    """64 bits, by which copies are found; never 0."""
    return int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little", signed=True) or 1


def digest_of_names(known: Any) -> str:
    """That of images whose pixels aren't there: of plain JSON values that tell them from others, names and sizes."""
    return f"{zlib.crc32(json.dumps(known).encode()):08x}"


def fingerprint(train: ImageSet, val: ImageSet | None, test: ImageSet | None) -> dict[str, Any]:
    """By split that the source has, plain JSON values: `images`, their number, `per_class`, how many of each class
    there are, and `digest` of pixels (of files where
    pixels aren't kept), labels and their order. Before anything is held out: settings say what is."""
    given = {"train": train, "val": val, "test": test}
    return {name: _split(images) for name, images in given.items() if images is not None}


def _split(images: ImageSet) -> dict[str, Any]:
    import torch

    pixels = images.digest
    if not pixels:
        assert isinstance(images.storage, torch.Tensor)
        pixels = digest_of(images.storage.split(PART))
    rows = "" if images.rows is None else digest_of([images.rows])
    labels = digest_of([images.labels]) if images.labels.numel() else ""
    whole = json.dumps([images.shape, pixels, rows, labels]).encode()
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist() if images.classes else []
    return {"images": len(images), "per_class": counts, "digest": hashlib.sha256(whole).hexdigest()[:16]}


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], classes: Sequence[str] = (), others: Sequence[str] = ()
) -> str:
    """What of a fingerprint differs from an earlier one, as part of a sentence that ends in "than when ..."; empty
    where nothing does.

    classes, others: their names, now and before.

    >>> some = {"images": 80, "per_class": [40, 40], "digest": "a"}
    >>> fewer = {"images": 70, "per_class": [33, 37], "digest": "b"}
    >>> differences({"train": some}, {"train": fewer}, ("cat", "dog"), ("cat", "dog"))
    '10 training images fewer (cat 40, now 33; dog 40, now 37)'
    """
    words = []
    for name, kind in SPLITS.items():
        a, b = (found.get(name, {"images": 0, "per_class": [], "digest": ""}) for found in (before, now))
        if a["digest"] == b["digest"]:
            continue
        more = b["images"] - a["images"]
        images = f"{kind} image{'' if abs(more) == 1 else 's'}"
        text = f"{abs(more):,} {images} {'more' if more > 0 else 'fewer'}" if more else f"other {images}"
        was, is_now = _counted(a, others), _counted(b, classes)
        told = [
            f"{c} {was.get(c, 0):,}, now {is_now.get(c, 0):,}"
            for c in was | is_now
            if was.get(c) != is_now.get(c)
        ]
        words.append(f"{text} ({_some(told, '; ')})" if told and was and is_now else text)
    return " and ".join(words)


def class_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """Which classes differ; empty where they are the same ones in the same order, since a class is its number in it.

    >>> class_changes(["cat", "dog"], ["aardvark", "dog"]), class_changes(["cat", "dog"], ["dog", "cat"])
    ('gone: cat; new: aardvark', 'in another order')
    """
    if tuple(before) == tuple(now):
        return ""
    gone, new = ([c for c in a if c not in b] for a, b in ((before, now), (now, before)))
    parts = [f"{word}: {_some(found)}" for word, found in (("gone", gone), ("new", new)) if found]
    return "; ".join(parts) or "in another order"


def check_classes(before: Sequence[str], now: Sequence[str], what: str) -> None:
    """Raise BadInput unless what was trained with classes `before` can go on with `now`."""
    if changes := class_changes(before, now):
        raise BadInput(
            f"{what} was trained with classes {_some(before) or 'none'}; now there are {_some(now) or 'none'} "
            f"({changes}). Give it the same classes to go on, or choose another --name."
        )


def _counted(split: Mapping[str, Any], classes: Sequence[str]) -> dict[str, int]:
    return dict(zip(classes, split["per_class"], strict=False))


def _some(words: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return between.join(words[:SHOWN]) + more
