"""Memory that doesn't grow with the data: real processes that may have less of it than the training set takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gang import gang
from helpers import pixels, python

from crayon.data import ImageSet
from crayon.data.arrays import DIGEST, HASHES, Built, cached_set
from crayon.data.decode import Form
from crayon.data.loader import resident
from crayon.data.procedural.shapes import CLASSES, VERSION
from crayon.data.sources import TEST_START

MIB = 2**20
IMAGES, SIDE = 10_000, 256
"""1,875 MiB of pixels: a hole in a file, which takes no disk."""
LIMIT = """
import os, resource
from pathlib import Path
group, limit = os.environ["GROUP"], int(os.environ["LIMIT"])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if group:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
"""
TRAIN = """
import itertools
from crayon.training import worker
from crayon.errors import Stopped
from crayon.system.runfolder import RunFolder
changes = {"data__size": IMAGES, "data__image_size": PIXELS, "data__residency": os.environ["RESIDENCY"]}
changes |= {"augment__flip": False, "augment__shift": 0, "global_batch_size": 16}
config = tiny("cifar10", storage=os.environ["RUNS"], name="run", **changes)
splits = worker.load_data(config)
run = RunFolder(config.storage, "run")
run.create()
trainer = worker.build(config, splits, run, group=group, should_stop=lambda: trainer.step >= 16)
try:
    trainer.fit()
except Stopped:
    pass
seen = sum(len(batch.images) for batch in itertools.islice(trainer.loader.epoch(1), 200))
print(trainer.step, seen, splits.train.nbytes)
""".replace("IMAGES", str(IMAGES)).replace("PIXELS", str(SIDE))


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[str]:
    """A control group whose processes have `limit` bytes of memory together; empty where none can be made."""
    for base, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(base, f"crayon-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield str(group)
        finally:
            group.rmdir()
        return
    yield ""


def holes(name: str, start: int, count: int) -> None:
    """A set of `shapes` as it lies in the cache, without the drawing: all black."""

    def build(folder: Path) -> Built:
        shape = (count, 3, SIDE, SIDE)
        np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        (folder / DIGEST).write_text("0")
        np.save(folder / HASHES, np.arange(count))
        return np.arange(count) % len(CLASSES), CLASSES, None

    cached_set(f"shapes/{name}", (VERSION, start, count), Form(SIDE, SIDE, 3), build)


@pytest.mark.slow
def test_two_workers_train_on_more_than_the_memory_they_may_have(tmp_path, own_cache):
    """A limit on each one's own data and, where one can be set, on both together, page cache and all."""
    holes("train", 0, IMAGES)
    holes("test", TEST_START, 2_000)
    limit = 1_664 * MIB
    with memory_group(limit) as group:
        env = {"GROUP": group, "LIMIT": str(limit), "RUNS": str(tmp_path / "runs")}
        env["RESIDENCY"] = "auto" if group else "stream"
        for out in gang(TRAIN, 2, tmp_path, before=LIMIT, **env):
            steps, seen, size = out.split()
            assert (steps, seen) == ("16", "1600") and int(size) > limit


def test_a_device_gets_its_copy_piece_by_piece(monkeypatch):
    """The pieces in their order, of a selection, the last one smaller; each is asked for by its own few indices."""
    monkeypatch.setattr("crayon.data.images.PART_BYTES", 1000)
    storage = torch.randint(0, 256, (200, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    images = ImageSet("x", storage, torch.zeros(200, dtype=torch.int64)).select(torch.arange(0, 200, 2))
    asked, gather = [], ImageSet.gather
    monkeypatch.setattr(ImageSet, "gather", lambda self, rows: asked.append(len(rows)) or gather(self, rows))
    copy = resident(images, torch.device("cpu"))
    assert asked == [5] * 20
    assert torch.equal(copy, pixels(images)) and copy.is_contiguous()


MEASURE = """
import resource, torch
from crayon.tasks.adversarial.distances import *
torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
real, fake = torch.randn(2, 8_000, 16, generator=random)
def own():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmData"))
def few(count):
    frechet_distance(real[:count], fake[:count]), kernel_distance(real[:count], fake[:count])
    manifold_metrics(real[:count], fake[:count]), authenticity(real[:count], fake[:count])
few(500)  # what libraries set up on first use
limit = own() + 150 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
few(20_000)
"""


@pytest.mark.slow
def test_figures_of_many_images_take_little_more_memory_than_their_features():
    """One matrix of all pairs would be 490 MiB; 150 MiB are allowed."""
    process = python(MEASURE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
