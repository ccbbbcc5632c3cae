"""glibc's memory allocator, told to keep what training frees.

By default it gives large blocks back to the kernel when they are freed and asks for them anew, zeroed page by page, a
few times in each layer of every step: 12 to 20 % of a step on the CPU (benchmarks/LOG.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

from crayon.fast import enabled

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MMAP_BYTES = 32 << 20
"""Blocks up to this size come from the heap, which stays; glibc takes no larger value."""
KEPT_BYTES = (1 << 31) - 1
"""Only more than this much free memory at the end of the heap is given back."""
PAD_BYTES = 64 << 20
"""The heap grows in steps of this size."""


def keep_freed_memory() -> bool:
    """For the rest of this process. Returns whether it could be set: with another C library nothing happens."""
    if sys.platform != "linux" or not enabled():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_THRESHOLD, MMAP_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES), (_TOP_PAD, PAD_BYTES))
    return all(mallopt(parameter, value) for parameter, value in wanted)


def use_huge_pages_in_children() -> None:
    """Let processes that are started from now on have their heaps in pages of 2 MiB, 6 to 10 % of a step on the CPU:
    glibc reads this when a process starts. What the user set is left alone."""
    if enabled():
        os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
