"""Images that are read and decoded whenever they are asked for: for sets that a disk shall not, or can't, hold."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from crayon.config.settings import DataConfig
from crayon.data.decode import READERS, Form, decode_alone
from crayon.data.fingerprint import digest_of_names
from crayon.data.images import ImageSet
from crayon.errors import BadInput, CrayonError
from crayon.report.events import Emit, Message
from crayon.report.words import name_text
from crayon.system.host import usable_cores


class Uncached:
    """Stands in the place of a tensor of images, of which it has shape and `index_select`.

    An image that can't be read is replaced by the next of its class, the same one for any number of workers. Raises
    BadInput where that is so for more than `data.max_unreadable` of all.
    """

    def __init__(
        self,
        files: list[Any],
        name_of: Callable[[int], str],
        labels: np.ndarray,
        config: DataConfig,
        emit: Emit,
    ):
        """files: paths, or functions that open one; labels: int64 (N,)."""
        self._form = Form.of(config)
        self.shape = torch.Size((len(files), *self._form.shape))
        self._files, self._name_of, self._labels = files, name_of, labels
        self._config, self._emit = config, emit
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()
        # Of odd metadata, of images that are large but within the limit. Filters can't be set for a thread.
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        self._threads = ThreadPoolExecutor(max(READERS, usable_cores()), thread_name_prefix="crayon-decode")

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """uint8 (B, C, H, W), decoded by threads."""
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        list(self._threads.map(self._fill, pixels, rows.tolist()))
        return torch.from_numpy(pixels)

    def _fill(self, pixels: np.ndarray, row: int) -> None:
        at = row
        while True:
            if at not in self._unreadable:
                try:
                    file: str | BinaryIO = self._files[at]() if callable(self._files[at]) else self._files[at]
                    pixels[:] = decode_alone(file, self._form, self._named(at))[0].transpose(2, 0, 1)
                    return
                except CrayonError:
                    raise
                except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                    self._note(at, error)
            at = self._following(at)
            if at == row:
                raise BadInput(f"No image of the class of {self._named(row)} can be read.")

    def _named(self, row: int) -> str:
        return name_text(self._name_of(row))

    def _following(self, row: int) -> int:
        same = self._labels == self._labels[row]
        return int((row + 1 + np.roll(same, -row - 1).argmax()) % len(same))

    def _note(self, row: int, error: Exception) -> None:
        with self._lock:
            if row in self._unreadable:  # another thread has met it, too
                return
            self._unreadable.add(row)
            count, n = len(self._unreadable), self.shape[0]
        what = f"{self._named(row)} can't be read ({type(error).__name__})"
        if count > self._config.max_unreadable * n:
            raise BadInput(
                f"{what}, like {count - 1:,} others of {n:,}; mend or remove them, or raise --data.max-unreadable."
            )
        self._emit(Message(f"{what}; the next one of its class takes its place", warning=True))


def uncached(
    name: str,
    files: list[Any],
    name_of: Callable[[int], str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    known: Sequence[Any],
    config: DataConfig,
    emit: Emit,
) -> ImageSet:
    """A set of images that are read whenever they are asked for. known: plain JSON values of each that tell it from
    others, such as name and size. Other arguments: see Uncached."""
    labels = labels.astype(np.int64)
    storage = Uncached(files, name_of, labels, config, emit)
    storage.index_select(0, torch.zeros(1, dtype=torch.int64))  # without a range, deep images are refused now
    digest = digest_of_names(known)
    return ImageSet(name, storage, torch.from_numpy(labels), classes, digest=digest, limits=config.limits)
