"""From a DataConfig to train, validation and test images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crayon.config.settings import DataConfig
from crayon.data.arrays import cached_set, save_images
from crayon.data.download import downloaded, read_celeba_partition, read_cifar10, read_mnist
from crayon.data.folder import layout, open_folder, walk
from crayon.data.images import ImageSet, Splits, hold_out, subsample
from crayon.data.validate import check, root_of
from crayon.errors import BadInput
from crayon.report.events import Emit, Progress, ignore
from crayon.system.host import usable_cores

Both = tuple[ImageSet, "ImageSet | None"]
Labelled = tuple[np.ndarray, tuple[str, ...]]
"""Labels and the names of the classes."""
PART = 500
"""Images that are brought to their size at a time."""


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
    train, test = _SOURCES[config.source](config, labels, emit)
    for images in (train, test):
        if images is not None and images.classes:
            _check_labels(images)
    # Held out first, so that runs on more and on fewer images are compared on the same ones. The procedural sets have
    # rendered as many as asked for, and hold out some of these.
    kept, val = hold_out(train, config.val_fraction)
    return Splits(subsample(kept, config.size), val, test, config.source)


def _check_labels(images: ImageSet) -> None:
    least, most = int(images.labels.min()), int(images.labels.max())
    if least < 0 or most >= len(images.classes):
        raise BadInput(
            f"{images.name} has the label {most if least >= 0 else least}, and its {len(images.classes)} classes are "
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


def _save_resized(folder: Path, images: Tensor, config: DataConfig) -> None:
    size, channels = config.image_size, config.channels
    parts = (resize(part, size, channels) for part in images.split(PART))
    save_images(folder, (len(images), channels, size, size), parts)


def _mnist(config: DataConfig, labels: bool, emit: Emit) -> Both:
    root = root_of(config) if config.root else downloaded("mnist", emit)
    classes = tuple("0123456789")

    def split(name: str) -> ImageSet:
        images, targets = read_mnist(root, train=name == "train")
        if config.image_size == 28 and config.channels == 1:
            return ImageSet(f"mnist/{name}", images, targets, classes)

        def build(entry: Path) -> Labelled:
            _save_resized(entry, images, config)
            return targets.numpy(), classes

        return cached_set(f"mnist/{name}", (str(root), config.image_size, config.channels), build)

    return split("train"), split("test")


def _cifar10(config: DataConfig, labels: bool, emit: Emit) -> Both:
    root = root_of(config) if config.root else downloaded("cifar10", emit)

    def split(name: str) -> ImageSet:
        def build(entry: Path) -> Labelled:
            images, targets, classes = read_cifar10(root, train=name == "train")
            _save_resized(entry, torch.from_numpy(images), config)
            return targets, classes

        return cached_set(f"cifar10/{name}", (str(root), config.image_size, config.channels), build)

    return split("train"), split("test")


def _celeba(config: DataConfig, labels: bool, emit: Emit) -> Both:
    root = root_of(config) if config.root else downloaded("celeba", emit)
    folder = root / "celeba" / "img_align_celeba"
    partition = read_celeba_partition(root)
    found = sorted(walk(folder))

    def split(name: str, number: int) -> ImageSet:
        return open_folder(
            folder,
            f"celeba/{name}",
            (),
            found=[file for file in found if partition.get(file.path) == number],
            size=config.image_size,
            channels=config.channels,
            max_unreadable=config.max_unreadable,
            emit=emit,
        )

    return split("train", 0), split("test", 2)


def _folder(config: DataConfig, labels: bool, emit: Emit) -> Both:
    root = root_of(config)
    folders, classes = layout(root, labels=labels)
    sets = {
        name: open_folder(
            folder,
            f"folder/{name}",
            classes,
            size=config.image_size,
            channels=config.channels,
            max_unreadable=config.max_unreadable,
            emit=emit,
        )
        for name, folder in folders.items()
    }
    if labels and (empty := set(range(len(classes))) - set(sets["train"].labels.unique().tolist())):
        raise BadInput(f"No image of class {classes[min(empty)]!r} in {root} can be read; replace them.")
    return sets["train"], sets.get("test")


def _digits(config: DataConfig, labels: bool, emit: Emit) -> Both:
    """scikit-learn's digits: 1,797 scans of 8x8 by 43 people (Alpaydin & Kaynak 1998), enlarged."""
    classes = tuple("0123456789")

    def split(name: str, rows: slice) -> ImageSet:
        def build(entry: Path) -> Labelled:
            from sklearn.datasets import load_digits

            data = load_digits()
            images = torch.from_numpy((data.images[rows, None] * (255 / 16)).round().astype(np.uint8))
            _save_resized(entry, images, config)
            return data.target[rows], classes

        return cached_set(f"digits/{name}", (config.image_size, config.channels), build)

    # The scans come writer by writer: a cut, unlike a random split, tests mostly on other people's hands.
    return split("train", slice(0, 1500)), split("test", slice(1500, None))


def _shapes(config: DataConfig, labels: bool, emit: Emit) -> Both:
    from crayon.data.procedural.shapes import CLASSES, TEST_SIZE, TRAIN_SIZE, VERSION, render

    return _rendered("shapes", config, emit, render, CLASSES, VERSION, TRAIN_SIZE, TEST_SIZE)


def _faces(config: DataConfig, labels: bool, emit: Emit) -> Both:
    from crayon.data.procedural.faces import CLASSES, TEST_SIZE, TRAIN_SIZE, VERSION, render

    return _rendered("faces", config, emit, render, CLASSES, VERSION, TRAIN_SIZE, TEST_SIZE)


TEST_START = 1 << 40
"""Where the indices of procedural test images start: far beyond any training set."""


def _rendered(
    source: str,
    config: DataConfig,
    emit: Emit,
    render: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    classes: tuple[str, ...],
    version: int,
    train_size: int,
    test_size: int,
) -> Both:
    """A procedural set. `render(indices, image_size)` gives uint8 (B, 3, H, W) and int64 labels (B,)."""
    size, channels = config.image_size, config.channels

    def split(name: str, start: int, n: int) -> ImageSet:
        def build(entry: Path) -> Labelled:
            labels = torch.empty(n, dtype=torch.int64)

            def draw(indices: Tensor) -> Tensor:
                pixels, labels[indices] = render(indices + start, size)
                return resize(pixels, size, channels)

            def told(parts: Iterable[Tensor]) -> Iterator[Tensor]:
                done = 0
                for part in parts:
                    yield part
                    done += len(part)
                    emit(Progress(f"rendering {source}/{name}", done, n))

            # Whole batches side by side, each on one thread: hundreds of small operations a batch would spend their
            # time waiting for one another if each was split over the cores.
            threads = torch.get_num_threads()
            try:
                with (
                    ThreadPoolExecutor(
                        min(threads, usable_cores()), initializer=torch.set_num_threads, initargs=(1,)
                    ) as pool,
                    contextlib.closing(pool.map(draw, torch.arange(n).split(256))) as parts,  # type: ignore[type-var]
                ):
                    save_images(entry, (n, channels, size, size), told(parts))
            finally:
                torch.set_num_threads(threads)
            return labels.numpy(), classes

        return cached_set(f"{source}/{name}", (version, start, n, size, channels), build)

    return split("train", 0, config.size or train_size), split("test", TEST_START, test_size)


_SOURCES: dict[str, Callable[[DataConfig, bool, Emit], Both]] = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "celeba": _celeba,
    "digits": _digits,
    "shapes": _shapes,
    "faces": _faces,
    "folder": _folder,
}
