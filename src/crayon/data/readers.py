"""Sets that are read whole: images, uint8 (N, C, H, W), labels, int64 (N,), and the names of the classes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crayon.data.arrays import read_only
from crayon.errors import BadInput

DIGITS = tuple("0123456789")


def read_mnist(root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """uint8 (N, 1, 28, 28), memory-mapped, from the IDX files (LeCun et al. 1998)."""
    stem = root / "MNIST" / "raw" / ("train" if train else "t10k")
    images = read_only(_read_idx(Path(f"{stem}-images-idx3-ubyte")))
    labels = read_only(_read_idx(Path(f"{stem}-labels-idx1-ubyte"))).long()
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise BadInput(f"The MNIST files {stem}-* don't belong together; download them again.")
    return images[:, None], labels, DIGITS


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: 0, 0, 8, number of dimensions, each dimension as a big-endian int32, then the bytes."""
    with path.open("rb") as file:
        head = file.read(4)
        dims = head[3] if len(head) == 4 and head[:3] == b"\0\0\x08" else 0
        sizes = file.read(4 * dims)
        shape = tuple(int(n) for n in np.frombuffer(sizes, ">i4")) if len(sizes) == 4 * dims else (0,)
        offset = file.tell()
    # Python's integers: a product that overflows could agree with anything.
    if not 1 <= dims <= 3 or min(shape) < 1 or path.stat().st_size != offset + math.prod(shape):
        raise BadInput(f"{path} is truncated or is no IDX file of bytes; download it again.")
    return np.memmap(path, np.uint8, mode="r", offset=offset, shape=shape)


def read_cifar10(root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """uint8 (N, 3, 32, 32). torchvision compares every file's checksum before it unpickles it."""
    import torchvision.datasets as sets

    try:
        data = sets.CIFAR10(str(root), train=train, download=False)
    except RuntimeError:
        raise BadInput(
            f"The CIFAR-10 files in {root} are incomplete or damaged; download them again."
        ) from None
    images = torch.from_numpy(data.data.transpose(0, 3, 1, 2))
    return images, torch.tensor(data.targets), tuple(data.classes)


def read_digits(root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """uint8 (N, 1, 8, 8): scikit-learn's 1,797 scans by 43 people (Alpaydin & Kaynak 1998). `root` is of no use."""
    from sklearn.datasets import load_digits

    data = load_digits()
    # The scans come writer by writer: a cut, unlike a random split, tests mostly on other people's hands.
    rows = slice(0, 1500) if train else slice(1500, None)
    images = torch.from_numpy((data.images[rows, None] * (255 / 16)).round().astype(np.uint8))
    return images, torch.from_numpy(data.target[rows]), DIGITS


def read_celeba_partition(root: Path) -> dict[str, int]:
    """0 = train, 1 = validation, 2 = test, by file name."""
    lines = (root / "celeba" / "list_eval_partition.txt").read_text().splitlines()
    return {name: int(split) for name, split in map(str.split, filter(str.strip, lines))}
