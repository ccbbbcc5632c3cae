"""Images at rest.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from crayon.data.types import DataInfo
from crayon.errors import RunFailed
from crayon.rng import Randomness

MEAN_IMAGES = 10_000
"""How many evenly spaced images the mean is taken from."""
PART_BYTES = 8 * 2**20
"""How many pixels are read at a time where more are needed: a set may be larger than the memory."""


class Storage(Protocol):
    """What a tensor of images has, or what reads them when they are asked for."""

    @property
    def shape(self) -> torch.Size:
        """(M, C, H, W)"""

    def index_select(self, dim: int, index: Tensor, /) -> Tensor:
        """Those at `index`, int64 (B,), along dimension 0: uint8 (B, C, H, W)."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with labels, possibly a view of some rows of a larger (memory-mapped) tensor. Immutable.

    >>> odd = ImageSet("x", torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.arange(4)).select([1, 3])
    >>> odd.gather(torch.tensor([1])).item(), odd.labels.tolist(), len(odd)
    (3, [1, 3], 2)
    """

    name: str
    """What it is called in messages, e.g. "mnist/train"."""
    storage: Storage
    """uint8 (M, C, H, W). May be backed by a memory map; it is never copied or written."""
    labels: Tensor
    """int64 (N,). Zeros where there are none. Without classes, whatever else: int64 or float32 (N, ...)."""
    classes: tuple[str, ...] = ()
    """Class names by label; empty where there are no labels."""
    rows: Tensor | None = None
    """int64 (N,), the rows of `storage` this set consists of, in order. None = all of them, and then N = M."""
    file: Path | None = None
    """What `storage` is mapped from, where that is all that follows a header."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        n, (c, h, w) = len(self), self.shape
        return f"ImageSet({self.name!r}, {n:,} images {c}x{h}x{w}, {len(self.classes)} classes)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(self.storage.shape[1:])  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return len(self) * math.prod(self.shape)

    def gather(self, indices: Tensor) -> Tensor:
        """The images at `indices`, int64 (B,) on the CPU. Returns uint8 (B, C, H, W)."""
        return self.storage.index_select(0, self._rows(indices))

    def _rows(self, indices: Tensor) -> Tensor:
        return indices if self.rows is None else self.rows[indices]

    def read(self, indices: Tensor) -> Tensor:
        """As `gather`, for a set larger than the memory: the disk is asked for all the images at once. A map reads some
        pages of one image after the other, at a tenth of the speed (benchmarks/LOG.md)."""
        if self.file is None or not hasattr(os, "posix_fadvise"):
            return self.gather(indices)
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        size = math.prod(self.shape)
        with self.file.open("rb") as file:
            number = file.fileno()
            header = os.fstat(number).st_size - self.storage.shape[0] * size
            places = [header + row * size for row in self._rows(indices).tolist()]
            for place in places:
                os.posix_fadvise(number, place, size, os.POSIX_FADV_WILLNEED)
            for image, place in zip(images.numpy().reshape(-1, size), places, strict=True):
                if os.preadv(number, [image.data], place) != size:
                    raise RunFailed(
                        f"{self.file} has become shorter; delete its folder, and it is made anew."
                    )
        return images

    def select(self, indices: Tensor | list[int]) -> ImageSet:
        """A view of some of the images. Copies no pixels."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return dataclasses.replace(self, labels=self.labels[indices], rows=self._rows(indices))

    def parts(self, indices: Tensor | None = None) -> Iterator[Tensor]:
        """The images at `indices`, all by default, in order and a few MiB at a time: uint8 (B, C, H, W)."""
        indices = torch.arange(len(self)) if indices is None else indices
        for part in indices.split(max(1, PART_BYTES // math.prod(self.shape))):
            yield self.gather(part)

    def mean(self) -> tuple[float, ...]:
        """Mean per channel of the images in [0, 1], from at most 10,000 of them."""
        n = min(len(self), MEAN_IMAGES)
        channels, height, width = self.shape
        total = torch.zeros(channels, dtype=torch.int64)
        for part in self.parts(torch.arange(n) * len(self) // n):
            total += part.sum((0, 2, 3), dtype=torch.int64)
        return tuple((total.double() / (255 * n * height * width)).tolist())


class Splits(NamedTuple):
    """What a run trains on, selects by and reports on."""

    train: ImageSet
    val: ImageSet | None
    """Held out from the training images. None when `data.val_fraction` is 0."""
    test: ImageSet | None
    """The source's own test images. None where it has none."""
    source: str = ""

    def info(self) -> DataInfo:
        channels, size, _ = self.train.shape
        return DataInfo(size, channels, self.train.classes, len(self.train), self.source)


def hold_out(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet | None]:
    """(train, validation). Stratified by label, and the same for every run: it depends on nothing but the labels.

    So runs with different seeds are selected by the same images, and a search doesn't leak between its trials.
    """
    n = len(images)
    n_val = round(n * fraction)
    if fraction > 0:
        n_val = min(max(n_val, 1), n - 1)
    if n_val <= 0:
        return images, None
    shuffled = Randomness(0, "validation").permutation(n)
    whole = images.labels.dim() == 1 and images.labels.dtype == torch.int64
    labels = images.labels[shuffled] if whole else torch.zeros(n)
    by_label = shuffled[torch.sort(labels, stable=True).indices]
    # Evenly spaced along the sorted labels: every class gives its share, to within one image.
    held = by_label[(torch.arange(n_val) * 2 + 1) * n // (2 * n_val)]
    mask = torch.zeros(n, dtype=torch.bool)
    mask[held] = True
    train, val = images.select((~mask).nonzero()[:, 0]), images.select(mask.nonzero()[:, 0])
    return train, dataclasses.replace(val, name=f"{images.name.partition('/')[0]}/val")


def subsample(images: ImageSet, size: int | None) -> ImageSet:
    """`size` of the images, chosen at random but always the same ones; all of them if `size` is None."""
    if size is None or size >= len(images):
        return images
    chosen = Randomness(0, "size").permutation(len(images))[:size]
    return images.select(chosen.sort().values)
