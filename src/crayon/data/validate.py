"""Is this data what the job needs? Asked before any worker starts; imports no torch."""

from __future__ import annotations

from pathlib import Path

from crayon.config.fields import check as check_ranges
from crayon.config.settings import DataConfig
from crayon.data import cache
from crayon.data.folder import layout
from crayon.errors import BadInput
from crayon.system.files import expanded

DOWNLOADED = ("mnist", "cifar10", "celeba")
BUILT_IN = ("digits", "shapes", "faces")
SOURCES = (*DOWNLOADED, *BUILT_IN, "folder")

FILES = {
    "mnist": (
        "MNIST/raw/train-images-idx3-ubyte",
        "MNIST/raw/train-labels-idx1-ubyte",
        "MNIST/raw/t10k-images-idx3-ubyte",
        "MNIST/raw/t10k-labels-idx1-ubyte",
    ),
    "cifar10": ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"),
    "celeba": ("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
}
"""What must lie under `data.root`, in torchvision's layout."""


def check(config: DataConfig, *, labels: bool) -> None:
    """Raises BadInput if `load` could not succeed. Reads folder names, no image.

    Args:
        labels: whether the job needs labelled images (the classifiers do).
    """
    cache.limit()
    if config.source not in SOURCES:
        raise BadInput(
            f"There is no data source {config.source!r}; --data.source is one of {', '.join(SOURCES)}."
        )
    check_ranges(config, "data.")
    if config.source == "faces" and not 32 <= config.image_size <= 256:
        raise BadInput(f"--data.image-size is {config.image_size}; faces are drawn at 32 to 256 pixels.")
    if config.source == "celeba" and labels:
        raise BadInput("celeba has no classes to learn; use it for the autoencoder and the GAN.")
    if config.source in BUILT_IN and config.root is not None:
        raise BadInput(
            f"--data.root has no meaning for the built-in {config.source}; use --data.source folder."
        )
    if config.source == "folder":
        if config.root is None:
            raise BadInput("--data.source folder needs --data.root, the folder of your images.")
        layout(root_of(config), labels=labels)
    elif config.root is not None:
        check_root(config.source, root_of(config))


def root_of(config: DataConfig) -> Path:
    assert config.root is not None
    return expanded(config.root)


def check_root(source: str, root: Path) -> None:
    """Raises BadInput unless the files of a downloadable set lie under `root`."""
    if not root.is_dir():
        raise BadInput(f"There is no folder {root}; set --data.root to the folder that holds {source}.")
    for file in FILES[source]:
        if not (root / file).exists():
            raise BadInput(
                f"{root} has no {file}; set --data.root to a folder that holds {source} as torchvision lays it "
                "out, or use --data.source folder for image files."
            )


def check_batch(n: int, global_batch_size: int, world_size: int) -> None:
    """Raises BadInput unless `n` training images make a batch, with an image for each of `world_size` workers."""
    if global_batch_size < 1:
        raise BadInput(f"--global-batch-size is {global_batch_size}; it must be at least 1.")
    if global_batch_size > n:
        raise BadInput(
            f"--global-batch-size is {global_batch_size:,}, more than the {n:,} training images; make it smaller."
        )
    if global_batch_size < world_size:
        raise BadInput(
            f"--global-batch-size {global_batch_size} is less than one image for each of {world_size} workers; "
            "use fewer workers."
        )
