"""Is this data what the job needs? Asked before any worker starts; imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from crayon.config.fields import check as check_ranges
from crayon.config.settings import DataConfig
from crayon.data import cache, remote
from crayon.data.layout import layout
from crayon.errors import BadInput
from crayon.system.files import expanded


class Download(NamedTuple):
    """A set that torchvision fetches and verifies."""

    dataset: str
    """Its class in torchvision.datasets."""
    archives: str
    """What isn't needed any more once it is unpacked."""
    files: tuple[str, ...]
    """What must lie under `data.root`."""


DOWNLOADED = {
    "mnist": Download(
        "MNIST",
        "MNIST/raw/*.gz",
        (
            "MNIST/raw/train-images-idx3-ubyte",
            "MNIST/raw/train-labels-idx1-ubyte",
            "MNIST/raw/t10k-images-idx3-ubyte",
            "MNIST/raw/t10k-labels-idx1-ubyte",
        ),
    ),
    "cifar10": Download(
        "CIFAR10", "*.tar.gz", ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch")
    ),
    "celeba": Download(
        "CelebA", "celeba/*.zip", ("celeba/img_align_celeba", "celeba/list_eval_partition.txt")
    ),
}
BUILT_IN = ("digits", "shapes", "faces")
SOURCES = (*DOWNLOADED, *BUILT_IN, "folder")


def check(config: DataConfig, *, labels: bool | None) -> None:
    """Raises BadInput if `load`, whose arguments these are, could not succeed. Reads folder names, no image."""
    cache.limit()
    source = config.source
    check_ranges(config, "data.")
    _check_splits(config)
    if is_own(config):
        if labels and not config.own.classes:
            raise BadInput(
                f"The source {source} has no classes to learn; give it some, Source(..., classes=...)."
            )
        return
    if source not in SOURCES:
        known = (*([config.own.name] if config.own else []), *SOURCES)
        raise BadInput(f"There is no data source {source!r}; --data.source is one of {', '.join(known)}.")
    _, height, width = config.shape
    if source in ("shapes", "faces") and height != width:
        raise BadInput(
            f"--data.image-size is {config.image_size}; {source} are drawn as squares, such as {height}."
        )
    if source == "faces" and not 32 <= height <= 256:
        raise BadInput(f"--data.image-size is {config.image_size}; faces are drawn at 32 to 256 pixels.")
    if source == "celeba" and labels:
        raise BadInput("celeba has no classes to learn; use it for the autoencoder and the GAN.")
    if config.root is None:
        if source == "folder":
            raise BadInput("--data.source folder needs --data.root, the folder of your images.")
        return
    if source in BUILT_IN:
        raise BadInput(f"--data.root has no meaning for the built-in {source}; use --data.source folder.")
    if source != "folder" and "://" in config.root:
        raise BadInput(
            f"{source} is read from a folder of this machine; use --data.source folder for image files."
        )
    if source == "folder" and remote.takes(config.root):
        remote.check(config)
        return
    root = expanded(config.root)
    if not root.is_dir():
        holds = "your images" if source == "folder" else source
        raise BadInput(f"There is no folder {root}; set --data.root to the folder that holds {holds}.")
    if source == "folder":
        if "test" in layout(root, labels=labels).parts and config.test_fraction:
            raise BadInput(f"--data.test-fraction: {root} has a test split; leave it out.")
    elif file := lacks(root, source):
        raise BadInput(
            f"{root} has no {file}; set --data.root to a folder that holds {source} as torchvision lays it "
            "out, or use --data.source folder for image files."
        )


def _check_splits(config: DataConfig) -> None:
    if config.test_fraction and config.source in (*DOWNLOADED, *BUILT_IN):
        raise BadInput(f"--data.test-fraction: {config.source} has a test split; leave it out.")
    if config.groups is None:
        return
    if config.source != "folder":
        raise BadInput("--data.groups is for the paths of --data.source folder; leave it out.")
    try:
        re.compile(config.groups)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(f"--data.groups {config.groups!r} is no regular expression ({error}).") from None


def brought(config: DataConfig) -> bool:
    """Whether the images are a user's own, and not a known set."""
    return is_own(config) or config.source not in (*DOWNLOADED, *BUILT_IN)


def is_own(config: DataConfig) -> bool:
    """Whether the images are of the job's own source."""
    return config.own is not None and config.own.name == config.source


def lacks(root: Path, source: str) -> str | None:
    """The first file of a downloaded set that doesn't lie under `root`."""
    return next((file for file in DOWNLOADED[source].files if not (root / file).exists()), None)


def check_batch(n: int, global_batch_size: int) -> None:
    """Raises BadInput unless `n` training images make a batch."""
    if global_batch_size > n:
        raise BadInput(
            f"--global-batch-size is {global_batch_size:,}, more than the {n:,} training images; make it smaller."
        )
