"""Checkpoints are written beside training: what is to be saved is copied, and a thread does the rest.

Flushing files to a disk, deleting older ones and uploading to an object store are waiting, not computing, so training
goes on meanwhile (benchmarks/LOG.md). One checkpoint is written at a time. A process that is killed while it is written
leaves the one before.
"""

from __future__ import annotations

import copy
import dataclasses
import threading

from crayon import checkpoint
from crayon.checkpoint import Checkpoint
from crayon.storage import RunFolder


class Saver:
    """Writes the checkpoints of `run`, and keeps the newest `keep` and the best of them. For rank 0 only."""

    def __init__(self, run: RunFolder, keep: int):
        self.run, self.keep = run, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, found: Checkpoint, *, best: bool = False) -> None:
        """Write it, as it is now, once the one before is written. Raises what that one failed with."""
        self.wait()
        mine = dataclasses.replace(
            found,
            # To host memory: the next step changes these tensors.
            tensors={
                group: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
                for group, tensors in found.tensors.items()
            },
            state=copy.deepcopy(found.state),
            metrics=dict(found.metrics),
        )
        # A daemon: where the disk or the store never answers, the process can end all the same.
        self._thread = threading.Thread(target=self._write, args=(mine, best), name="saver", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all is written. Raises RunFailed where it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, found: Checkpoint, best: bool) -> None:
        try:
            checkpoint.save(self.run, found, best=best, keep=self.keep)
        except BaseException as error:  # raised where training is
            self._error = error
