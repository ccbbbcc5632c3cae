"""Memory that doesn't grow with the data: real processes that may have less of it than the training set takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pixels, python

from crayon.data import ImageSet
from crayon.data.arrays import cached_set
from crayon.data.loader import resident
from crayon.data.procedural.shapes import CLASSES, VERSION
from crayon.data.sources import TEST_START

MIB = 2**20
IMAGES, SIDE = 10_000, 256
"""1,875 MiB of pixels: a hole in a file, which takes no disk."""
TRAIN = """
import itertools, os, resource
from pathlib import Path
rank, group, limit = int(os.environ["RANK"]), os.environ["GROUP"], int(os.environ["LIMIT"])
if group:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
else:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
import torch, torch.distributed as dist
from crayon.training import worker as session
from crayon.training.collectives import Group
from crayon.errors import Stopped
from helpers import tiny
from crayon.system.runfolder import RunFolder
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + os.environ["STORE"], rank=rank, world_size=2)
changes = {"data__size": IMAGES, "data__image_size": PIXELS, "data__residency": os.environ["RESIDENCY"]}
changes |= {"augment__flip": False, "augment__shift": 0, "global_batch_size": 16}
config = tiny("cifar10", storage=os.environ["RUNS"], name="run", **changes)
splits = session.load_data(config)
run = RunFolder(config.storage, "run")
run.create()
trainer = session.build(config, splits, run, group=Group(rank, 2), should_stop=lambda: trainer.step >= 16)
try:
    trainer.fit()
except Stopped:
    pass
seen = sum(len(batch.images) for batch in itertools.islice(trainer.loader.epoch(1), 200))
print(trainer.step, seen, splits.train.nbytes, flush=True)
dist.barrier()
os._exit(0)
""".replace("IMAGES", str(IMAGES)).replace("PIXELS", str(SIDE))


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[str]:
    """A control group whose processes have `limit` bytes of memory together. Skips where none can be made."""
    for base, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(base, f"crayon-test-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / name).write_text(str(limit))
            except OSError:
                group.rmdir()
                raise
            break
    else:
        pytest.skip("no control group can be made here")
    try:
        yield str(group)
    finally:
        group.rmdir()


def holes(name: str, start: int, count: int) -> None:
    """A set of `shapes` as it lies in the cache, without the drawing: all black."""

    def build(folder: Path) -> tuple[np.ndarray, tuple[str, ...]]:
        shape = (count, 3, SIDE, SIDE)
        np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        return np.arange(count) % len(CLASSES), CLASSES

    cached_set(f"shapes/{name}", (VERSION, start, count, SIDE, 3), build)


@pytest.mark.parametrize(
    ("bound", "residency"), [pytest.param("group", "auto", marks=pytest.mark.slow), ("process", "stream")]
)
def test_two_workers_train_on_more_than_the_memory_they_may_have(bound, residency, tmp_path, own_cache):
    """A limit on both workers together, page cache and all, or on each one's own data."""
    holes("train", 0, IMAGES)
    holes("test", TEST_START, 2_000)
    limit = 1_664 * MIB
    with memory_group(limit) if bound == "group" else contextlib.nullcontext("") as group:
        env = {"GROUP": group, "LIMIT": str(limit), "RESIDENCY": residency, "GLOO_SOCKET_IFNAME": "lo"}
        env |= {"STORE": str(tmp_path / "store"), "RUNS": str(tmp_path / "runs")}
        workers = [python(TRAIN, RANK=str(rank), **env) for rank in range(2)]
        ends = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(err for _, err in ends)
    for out, _ in ends:
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
real, fake = torch.randn(2, 12_000, 16, generator=random)
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
    """One matrix of all pairs would be 1,100 MiB; 150 MiB are allowed."""
    process = python(MEASURE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_rows_are_gathered_where_they_are_used(tmp_path):
    """On rank 0 alone, in the split's order; and not at all at an epoch's end that needs the sums only."""
    code = GATHER.replace("STORE", str(tmp_path / "store"))
    workers = [python(code, RANK=str(rank), GLOO_SOCKET_IFNAME="lo") for rank in range(2)]
    ends = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(err for _, err in ends)
    assert [out.split() for out, _ in ends] == [["labels", "whole"], ["nothing"]]


GATHER = """
import os, torch, torch.distributed as dist
from crayon.training import worker as session; from crayon import tasks
from crayon.training.collectives import Group
from crayon.training.evaluation import evaluate
from helpers import tiny
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://STORE", rank=rank, world_size=2)
config = tiny("mnist", eval__batch_size=7)
splits = session.load_data(config)
torch.manual_seed(0)
task = tasks.build(config, splits.info())
few = splits.val.select(torch.arange(20))  # three batches: two of rank 0's, one of rank 1's
both = evaluate(task, task.networks, few, config, Group(rank, 2))
assert evaluate(task, task.networks, few, config, Group(rank, 2), rows=False).rows == {}
one = evaluate(task, task.networks, few.select(torch.arange(5)), config, Group(rank, 2))  # none of rank 1's
alone = evaluate(task, task.networks, few, config, Group())
assert all(torch.equal(both.sums[name], value) for name, value in alone.sums.items() if value.dtype == torch.int64)
if rank == 0:
    assert set(both.rows) == set(alone.rows) and len(one.rows["labels"]) == 5
    assert torch.equal(both.rows["labels"], few.labels)
    same = all(torch.equal(both.rows[name], value) for name, value in alone.rows.items())
    print("labels", "whole" if same else "differ", flush=True)
else:
    print("nothing" if both.rows == one.rows == {} else "rows", flush=True)
dist.barrier()
os._exit(0)
"""
