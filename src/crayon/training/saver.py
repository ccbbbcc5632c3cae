"""Checkpoints are written beside training: what is to be saved is copied, and a thread does the rest.

Flushing files to a disk, deleting older ones and uploading to an object store are waiting, not computing, so training
goes on meanwhile (benchmarks/LOG.md). One checkpoint is written at a time, and at most two wait for it: the best, and
the newest after that. A newer one takes the place of one that waits; the best gives way only to a better one.

They are written in the order of their steps. So whatever moment a process is killed at, the checkpoint that the newest
one on the disk calls the best is there, too; what waited is trained again, and is found to be the best again.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
import time

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.training.checkpoint import Checkpoint

SAVE_SECONDS = 1.0
"""Writing begins at most this often, unless somebody waits for it: shorter epochs would write all the time, and to
train a second anew after kill -9 takes less than the start before it."""


class Saver:
    """Writes the checkpoints of `run`, and keeps the newest `keep` and the best of them. For rank 0 only."""

    def __init__(self, run: RunFolder, keep: int):
        self.run, self.keep = run, keep
        self._changed = threading.Condition()
        self._waiting: list[tuple[Checkpoint, bool]] = []
        """To be written, in this order, and whether it is the best: at most the best and a newer one."""
        self._hurry = False
        self._not_before = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save_async(self, found: Checkpoint, *, best: bool = False) -> None:
        """Write it, as it is now, as soon as its turn comes. Raises what went wrong with one before."""
        self._check()
        # To host memory: the next step changes what is there now.
        tensors = {
            group: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
            for group, named in found.tensors.items()
        }
        mine = dataclasses.replace(found, tensors=tensors, state=copy.deepcopy(found.state))
        with self._changed:
            before = [] if best else [waiting for waiting in self._waiting if waiting[1]]
            self._waiting = [*before, (mine, best)]
            if self._thread is None:
                # A daemon: where the disk or the store never answers, the process can end all the same.
                self._thread = threading.Thread(target=self._write_all, name="saver", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until all is written. Raises RunFailed where it could not be."""
        with self._changed:
            thread, self._hurry = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        self._hurry = False
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                self._changed.wait_for(lambda: self._hurry, self._not_before - time.monotonic())
                found, best = self._waiting.pop(0)
            self._not_before = time.monotonic() + SAVE_SECONDS
            try:
                checkpoint.save(self.run, found, best=best, keep=self.keep)
            except BaseException as error:  # raised where training is
                with self._changed:
                    # What waits may call the one that is missing the best.
                    self._error, self._waiting, self._thread = error, [], None
                return
