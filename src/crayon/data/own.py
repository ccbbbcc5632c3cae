"""Sources of one's own: a function that gives the images of a split, read once per node and kept in the cache."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from crayon.errors import BadInput, one_line

NOT_IMAGES = "give images as uint8 arrays, Pillow images or files"


@dataclass(frozen=True)
class Source:
    """Images of one's own, for `Job(source=...)`."""

    name: str
    """What `--data.source` calls it."""
    load: Callable[[Literal["train", "test"], str | None], Any]
    """(split, `data.root`) to the split's images, or None where there is no such split: a pair (images, labels), or
    anything that has a length and gives (image, label), {"image": ..., "label": ...} or an image alone, by its index,
    as torch's and Hugging Face's datasets do.

    An image is a uint8 array (H, W) or (H, W, C), a Pillow image, or the path of a file; it is cut to its central
    square and resized. A label is a whole number, the index of its class. Without classes it is whatever `Batch.labels`
    shall have: a number, or an array, of the same shape for all images."""
    classes: tuple[str, ...] = ()
    """Their names in label order; none where there are no labels."""
    version: int = 1
    """Raise it when `load` gives other images than before though its own lines are the same: those of the old version
    are in the cache."""
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
        self._labels: list[Any] = []

    def __len__(self) -> int:
        return self._count

    def decoded(self, size: int, channels: int, at_once: int = 256) -> Iterator[np.ndarray]:
        """All images in order, uint8 (n, channels, size, size) at a time. After that there are `labels`."""
        for start in range(0, self._count, at_once):
            part = range(start, min(start + at_once, self._count))
            yield np.stack([self._image(i, size, channels) for i in part])

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), or without classes numbers (N, ...). Raises BadInput where they don't fit together."""
        try:
            found = np.stack(self._labels)
            if found.dtype.kind not in "biuf":
                raise ValueError(f"they are {found.dtype}")
        except ValueError as error:
            raise BadInput(
                f"{self.what} has labels that make no array of numbers ({one_line(error)})."
            ) from None
        return found

    def _image(self, i: int, size: int, channels: int) -> np.ndarray:
        from crayon.data.decode import crop_and_resize, decode

        if self._pairs:
            image, label = self._given[0][i], self._given[1][i]
        else:
            item = self._given[i]
            if isinstance(item, Mapping):  # as Hugging Face's
                item = item["image"], item.get("label", 0)
            image, label = item if isinstance(item, Sequence) and not isinstance(item, str) else (item, 0)
        try:
            self._labels.append(int(label) if self._classes else np.asarray(label))
        except (TypeError, ValueError):
            raise BadInput(
                f"Image {i} of {self.what} has the label {label!r}; give a class's index."
            ) from None
        if not isinstance(image, (str, os.PathLike, Image.Image)):
            image = Image.fromarray(self._array(i, image))
        try:
            read: Any = crop_and_resize if isinstance(image, Image.Image) else decode
            return read(image, size, channels).transpose(2, 0, 1)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadInput(f"Image {i} of {self.what} can't be read ({one_line(error)}).") from None

    def _array(self, i: int, image: Any) -> np.ndarray:
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
            raise BadInput(
                f"Image {i} of {self.what} is {array.dtype} {array.shape}; {NOT_IMAGES}, (H, W) or (H, W, 3)."
            )
        return array
