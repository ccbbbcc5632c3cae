"""The mean of the gradients of workers that share one machine's memory.

Gloo sends gradients through sockets, from threads of its own, and where every core trains already that costs 6 to 30 %
of a step (benchmarks/LOG.md). Here every worker writes its gradients where all can read them, waits until the others
have done so, and sums. Nothing listens, and the file has no name any more once all have opened it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = Path("/dev/shm")
"""Memory that a machine's processes share on Linux. A container usually has one of its own."""
MOST_WORKERS = 8
"""Each reads every other's gradients, so with many a ring is better."""
SPIN_SECONDS = 0.005
"""Workers on cores of their own arrive within this time, and being woken up would take longer than the sum."""
NAP_SECONDS = 50e-6
LOOK_SECONDS = 1.0
"""How often a worker that waits looks whether the others are still there."""
TIMEOUT_SECONDS = 1800.0
"""As torch's process groups have it."""
_LINE = 64
"""Bytes that processors fetch at once: two workers' counters aren't neighbours in one."""
_LOCK = threading.Lock()


def meet(rank: int, world_size: int, parameters: Sequence[nn.Parameter]) -> SharedMean | None:
    """All workers call this together. None, for all of them, where they have no memory in common or it is full."""
    usual = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    if not usual or world_size > MOST_WORKERS or fcntl is None:
        return None
    size = _offset(world_size) + 2 * world_size * sum(p.numel() for p in parameters) * 4
    name: list[str | None] = [_created(size) if rank == 0 else None]
    dist.broadcast_object_list(name, 0)
    file = None
    if name[0] is not None:
        with contextlib.suppress(OSError):
            file = open(FOLDER / name[0], "r+b", buffering=0)  # noqa: SIM115
    everyone = torch.tensor([file is not None], dtype=torch.int32)
    dist.all_reduce(everyone, op=dist.ReduceOp.MIN)
    if rank == 0 and name[0] is not None:
        (FOLDER / name[0]).unlink(missing_ok=True)
    if file is None or not everyone.item():
        return None
    mean = SharedMean(rank, world_size, parameters, file)
    dist.barrier()  # so that none looks for another's lock before it is taken
    return mean


def _created(size: int) -> str | None:
    """The name of a new file of `size` zero bytes, None where it would take more than half of what is free: Ray keeps
    its objects there, too."""
    name = f"crayon-{token_hex(16)}"
    try:
        free = os.statvfs(FOLDER)
        if 2 * size > free.f_bavail * free.f_frsize:
            return None
        file = os.open(FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError:
        return None
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:
        (FOLDER / name).unlink(missing_ok=True)
        return None
    finally:
        os.close(file)
    return name


def _fence() -> None:
    """What this thread did to memory before is done before what it does after, where the processor doesn't promise that
    (ARM): nothing moves below the first release or above the second acquisition, and these keep their order."""
    for _ in range(2):
        with _LOCK:
            pass


def _offset(world_size: int) -> int:
    """Where the gradients begin, after the counters."""
    return -(-world_size * _LINE // mmap.PAGESIZE) * mmap.PAGESIZE


class SharedMean:
    """Calling it replaces the gradients of `parameters` (float32) by their means over all workers.

    Every worker sums in the order of ranks, so that all have the same bits. There is room for two turns: a worker that
    writes the next one's can't disturb another that still reads this one's, and when it writes the one after that, all
    have been to the next. Raises RuntimeError when another worker has ended, or can't be waited for any longer.
    """

    def __init__(self, rank: int, world_size: int, parameters: Sequence[nn.Parameter], file: BinaryIO):
        self.rank, self.world_size, self.parameters = rank, world_size, list(parameters)
        self._file = file
        # The kernel gives it back when this process ends, however it ends.
        fcntl.lockf(file, fcntl.LOCK_EX, 1, rank)
        self._memory = mmap.mmap(file.fileno(), 0)
        counters = memoryview(self._memory)[: _offset(world_size)].cast("q")
        self._turns = counters[:: _LINE // counters.itemsize]
        total = sum(p.numel() for p in self.parameters)
        values = torch.frombuffer(self._memory, dtype=torch.float32, offset=_offset(world_size))
        self._slots = values.view(2, world_size, total)
        self._mine = [self._as_parameters(slot[rank]) for slot in self._slots]
        self._mean = torch.empty(total)
        self._means = self._as_parameters(self._mean)
        self._turn = 0

    def _as_parameters(self, flat: Tensor) -> list[Tensor]:
        """Parts of `flat`, each with a parameter's shape and its order in memory."""
        parts = flat.split([p.numel() for p in self.parameters])
        return [
            part.as_strided(p.shape, p.stride(), part.storage_offset())
            for part, p in zip(parts, self.parameters, strict=True)
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        self._turn += 1
        slots = self._slots[self._turn % 2]
        torch._foreach_copy_(self._mine[self._turn % 2], [p.grad for p in self.parameters])
        _fence()
        self._turns[self.rank] = self._turn
        self._wait()
        torch.add(slots[0], slots[1], out=self._mean)
        for slot in slots[2:]:
            self._mean.add_(slot)
        self._mean.mul_(1 / self.world_size)
        for parameter, mean in zip(self.parameters, self._means, strict=True):
            parameter.grad = mean

    def _wait(self) -> None:
        begun = looked = time.monotonic()
        for rank in range(self.world_size):
            while self._turns[rank] < self._turn:
                now = time.monotonic()
                if now - begun < SPIN_SECONDS:
                    os.sched_yield()
                    continue
                time.sleep(NAP_SECONDS)
                if now - looked > LOOK_SECONDS:
                    looked = now
                    self._look(rank)
                if now - begun > TIMEOUT_SECONDS:
                    raise RuntimeError(
                        f"Worker {rank} hasn't averaged its gradients for {TIMEOUT_SECONDS:g} s."
                    )
        _fence()

    def _look(self, rank: int) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return  # It lives.
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, rank)
        if self._turns[rank] < self._turn:
            raise RuntimeError(f"Connection closed: worker {rank} has ended.")
