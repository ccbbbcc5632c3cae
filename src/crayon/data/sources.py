"""From a DataConfig to train, validation and test images."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crayon.config.settings import DataConfig
from crayon.data import decoded, remote
from crayon.data.about import about, of_folder, related
from crayon.data.ahead import ahead
from crayon.data.arrays import (
    DIGEST,
    Built,
    cached_entry,
    cached_set,
    open_set,
    save_decoded,
    save_images,
)
from crayon.data.cache import key_of
from crayon.data.decode import MID_GREY, Form
from crayon.data.download import downloaded
from crayon.data.fingerprint import digest_of, fingerprint
from crayon.data.folder import open_folder, walk
from crayon.data.images import ImageSet, Splits, hold_out, subsample
from crayon.data.layout import layout
from crayon.data.own import Loaded, listing
from crayon.data.readers import read_celeba_partition, read_cifar10, read_digits, read_mnist
from crayon.data.splits import alike, examined
from crayon.data.validate import DOWNLOADED, brought, check, is_own
from crayon.data.values import remarks, scaled_as
from crayon.errors import BadInput
from crayon.report.events import Emit, Progress, ignore
from crayon.system.files import expanded
from crayon.system.host import usable_cores


class Given(NamedTuple):
    """What a source has."""

    train: ImageSet
    test: ImageSet | None
    val: ImageSet | None = None
    test_fraction: float | None = None
    """Share to set aside as the test split, where not that of the settings."""
    about: dict[str, Any] | None = None
    """What there is to tell of it: see crayon.data.about."""


PART = 500
"""Images that are brought to their size at a time."""
RENDERED = 256
"""Images that are rendered at a time."""
LISTING = "root.txt"
"""In an entry of one's own source: what lay under `data.root` when it was read."""
TEST_START = 1 << 40
"""Where the indices of procedural test images start: far beyond any training set."""


def load(config: DataConfig, *, labels: bool | None, emit: Emit = ignore) -> Splits:
    """The images `config` asks for, as uint8 of `data.image_size` and `data.channels`.

    What takes long (downloading, decoding, rendering) is done once per node and kept in the user's cache; after that
    the images are memory-mapped.

    labels: whether labelled images are needed. If not, they are still given where the source has them. None = a folder
        is read for labels where it can be.

    Raises BadInput where the source is unknown, missing, empty, unlabelled, damaged or can't be downloaded.
    """
    check(config, labels=labels)
    read = _own if is_own(config) else _SOURCES[config.source]
    given = read(config, labels, emit)
    train, test, val = given[:3]
    for images in filter(None, (train, test, val)):
        if images.classes:
            _check_labels(images)
    remarks(train, config, emit)
    # Held out first, so that runs on more and on fewer images are compared on the same ones. The procedural sets have
    # rendered as many as asked for, and hold out some of these.
    known = fingerprint(train, val, test)
    every_class = brought(config)
    if test is None:
        share = config.test_fraction if given.test_fraction is None else given.test_fraction
        train, test = hold_out(train, share or 0.0, "test", every_class=every_class)
    elif config.test_fraction:
        raise BadInput(f"--data.test-fraction: {config.source} has a test split; leave it out.")
    if val is None:
        train, val = hold_out(train, config.val_fraction, every_class=every_class)
    splits = Splits(subsample(train, config.size), val, test, config.source, known)
    return splits._replace(about=about(splits, given.about, own=every_class))


def _check_labels(images: ImageSet) -> None:
    wrong = images.labels[(images.labels < 0) | (images.labels >= len(images.classes))]
    if len(wrong):
        raise BadInput(
            f"{images.name} has the label {int(wrong[0])}, and its {len(images.classes)} classes are "
            f"numbered 0 to {len(images.classes) - 1}; mend the label file or download it again."
        )


def resize(images: Tensor, form: Form) -> Tensor:
    """uint8 (N, C, H, W) to uint8 (N, *form.shape): grey by luma, antialiased bicubic resampling."""
    if images.shape[1:] == form.shape:
        return images
    x = images.to(torch.float32)
    if form.channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if x.shape[-2:] != form.shape[1:]:
        box, (w, h) = form.placed(x.shape[-1], x.shape[-2])
        left, top, right, bottom = map(round, box)
        x = x[..., top:bottom, left:right]
        if x.shape[-2:] != (h, w):
            x = F.interpolate(x, (h, w), mode="bicubic", antialias=True, align_corners=False)
        if (h, w) != form.shape[1:]:
            left, top = (form.width - w) // 2, (form.height - h) // 2
            x = F.pad(x, (left, form.width - w - left, top, form.height - h - top), value=MID_GREY)
    return x.round_().clamp_(0, 255).to(torch.uint8).expand(-1, form.channels, -1, -1)


class _NoSuchSplit(Exception):
    """A source of one's own has no images of a split."""


def _own(config: DataConfig, labels: bool | None, emit: Emit) -> Given:
    """A job's own source."""
    source = config.own

    def split(name: Literal["train", "test"], form: Form) -> ImageSet | None:
        def build(entry: Path) -> Built:
            if (given := source.load(name, config.root)) is None:
                raise _NoSuchSplit
            images = Loaded(source, name, given)
            title, n = f"reading {source.name}/{name}", len(images)
            limits = save_decoded(entry, n, form, images.decoded, lambda done: emit(Progress(title, done, n)))
            # Only now: `load` may have put the files there.
            (entry / LISTING).write_text(key_of(listing(config.root)))
            return images.labels, source.classes, limits

        title = f"{source.name}/{name}"
        what = ("own", source.digest, source.version, source.classes, config.root)
        with contextlib.suppress(_NoSuchSplit):
            entry = cached_entry(title, what, form, build)
            if (now := key_of(listing(config.root))) != (entry / LISTING).read_text():
                entry = cached_entry(title, (*what, now), form, build)
            return open_set(entry, title)
        return None

    train = split("train", Form.of(config))
    if train is None:
        raise BadInput(f"The source {source.name} has no training images.")
    return _without_copies(train, split("test", Form.of(scaled_as(train, config))))


def _without_copies(train: ImageSet, test: ImageSet | None) -> Given:
    """Of decoded images: copies of one are together."""
    sets = {"train": train} | ({} if test is None else {"test": test})
    groups, told = related(sets, alike(sets.values()))
    return Given(dataclasses.replace(train, groups=groups), test, about=told)


def _root(config: DataConfig, emit: Emit) -> Path:
    return expanded(config.root) if config.root else downloaded(config.source, emit)


def _arrays(config: DataConfig, labels: bool | None, emit: Emit) -> Given:
    """A set that is small enough to be read whole."""
    source, form = config.source, Form.of(config)._replace(limits=None)
    root = Path() if source == "digits" else _root(config, emit)
    files = [] if source == "digits" else [root / file for file in DOWNLOADED[source].files]
    # Other sets have files of the same names, and even of the same sizes.
    where = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def split(name: str) -> ImageSet:
        def read() -> tuple[Tensor, Tensor, tuple[str, ...]]:
            return _READERS[source](root, name == "train")

        def build(entry: Path) -> Built:
            images, labels, classes = read()
            parts = (resize(part, form) for part in images.split(PART))
            save_images(entry, (len(images), *form.shape), parts)
            # As they are given: resampled, their last bits depend on the processor.
            (entry / DIGEST).write_text(digest_of([images]))
            return labels.numpy(), classes, None

        if (source, form.shape) == ("mnist", (1, 28, 28)):
            return ImageSet(f"mnist/{name}", *read())  # mapped from its own files
        return cached_set(f"{source}/{name}", (where,), form, build)

    return Given(split("train"), split("test"))


def _celeba(config: DataConfig, labels: bool | None, emit: Emit) -> Given:
    root = _root(config, emit)
    folder = root / "celeba" / "img_align_celeba"
    partition = read_celeba_partition(root)
    found = sorted(walk(folder))

    def split(name: str, number: int) -> ImageSet:
        chosen = [file for file in found if partition.get(file.path) == number]
        return open_folder(folder, f"celeba/{name}", (), chosen, config, emit)

    return _without_copies(split("train", 0), split("test", 2))


def _folder(config: DataConfig, labels: bool | None, emit: Emit) -> Given:
    root: PurePath
    shapes = np.zeros((0, 2), np.int64)
    if config.root and remote.takes(config.root):
        found, sets = decoded.load(config, labels=labels, emit=emit)
        root, read = found.root, found.layout
        files = {name: list(found.splits[name].files) for name in sets}
        digests = alike(sets.values())
    else:
        root = _root(config, emit)
        read = layout(root, labels=labels)
        files = {n: sorted(walk(part.folder, read.left_out, part.inside)) for n, part in read.parts.items()}
        sets, like = {}, config
        for name in sorted(files, key="train".__ne__):  # the others' values are scaled as its are
            folder = Path(read.parts[name].folder)
            sets[name] = open_folder(folder, f"folder/{name}", read.classes, files[name], like, emit)
            like = scaled_as(sets["train"], config)
        digests, shapes = examined([(read.parts[name].folder, files[name]) for name in sets], emit)
    train = sets["train"]
    if labels and (empty := set(range(len(train.classes))) - set(train.labels.unique().tolist())):
        raise BadInput(
            f"No image of class {train.classes[min(empty)]!r} in {root} can be read; replace them."
        )
    share = read.test_share(config.test_fraction)
    groups, told = of_folder(root, read, files, sets, config, share, digests, shapes)
    return Given(dataclasses.replace(train, groups=groups), sets.get("test"), sets.get("val"), share, told)


def _rendered(config: DataConfig, labels: bool | None, emit: Emit) -> Given:
    """A procedural set. `render(indices, image_size)` gives uint8 (B, 3, H, W) and int64 labels (B,)."""
    rules = importlib.import_module(f"crayon.data.procedural.{config.source}")
    form = Form.of(config)._replace(limits=None)

    def split(name: str, start: int, n: int) -> ImageSet:
        def build(entry: Path) -> Built:
            labels = torch.empty(n, dtype=torch.int64)
            threads = torch.get_num_threads()
            cores = min(threads, usable_cores())

            def draw(indices: Tensor) -> Tensor:
                # Whole batches side by side, each on one thread: hundreds of small operations a batch would spend
                # their time waiting for one another if each was split over the cores.
                torch.set_num_threads(1)
                pixels, labels[indices] = rules.render(indices + start, form.height)
                return resize(pixels, form)

            parts = ahead(draw, torch.arange(n).split(RENDERED), 2 * cores, cores)
            title = f"rendering {config.source}/{name}"
            try:
                save_images(entry, (n, *form.shape), parts, lambda done: emit(Progress(title, done, n)))
            finally:
                torch.set_num_threads(threads)
            return labels.numpy(), rules.CLASSES, None

        return cached_set(f"{config.source}/{name}", (rules.VERSION, start, n), form, build)

    train = split("train", 0, config.size or rules.TRAIN_SIZE)
    return Given(train, split("test", TEST_START, rules.TEST_SIZE))


_READERS: dict[str, Callable[[Path, bool], tuple[Tensor, Tensor, tuple[str, ...]]]] = {
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "digits": read_digits,
}
_SOURCES: dict[str, Callable[[DataConfig, bool | None, Emit], Given]] = {
    "mnist": _arrays,
    "cifar10": _arrays,
    "digits": _arrays,
    "celeba": _celeba,
    "shapes": _rendered,
    "faces": _rendered,
    "folder": _folder,
}
