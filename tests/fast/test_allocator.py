"""Memory that was freed stays with the process."""

from __future__ import annotations

import os
import platform

import pytest
from helpers import python

from crayon.fast import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
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


def test_freed_blocks_are_used_again_without_page_faults():
    out, err = python(CODE).communicate(timeout=60)
    plain, kept = map(int, out.split())
    assert kept < 100 < plain, out + err


def test_children_are_told_to_use_huge_pages_unless_the_user_has_settings_of_their_own(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    allocator.use_huge_pages_in_children()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"
    monkeypatch.delenv("GLIBC_TUNABLES")
    allocator.use_huge_pages_in_children()
    out, err = python(CODE).communicate(timeout=60)
    assert len(out.split()) == 2, out + err  # what glibc doesn't know ends nothing
    assert os.environ["GLIBC_TUNABLES"].startswith("glibc.malloc.hugetlb=")
