"""Memory that was freed stays with the process, in huge pages."""

from __future__ import annotations

import platform
import re
import threading

import pytest
from helpers import python, tiny

from crayon.fast import allocator
from crayon.system.runfolder import RunFolder
from crayon.training import worker

CODE = """
import resource
import torch
from crayon.fast.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(1 << 21).fill_(1.0)  # 8 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
assert keep_freed_memory()
faults()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_blocks_are_used_again_without_page_faults():
    out, err = python(CODE).communicate(timeout=60)
    plain, kept = map(int, out.split())
    assert kept < 100 < plain, out + err


HUGE = """
import time
import torch
from crayon.fast.allocator import keep_freed_memory, use_huge_pages, use_huge_pages_soon

def huge():
    return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith("AnonHuge")) >> 10

keep_freed_memory()
torch.manual_seed(0)
kept = [torch.rand(1 << 20) for _ in range(16)]  # 64 MiB
sums = [float(k.sum()) for k in kept]
before = huge()
use_huge_pages_soon(after=[0.0]).join()
print(before, huge(), use_huge_pages(), sums == [float(k.sum()) for k in kept])
"""


RELEASE = [int(number) for number in re.findall(r"\d+", platform.release())]
GATHERS = platform.system() == "Linux" and RELEASE[:2] >= [6, 1] and allocator._offered()


@pytest.mark.skipif(not GATHERS, reason="no huge pages of 2 MiB that can be asked for")
def test_what_lies_in_the_heap_moves_into_huge_pages():
    out, err = python(HUGE).communicate(timeout=60)
    before, after, offered, same = out.split()
    assert (offered, same) == ("True", "True"), out + err
    assert int(after) - int(before) >= 32, out + err


def test_a_system_without_huge_pages_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "_offered", lambda: False)
    monkeypatch.setattr(allocator, "_heaps", lambda: pytest.fail("looked for memory"))
    assert allocator.use_huge_pages() is False
    allocator.use_huge_pages_soon(after=[0.0, 60.0]).join(timeout=10)


def test_training_on_the_cpu_moves_into_huge_pages(tmp_path):
    before, begun = set(threading.enumerate()), set()

    def look(event):
        begun.update(thread.name for thread in set(threading.enumerate()) - before)

    run = RunFolder(str(tmp_path), "run")
    run.create()
    config = tiny("mnist", epochs=1, storage=str(tmp_path), name="run")
    worker.train(config, run, measure=False, emit=look)
    assert "huge-pages" in begun
