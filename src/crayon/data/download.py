"""The sets torchvision knows how to fetch and verify: mnist, cifar10, celeba."""

from __future__ import annotations

import contextlib
import io
import math
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from crayon.data.arrays import read_only
from crayon.data.cache import cache_root, hold, locked, making, storage_errors
from crayon.data.validate import FILES
from crayon.errors import BadInput, one_line
from crayon.report.events import Emit, Progress

TIMEOUT_S = 30.0
"""How long a silent server is waited for."""


def downloaded(source: str, emit: Emit) -> Path:
    """The folder that holds `source` in torchvision's layout, downloaded and verified once per node.

    Raises BadInput when it can't be had.
    """
    root = cache_root() / "downloads" / source
    if hold(root):
        return root
    with locked(root):
        if hold(root):
            return root
        emit(Progress(f"downloading {source}", 0, 1))
        # Into a folder of another name first: torchvision takes an extraction that was cut short for a whole one.
        with making(root) as folder:
            _download(source, folder)
        hold(root)
        emit(Progress(f"downloading {source}", 1, 1))
    return root


def _download(source: str, folder: Path) -> None:
    """Raises BadInput where it can't be had or isn't whole."""
    try:
        with storage_errors(folder.parent), patience(), _quiet():
            _fetch(source, folder)
    except BadInput:
        raise
    except Exception as error:  # torchvision and what it calls raise a wide variety
        reason = one_line(error, 160)
        raise BadInput(
            f"{source} could not be downloaded ({reason}): set --data.root to a folder that holds it, or use a "
            "built-in set that needs no download, --data.source digits, shapes or faces."
        ) from None
    missing = [file for file in FILES[source] if not (folder / file).exists()]
    if missing:
        raise BadInput(f"The download of {source} lacks {missing[0]}; try again, or set --data.root.")


def _fetch(source: str, root: Path) -> None:
    import torchvision.datasets as sets  # four seconds to import, and rarely needed

    if source == "mnist":
        sets.MNIST(str(root), download=True)
        for archive in (root / "MNIST" / "raw").glob("*.gz"):
            archive.unlink()
    elif source == "cifar10":
        sets.CIFAR10(str(root), download=True)
        (root / sets.CIFAR10.filename).unlink(missing_ok=True)
    else:
        sets.CelebA(str(root), download=True)
        (root / "celeba" / "img_align_celeba.zip").unlink(missing_ok=True)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Downloads give up on a server that is silent for 30 seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torchvision's progress bars are for terminals only."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def read_mnist(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """uint8 (N, 1, 28, 28), memory-mapped, and int64 (N,), from the IDX files (LeCun et al. 1998)."""
    stem = root / "MNIST" / "raw" / ("train" if train else "t10k")
    images = read_only(_read_idx(Path(f"{stem}-images-idx3-ubyte")))
    labels = read_only(_read_idx(Path(f"{stem}-labels-idx1-ubyte"))).long()
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise BadInput(f"The MNIST files {stem}-* don't belong together; download them again.")
    return images[:, None], labels


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


def read_cifar10(root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """uint8 (N, 3, 32, 32), labels, class names. torchvision compares every file's checksum before it unpickles it."""
    import torchvision.datasets as sets

    try:
        data = sets.CIFAR10(str(root), train=train, download=False)
    except RuntimeError:
        raise BadInput(
            f"The CIFAR-10 files in {root} are incomplete or damaged; download them again."
        ) from None
    return data.data.transpose(0, 3, 1, 2), np.array(data.targets), tuple(data.classes)


def read_celeba_partition(root: Path) -> dict[str, int]:
    """0 = train, 1 = validation, 2 = test, by file name."""
    lines = (root / "celeba" / "list_eval_partition.txt").read_text().split("\n")
    return {name: int(split) for name, split in (line.split() for line in lines if line.strip())}
