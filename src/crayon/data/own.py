"""Sources of one's own: a function that gives the images of a split, read once per node and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from crayon.data.decode import Form, Limits, decode, fitted, from_array
from crayon.errors import BadInput, one_line

LISTED = 2_000
"""Files and folders below `data.root` that are looked at to see whether its images are still the same."""
NOT_IMAGES = "give images as arrays, Pillow images or files"


@dataclass(frozen=True)
class Source:
    """Images of one's own, for `Job(source=...)`."""

    name: str
    """What `--data.source` calls it."""
    load: Callable[[Literal["train", "test"], str | None], Any]
    """(split, `data.root`) to the split's images, or None where there is no such split: a pair (images, labels), or
    anything that has a length and gives (image, label), {"image": ..., "label": ...} or an image alone, by its index,
    as torch's and Hugging Face's datasets do.

    An image is an array (H, W) or (H, W, C), a Pillow image, or the path of a file; it is resized as `data.fit` says,
    and scaled by `data.range` where it has more than 8 bits. A label is a whole number, the index of its class. Without
    classes it is whatever `Batch.labels` shall have: a number, or an array, of the same shape for all images."""
    classes: tuple[str, ...] = ()
    """Their names in label order; none where there are no labels."""
    version: int = 1
    """Raise it when `load` gives other images than before though its own lines are the same and nothing changed under
    `data.root`: those of the old version are in the cache."""
    digest: str = field(default="", init=False)
    """Of the lines of `load`, by which the cache tells sources of one name apart; it travels to workers."""

    def __post_init__(self) -> None:
        try:
            lines = inspect.getsource(self.load)
        except (OSError, TypeError):  # typed in, or no function
            code = getattr(self.load, "__code__", None)
            lines = f"{code.co_code!r} {code.co_consts}" if code else type(self.load).__qualname__
        object.__setattr__(self, "digest", hashlib.sha256(lines.encode()).hexdigest())

    def check(self) -> None:
        """Raise BadInput where there can't be such a source."""
        if not (isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", self.name)):
            raise BadInput(f"A data source can't be called {self.name!r}; use letters, digits, '-' and '_'.")
        if not callable(self.load):
            raise BadInput(
                f"The source {self.name}'s `load` is no function but a {type(self.load).__name__}."
            )


def listing(root: str | None) -> list[tuple[str, int, int]]:
    """Path, size and time of the files under `data.root`, the uppermost first, up to a number that costs a start
    nothing, and of folders that have some: their time tells what appears in them or goes. Runs are left out."""
    found: list[tuple[str, int, int]] = []
    todo = [os.path.expanduser(root)] if root else []
    for path in itertools.islice(todo, LISTED):  # grows meanwhile
        with contextlib.suppress(OSError):
            status, inside = os.stat(path), []
            if stat.S_ISDIR(status.st_mode):
                inside = sorted(os.scandir(path), key=lambda entry: entry.name)
                if any(entry.name == ".lock" for entry in inside):
                    continue
                todo += [entry.path for entry in inside if not entry.name.startswith(".")][:LISTED]
            if not inside or any(entry.is_file() for entry in inside):
                found.append((path, status.st_size, status.st_mtime_ns))
    return found


class Loaded:
    """The images of one split as a sequence.

    Raises BadInput where they are no images, or don't have one label each.
    """

    def __init__(self, source: Source, split: str, given: Any):
        self.what = f"{source.name}/{split}"
        self._pairs = isinstance(given, tuple) and len(given) == 2
        self._given = given
        try:
            self._count = len(given[0]) if self._pairs else len(given)
        except TypeError:
            raise BadInput(
                f"{self.what} has no length; give a pair (images, labels), or something with a length and indices."
            ) from None
        if self._pairs and len(given[1]) != self._count:
            raise BadInput(f"{self.what} has {self._count:,} images and {len(given[1]):,} labels.")
        if not self._count:
            raise BadInput(f"{self.what} has no images.")
        self._classes = source.classes
        self._labels: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._count

    def decoded(
        self, numbers: Sequence[int], form: Form, deep: dict[int, Limits], at_once: int = 256
    ) -> Iterator[np.ndarray]:
        """The images of these numbers, uint8 (n, channels, height, width) at a time; see `decode_all`. Once they were
        all asked for there are `labels`."""
        for start in range(0, len(numbers), at_once):
            yield np.stack([self._image(i, form, deep) for i in numbers[start : start + at_once]])

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), or without classes numbers (N, ...). Raises BadInput where they don't fit together."""
        try:
            found = np.stack([self._labels[i] for i in range(self._count)])
            if found.dtype.kind not in "biuf":
                raise ValueError(f"they are {found.dtype}")
        except ValueError as error:
            raise BadInput(
                f"{self.what} has labels that make no array of numbers ({one_line(error)})."
            ) from None
        return found

    def _image(self, i: int, form: Form, deep: dict[int, Limits]) -> np.ndarray:
        if self._pairs:
            image, label = self._given[0][i], self._given[1][i]
        else:
            item = self._given[i]
            if isinstance(item, Mapping):  # as Hugging Face's
                item = item["image"], item.get("label", 0)
            image, label = item if isinstance(item, Sequence) and not isinstance(item, str) else (item, 0)
        try:
            self._labels[i] = int(label) if self._classes else np.asarray(label)
        except (TypeError, ValueError):
            raise BadInput(
                f"Image {i} of {self.what} has the label {label!r}; give a class's index."
            ) from None
        found: list[Limits] = []
        try:
            if not isinstance(image, (str, os.PathLike, Image.Image)):
                image = from_array(self._array(i, image), form.limits, found)
            read: Any = fitted if isinstance(image, Image.Image) else decode
            pixels = read(image, form, found).transpose(2, 0, 1)
            if found:
                deep[i] = found.pop()
            return pixels
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadInput(f"Image {i} of {self.what} can't be read ({one_line(error)}).") from None

    def _array(self, i: int, image: Any) -> np.ndarray:
        array = np.asarray(image)
        if array.dtype.kind not in "biuf" or array.shape[2:] not in ((), (1,), (3,)) or array.ndim < 2:
            raise BadInput(
                f"Image {i} of {self.what} is {array.dtype} {array.shape}; {NOT_IMAGES}, (H, W) or (H, W, 3)."
            )
        return array
