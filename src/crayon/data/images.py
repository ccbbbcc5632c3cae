"""Images at rest.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from crayon.config.pairs import size_of
from crayon.data.types import DataInfo, unbalanced
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
    digest: str = ""
    """Of all of `storage`, where it is known without reading it; always where that is no tensor."""
    hashes: Tensor | None = None
    """int64 (M,), of each of `storage`: the same one for the same pixels. None where they aren't known."""
    groups: Tensor | None = None
    """int64 (N,). Images of the same number stay on one side of a split. None = each is on its own."""
    limits: tuple[float, float] | None = None
    """Which values of files of more than 8 bits became 0 and 255; None where there were no such files."""
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

    def counts(self) -> tuple[int, ...]:
        """Images by class; empty where there are no labels."""
        return tuple(self.labels.bincount(minlength=len(self.classes)).tolist()) if self.classes else ()

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
        groups = None if self.groups is None else self.groups[indices]
        return dataclasses.replace(self, labels=self.labels[indices], rows=self._rows(indices), groups=groups)

    def relabelled(self, classes: tuple[str, ...]) -> ImageSet:
        """With the labels that its classes have among `classes`. Raises ValueError, with its name, for one that isn't
        there."""
        if self.classes == classes:
            return self
        if other := [name for name in self.classes if name not in classes]:
            raise ValueError(other[0])
        number = torch.tensor([classes.index(name) for name in self.classes])
        return dataclasses.replace(self, labels=number[self.labels], classes=classes)

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
    fingerprint: Mapping[str, Any] = {}
    """What the images are known by (crayon.data.fingerprint)."""
    about: dict[str, Any] = {}  # noqa: RUF012
    """What there is to tell of it, JSON: see crayon.data.about."""

    def info(self) -> DataInfo:
        channels, *sides = self.train.shape
        counts = [images.counts() for images in (self.train, self.val) if images is not None]
        return DataInfo(
            size_of(*sides),
            channels,
            self.train.classes,
            len(self.train),
            self.source,
            counts[0],
            any(map(unbalanced, counts)),
        )


def hold_out(
    images: ImageSet, fraction: float, name: str = "val", *, every_class: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """(train, validation). Stratified by label, and the same for every run: it depends on labels and groups alone.

    So runs with different seeds are selected by the same images, and a search doesn't leak between its trials.

    Args:
        name: "val" or "test": what is held out is called "<source>/<name>".
        every_class: whether no class is held out whole.
    """
    n = len(images)
    # A group is held out, or not, as its first image is.
    group, firsts = torch.arange(n), torch.arange(n)
    if images.groups is not None:
        _, group = images.groups.unique(return_inverse=True)
        firsts = torch.full((int(group.max()) + 1,), n).scatter_reduce_(0, group, torch.arange(n), "amin")
    whole = images.labels.dim() == 1 and images.labels.dtype == torch.int64
    labels = images.labels[firsts] if whole else torch.zeros(len(firsts))
    held = _held(labels, fraction, "validation" if name == "val" else name)
    if images.groups is not None:
        held = _without_large(held, group.bincount(), fraction)
    held = held[group]
    if every_class and whole and held.any():
        absent = set(images.labels.unique().tolist()) - set(images.labels[~held].unique().tolist())
        back = torch.isin(images.labels, torch.tensor(sorted(absent), dtype=torch.int64))
        held &= ~torch.isin(group, group[back])
    if not held.any():
        return images, None
    train, val = images.select((~held).nonzero()[:, 0]), images.select(held.nonzero()[:, 0])
    return train, dataclasses.replace(val, name=f"{images.name.partition('/')[0]}/{name}")


def _held(labels: Tensor, fraction: float, key: str) -> Tensor:
    """bool (N,): which of the images or groups with these labels are held out."""
    n = len(labels)
    mask = torch.zeros(n, dtype=torch.bool)
    n_val = round(n * fraction)
    if fraction > 0:
        n_val = min(max(n_val, 1), n - 1)
    if n_val > 0:
        shuffled = Randomness(0, key).permutation(n)
        by_label = shuffled[torch.sort(labels[shuffled], stable=True).indices]
        # Evenly spaced along the sorted labels: every class gives its share, to within one image.
        mask[by_label[(torch.arange(n_val) * 2 + 1) * n // (2 * n_val)]] = True
    return mask


def _without_large(held: Tensor, sizes: Tensor, fraction: float) -> Tensor:
    """`held` without groups that would be far more than is to be held out. Where that leaves none, the smallest is."""
    kept = held & (sizes <= max(1, 2 * fraction * int(sizes.sum())))
    if held.any() and not kept.any():
        kept[sizes.argmin()] = True
    return kept


def subsample(images: ImageSet, size: int | None) -> ImageSet:
    """`size` of the images, chosen at random but always the same ones; all of them if `size` is None."""
    if size is None or size >= len(images):
        return images
    chosen = Randomness(0, "size").permutation(len(images))[:size]
    return images.select(chosen.sort().values)
