"""Which image goes into which batch of which worker: a function of (seed, epoch, step), nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import psutil
import torch
from torch import Tensor

from crayon.config.settings import AugmentConfig
from crayon.data.ahead import ahead
from crayon.data.augment import Augment, to_float
from crayon.data.images import ImageSet
from crayon.data.types import Batch
from crayon.data.validate import check_batch
from crayon.errors import BadInput
from crayon.rng import Randomness
from crayon.system.host import memory

RESIDENT_SHARE = 0.4
"""A set is kept on the device when it takes at most this share of the device's free memory."""
AHEAD = 3
"""Chunks the streaming thread prepares in advance."""
CHUNK_STEPS, CHUNK_BYTES = 8, 64 * 2**20
"""Steps whose images are gathered and augmented in one go, and the most their pixels may take: the many small
operations cost the same for eight batches as for one (benchmarks/LOG.md)."""


class Loader:
    """Training batches of one worker.

    The images of a step are the same whatever `world_size` is: `Randomness(seed, "order", epoch)` puts the set in
    order, step s takes `global_batch_size` images from it, and each rank a contiguous slice of those, the first ranks
    one image (or `together` of them) more where it doesn't divide. What doesn't fill a last batch is left out, other
    images in every epoch.

    Args:
        residency: "device" keeps all images on the device as uint8, "stream" reads them from where they are in a
            background thread, through pinned memory for a GPU; "auto" chooses "device" when they fit.
        channels_last: give `Batch.images` in NHWC order in memory.
        together: how many neighbours of a step always come to the same rank.
        even_classes: show every class equally often, its images as evenly as it goes, instead of every image once.

    Raises BadInput where the batch is larger than the set, or too small for so many ranks.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        augment: AugmentConfig | None = None,
        residency: Literal["auto", "device", "stream"] = "auto",
        channels_last: bool = False,
        together: int = 1,
        even_classes: bool = False,
    ):
        check_batch(len(images), global_batch_size)
        self.images = images
        self.global_batch_size = global_batch_size
        whole, rest = divmod(-(-global_batch_size // together), world_size)
        if whole == 0:
            raise BadInput(
                f"--global-batch-size {global_batch_size} is less than {together * world_size}, {together} images that "
                "belong together for each worker; make it larger or take fewer --workers."
            )
        first, end = (min(together * (r * whole + min(r, rest)), global_batch_size) for r in (rank, rank + 1))
        self.slice, self.batch_size = slice(first, end), end - first
        self.device = torch.device(device)
        self.seed = seed
        self.channels_last, self.even_classes = channels_last, even_classes
        self.steps_per_epoch = len(images) // global_batch_size
        self.set_augment(augment or AugmentConfig())
        self.positions = torch.arange(first, end, device=self.device)
        batch_bytes = 4 * self.batch_size * math.prod(images.shape)
        self.chunk = max(1, min(CHUNK_STEPS, CHUNK_BYTES // batch_bytes))
        self.resident = residency == "device" or (residency == "auto" and fits(images, self.device))
        self.pixels: Tensor | None = None
        if self.resident and not mapped(images, self.device):
            self.pixels = resident(images, self.device)
        self.labels = images.labels.to(self.device)

    def set_augment(self, config: AugmentConfig) -> None:
        """The random changes of the epochs that begin from now on."""
        self.augment = Augment(config, self.images.mean() if config.cutout else ())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from step `start` on."""
        order = self._order(epoch)
        # (steps, batch_size): this rank's columns of the epoch's steps. Chunks begin at the same steps wherever the
        # epoch is taken up, so that every image is computed in the same place of the same tensor.
        steps = order[: self.steps_per_epoch * self.global_batch_size].view(self.steps_per_epoch, -1)
        firsts = range(start - start % self.chunk, self.steps_per_epoch, self.chunk)
        mine = steps[start - start % self.chunk :, self.slice].flatten()
        chunks, here = (i.split(self.chunk * self.batch_size) for i in (mine, mine.to(self.device)))
        rng, places = Randomness(self.seed, "augment"), torch.arange(self.slice.start, self.slice.stop)
        gather = self.images.gather if self.pixels is None else partial(self.pixels.index_select, 0)
        pixels = map(gather, here) if self.resident else self._streamed(chunks)
        for first, images, chosen in zip(firsts, pixels, here, strict=True):
            count = len(chosen) // self.batch_size
            numbers = torch.arange(first, first + count) * self.global_batch_size
            positions = (numbers[:, None] + places).flatten()
            changed = self.augment(images, rng, epoch, positions, chosen, channels_last=self.channels_last)
            labels = self.labels[chosen]
            for i in range(max(0, start - first), count):
                part = slice(i * self.batch_size, (i + 1) * self.batch_size)
                yield Batch(changed[part], labels[part], self.positions)

    def _order(self, epoch: int) -> Tensor:
        """The images of an epoch, int64 (N,)."""
        rng = Randomness(self.seed, "order", epoch)
        order = rng.permutation(len(self.images))
        if not self.even_classes:
            return order
        by_class = order[self.images.labels[order].argsort(stable=True)]
        counts = self.images.labels.bincount()
        counts = counts[counts > 0]
        place = rng.fold("classes").permutation(len(order))
        which, turn = place % len(counts), place // len(counts)
        return by_class[(counts.cumsum(0) - counts)[which] + turn % counts[which]]

    def _streamed(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        pin = self.device.type == "cuda"

        def read(indices: Tensor) -> Tensor:
            images = self.images.read(indices)
            return images.pin_memory() if pin else images

        for images in ahead(read, batches, AHEAD):
            yield images.to(self.device, non_blocking=True)


def mapped(images: ImageSet, device: torch.device) -> bool:
    """Whether the images are in the device's memory as they are: a CPU's memory map is, shared by all workers through
    the page cache."""
    return device.type == "cpu" and isinstance(images.storage, Tensor)


def resident(images: ImageSet, device: torch.device) -> Tensor:
    """All images as one tensor on `device`, uint8 (N, C, H, W). The host holds a few MiB of them at a time."""
    pixels = torch.empty((len(images), *images.shape), dtype=torch.uint8, device=device)
    start = 0
    for part in images.parts():
        pixels[start : start + len(part)] = part
        start += len(part)
    return pixels


def fits(images: ImageSet, device: torch.device) -> bool:
    """Whether the set takes a small enough share of the device's free memory. Beside the CPU's there is the memory map;
    what has none is not kept, by each of the workers."""
    if device.type == "cpu" and not mapped(images, device):
        return False
    gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if gpu else min(psutil.virtual_memory().available, memory())
    return images.nbytes <= RESIDENT_SHARE * free


def evaluation_batches(
    images: ImageSet,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> Iterator[Batch]:
    """Every image exactly once over all ranks, unchanged; the last batches may be smaller.

    The split is cut into batches of `batch_size` and rank r takes batches r, r + world_size, ..., so a batch holds
    the same images whatever the number of workers is. `Batch.positions` are indices into the split.
    """
    device = torch.device(device)
    for positions in torch.arange(len(images)).split(batch_size)[rank::world_size]:
        pixels = images.gather(positions).to(device, non_blocking=True)
        yield Batch(
            to_float(pixels, channels_last=channels_last),
            images.labels[positions].to(device),
            positions.to(device),
        )
