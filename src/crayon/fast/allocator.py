"""glibc's memory allocator, told to keep what training frees; and its memory in huge pages.

By default it gives large blocks back to the kernel when they are freed and asks for them anew, zeroed page by page, a
few times in each layer of every step. And a step goes through hundreds of megabytes, of which a processor knows the
places of 4 KiB pages for a few only, above all on virtual machines. With memory that is kept, in pages of 2 MiB, a step
on the CPU takes a quarter less time (benchmarks/LOG.md). Results are the same to the last bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MMAP_BYTES = 32 << 20
"""Blocks up to this size come from the heap, which stays; glibc takes no larger value."""
KEPT_BYTES = (1 << 31) - 1
"""Only more than this much free memory at the end of the heap is given back."""
PAD_BYTES = 64 << 20
"""The heap grows in steps of this size."""
ARENA_BYTES = 64 << 20
"""Heaps of threads begin at multiples of this."""

_HUGEPAGE, _COLLAPSE = 14, 25  # madvise; the second since Linux 6.1
HUGE_BYTES = 2 << 20
"""Other sizes (32 and 512 MiB on some ARM machines) would take memory that nobody asked for."""
GATHERED_AFTER = (3.0, 30.0)
"""Seconds. Shorter runs would not get back what it costs, .2 to 1 s beside training; evaluations add memory later."""


def keep_freed_memory() -> bool:
    """For the rest of this process. Returns whether it could be set: with another C library nothing happens."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_THRESHOLD, MMAP_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES), (_TOP_PAD, PAD_BYTES))
    return all(mallopt(parameter, value) for parameter, value in wanted)


def use_huge_pages() -> bool:
    """Move what the heaps of this process hold by now into huge pages.

    Returns whether this system has them, and lets a process ask for them. What the heaps grow by later comes in small
    pages again.
    """
    if not _offered():
        return False
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _heaps():
        start = -(-start // HUGE_BYTES) * HUGE_BYTES
        size = (end - start) // HUGE_BYTES * HUGE_BYTES
        if size > 0 and madvise(start, size, _HUGEPAGE) == 0:
            # Parts that nothing was written to yet are left out, and count as a failure.
            madvise(start, size, _COLLAPSE)
    return True


def use_huge_pages_soon(after: Sequence[float] = GATHERED_AFTER) -> threading.Thread:
    """`use_huge_pages` so many seconds from now, in a thread beside everything else."""

    def gather() -> None:
        begun = time.monotonic()
        for seconds in after:
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
            if not use_huge_pages():
                return

    thread = threading.Thread(target=gather, name="huge-pages", daemon=True)
    thread.start()
    return thread


def _offered() -> bool:
    settings = Path("/sys/kernel/mm/transparent_hugepage")
    with contextlib.suppress(OSError, ValueError):
        allowed = "[never]" not in (settings / "enabled").read_text()
        return allowed and int((settings / "hpage_pmd_size").read_text()) == HUGE_BYTES
    return False


def _heaps() -> Iterator[tuple[int, int]]:
    """First and last address of the heap, and of those of glibc that threads have."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, _, inode, *name = line.split()
        start, end = (int(address, 16) for address in addresses.split("-"))
        threads = not name and start % ARENA_BYTES == 0
        if rights == "rw-p" and inode == "0" and (name == ["[heap]"] or threads):
            yield start, end
