"""Gradients averaged in memory that workers share. Real processes, no Ray."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import python
from test_trainer import final, fit_on, same

from crayon.launch.workers import BROKEN
from crayon.training import shared_mean

WORKER = """
import os, sys, time, torch, torch.distributed as dist
from torch import nn
from crayon.training import shared_mean
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD"])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + os.environ["STORE"], rank=rank, world_size=world)
weights = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
parameters = [nn.Parameter(weights), nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(()))]
mean = shared_mean.meet(rank, world, parameters)
"""
AVERAGE = """
def gradients(worker, turn):
    random = torch.Generator().manual_seed(1000 * worker + turn)
    return [torch.randn(p.shape, generator=random) for p in parameters]
for turn in range(30):
    if turn % 7 == rank:
        time.sleep(0.02)  # longer than the others spin
    for parameter, gradient in zip(parameters, gradients(rank, turn)):
        parameter.grad = gradient
    mean()
    for i, parameter in enumerate(parameters):
        total = gradients(0, turn)[i]
        for worker in range(1, world):
            total = total + gradients(worker, turn)[i]
        assert torch.equal(parameter.grad, total * (1 / world)), (turn, i)
        assert parameter.grad.stride() == parameter.stride()
print(os.readlink(f"/proc/self/fd/{mean._file.fileno()}").partition(" ")[2], flush=True)
os._exit(0)
"""
WAIT = """
for parameter in parameters:
    parameter.grad = torch.ones_like(parameter)
mean()
print("ready", flush=True)
if rank == 1:
    time.sleep(600)
try:
    mean()
except RuntimeError as error:
    print(error, flush=True)
os._exit(0)
"""
NONE = """
print(mean, flush=True)
dist.barrier()
os._exit(0)
"""


def gang(code: str, world: int, folder: Path, **env: str) -> list:
    common = {"WORLD": str(world), "STORE": str(folder / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    return [python(WORKER + code, RANK=str(rank), **common, **env) for rank in range(world)]


@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_is_exact_on_every_worker_and_leaves_no_file(world, tmp_path):
    for process in gang(AVERAGE, world, tmp_path):
        out, err = process.communicate(timeout=120)
        assert out == "(deleted)\n", out + err


def test_a_worker_that_was_killed_is_noticed(tmp_path):
    waiting, victim = gang(WAIT, 2, tmp_path)
    assert waiting.stdout.readline() == victim.stdout.readline() == "ready\n"
    time.sleep(1.5)  # It lives, and is waited for.
    assert waiting.poll() is None
    victim.send_signal(signal.SIGKILL)
    out, err = waiting.communicate(timeout=30)
    assert out == "Connection closed: worker 1 has ended.\n", err
    assert re.search(BROKEN, out, re.IGNORECASE)  # told as a worker that was lost
    victim.communicate()


def test_where_one_worker_has_no_such_memory_none_uses_it(tmp_path):
    elsewhere = f"from pathlib import Path\nif rank: shared_mean.FOLDER = Path({str(tmp_path)!r})\n"
    code = elsewhere + "mean = shared_mean.meet(rank, world, parameters)\n" + NONE
    for process in gang(code, 2, tmp_path):
        out, err = process.communicate(timeout=60)
        assert out == "None\n", out + err


def full(*arguments):
    raise OSError(28, "No space left on device")


def test_no_room_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_mean, "FOLDER", tmp_path)
    free = os.statvfs(tmp_path)
    assert shared_mean._created(free.f_bavail * free.f_frsize) is None  # it fits, and would leave nothing
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert shared_mean._created(4096) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shared_mean, "FOLDER", tmp_path / "none")
    assert shared_mean._created(4096) is None


def test_trained_weights_are_those_of_distributed_data_parallel(tmp_path):
    """For two workers: halves and their sum are rounded alike in either order."""
    changes = {"epochs": 1}
    for kind in ("mnist", "gan"):
        fit_on(2, tmp_path, (kind, tmp_path / kind / "shared", 0, changes))
        fit_on(
            2,
            tmp_path,
            (kind, tmp_path / kind / "gloo", 0, changes),
            before="from crayon.training import shared_mean\nshared_mean.MOST_WORKERS = 0",
        )
        assert same(final(tmp_path / kind / "shared"), final(tmp_path / kind / "gloo"))
        assert all(torch.isfinite(t).all() for t in final(tmp_path / kind / "gloo").values())
