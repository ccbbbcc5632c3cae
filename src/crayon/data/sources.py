"""From a DataConfig to train, validation and test images."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crayon.config.settings import DataConfig
from crayon.data import decoded, remote
from crayon.data.ahead import ahead
from crayon.data.arrays import cached_set, save_images
from crayon.data.download import downloaded
from crayon.data.folder import layout, open_folder, walk
from crayon.data.images import ImageSet, Splits, hold_out, subsample
from crayon.data.own import Loaded
from crayon.data.readers import read_celeba_partition, read_cifar10, read_digits, read_mnist
from crayon.data.validate import check, is_own
from crayon.errors import BadInput
from crayon.report.events import Emit, Progress, ignore
from crayon.system.files import expanded
from crayon.system.host import usable_cores

Both = tuple[ImageSet, "ImageSet | None"] | tuple[ImageSet, "ImageSet | None", "ImageSet | None"]
"""Training and test images, and validation images where a source has its own."""
Labelled = tuple[np.ndarray, tuple[str, ...]]
"""Labels and the names of the classes."""
PART = 500
"""Images that are brought to their size at a time."""
RENDERED = 256
"""Images that are rendered at a time."""
TEST_START = 1 << 40
"""Where the indices of procedural test images start: far beyond any training set."""


def load(config: DataConfig, *, labels: bool, emit: Emit = ignore) -> Splits:
    """The images `config` asks for, as uint8 of `data.image_size` and `data.channels`.

    What takes long (downloading, decoding, rendering) is done once per node and kept in the user's cache; after that
    the images are memory-mapped.

    Args:
        config: where they come from.
        labels: whether labelled images are needed. If not, they are still given where the source has them.
        emit: called with how far it is, and with warnings.

    Raises:
        BadInput: the source is unknown, missing, empty, unlabelled, damaged or can't be downloaded.
    """
    check(config, labels=labels)
    read = _own if is_own(config) else _SOURCES[config.source]
    train, test, *own = read(config, labels, emit)
    for images in filter(None, (train, test, *own)):
        if images.classes:
            _check_labels(images)
    # Held out first, so that runs on more and on fewer images are compared on the same ones. The procedural sets have
    # rendered as many as asked for, and hold out some of these.
    kept, val = hold_out(train, config.val_fraction) if not any(own) else (train, own[0])
    return Splits(subsample(kept, config.size), val, test, config.source)


def _check_labels(images: ImageSet) -> None:
    wrong = images.labels[(images.labels < 0) | (images.labels >= len(images.classes))]
    if len(wrong):
        raise BadInput(
            f"{images.name} has the label {int(wrong[0])}, and its {len(images.classes)} classes are "
            f"numbered 0 to {len(images.classes) - 1}; mend the label file or download it again."
        )


def resize(images: Tensor, size: int, channels: int) -> Tensor:
    """uint8 (N, C, H, W) to uint8 (N, channels, size, size): grey by luma, antialiased bicubic resampling."""
    if images.shape[1:] == (channels, size, size):
        return images
    x = images.to(torch.float32)
    if channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if x.shape[-1] != size:
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return x.round_().clamp_(0, 255).to(torch.uint8).expand(-1, channels, -1, -1)


class _NoSuchSplit(Exception):
    """A source of one's own has no images of a split."""


def _own(config: DataConfig, labels: bool, emit: Emit) -> Both:
    """A job's own source."""
    source, size, channels = config.own, config.image_size, config.channels

    def split(name: Literal["train", "test"]) -> ImageSet | None:
        def build(entry: Path) -> Labelled:
            if (given := source.load(name, config.root)) is None:
                raise _NoSuchSplit
            images = Loaded(source, name, given)
            title, n = f"reading {source.name}/{name}", len(images)
            parts = images.decoded(size, channels)
            save_images(entry, (n, channels, size, size), parts, lambda done: emit(Progress(title, done, n)))
            return images.labels, source.classes

        what = ("own", source.digest, source.version, source.classes, config.root, size, channels)
        with contextlib.suppress(_NoSuchSplit):
            return cached_set(f"{source.name}/{name}", what, build)
        return None

    train = split("train")
    if train is None:
        raise BadInput(f"The source {source.name} has no training images.")
    return train, split("test")


def _root(config: DataConfig, emit: Emit) -> Path:
    return expanded(config.root) if config.root else downloaded(config.source, emit)


def _arrays(config: DataConfig, labels: bool, emit: Emit) -> Both:
    """A set that is small enough to be read whole."""
    source, size, channels = config.source, config.image_size, config.channels
    root = Path() if source == "digits" else _root(config, emit)
    where = () if source == "digits" else (str(root),)

    def split(name: str) -> ImageSet:
        def read() -> tuple[Tensor, Tensor, tuple[str, ...]]:
            return _READERS[source](root, name == "train")

        def build(entry: Path) -> Labelled:
            images, labels, classes = read()
            parts = (resize(part, size, channels) for part in images.split(PART))
            save_images(entry, (len(images), channels, size, size), parts)
            return labels.numpy(), classes

        if (source, size, channels) == ("mnist", 28, 1):
            return ImageSet(f"mnist/{name}", *read())  # mapped from its own files
        return cached_set(f"{source}/{name}", (*where, size, channels), build)

    return split("train"), split("test")


def _celeba(config: DataConfig, labels: bool, emit: Emit) -> Both:
    root = _root(config, emit)
    folder = root / "celeba" / "img_align_celeba"
    partition = read_celeba_partition(root)
    found = sorted(walk(folder))

    def split(name: str, number: int) -> ImageSet:
        chosen = [file for file in found if partition.get(file.path) == number]
        return open_folder(folder, f"celeba/{name}", (), chosen, config, emit)

    return split("train", 0), split("test", 2)


def _folder(config: DataConfig, labels: bool, emit: Emit) -> Both:
    if config.root is not None and remote.takes(config.root):
        found = decoded.load(config, labels=labels, emit=emit)
        return found["train"], found.get("test"), found.get("val")
    root = _root(config, emit)
    folders, classes = layout(root, labels=labels)
    sets = {
        name: open_folder(folder, f"folder/{name}", classes, sorted(walk(folder)), config, emit)
        for name, folder in folders.items()
    }
    if labels and (empty := set(range(len(classes))) - set(sets["train"].labels.unique().tolist())):
        raise BadInput(f"No image of class {classes[min(empty)]!r} in {root} can be read; replace them.")
    return sets["train"], sets.get("test")


def _rendered(config: DataConfig, labels: bool, emit: Emit) -> Both:
    """A procedural set. `render(indices, image_size)` gives uint8 (B, 3, H, W) and int64 labels (B,)."""
    rules = importlib.import_module(f"crayon.data.procedural.{config.source}")
    size, channels = config.image_size, config.channels

    def split(name: str, start: int, n: int) -> ImageSet:
        def build(entry: Path) -> Labelled:
            labels = torch.empty(n, dtype=torch.int64)
            threads = torch.get_num_threads()
            cores = min(threads, usable_cores())

            def draw(indices: Tensor) -> Tensor:
                # Whole batches side by side, each on one thread: hundreds of small operations a batch would spend
                # their time waiting for one another if each was split over the cores.
                torch.set_num_threads(1)
                pixels, labels[indices] = rules.render(indices + start, size)
                return resize(pixels, size, channels)

            parts = ahead(draw, torch.arange(n).split(RENDERED), 2 * cores, cores)
            title = f"rendering {config.source}/{name}"
            try:
                save_images(
                    entry, (n, channels, size, size), parts, lambda done: emit(Progress(title, done, n))
                )
            finally:
                torch.set_num_threads(threads)
            return labels.numpy(), rules.CLASSES

        return cached_set(f"{config.source}/{name}", (rules.VERSION, start, n, size, channels), build)

    return split("train", 0, config.size or rules.TRAIN_SIZE), split("test", TEST_START, rules.TEST_SIZE)


_READERS: dict[str, Callable[[Path, bool], tuple[Tensor, Tensor, tuple[str, ...]]]] = {
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "digits": read_digits,
}
_SOURCES: dict[str, Callable[[DataConfig, bool, Emit], Both]] = {
    "mnist": _arrays,
    "cifar10": _arrays,
    "digits": _arrays,
    "celeba": _celeba,
    "shapes": _rendered,
    "faces": _rendered,
    "folder": _folder,
}
