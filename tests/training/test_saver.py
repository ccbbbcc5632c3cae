"""Checkpoints written beside training: as the state was, in order, the best always, and with what went wrong told."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest
import torch
from disks import file_size_limit, s3_server
from helpers import python, rows, tiny
from test_trainer import final, make, same, without_clocks

from crayon.errors import RunFailed
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint, saver
from crayon.training.checkpoint import Checkpoint
from crayon.training.saver import Saver


def at(step: int, weights: torch.Tensor) -> Checkpoint:
    return Checkpoint(step, {"weights": {"w": weights}}, {"step": step, "list": [step]}, {"job": "mnist"})


def test_a_store_that_is_away_holds_up_no_step_and_gets_what_was_then(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "here"))
    with s3_server() as query:
        port = int(query.partition("&")[0].rpartition(":")[2])
        run = RunFolder(f"s3://bucket{query}", "run")
        run.create()
    told = threading.Event()
    run.tell = lambda text: told.set()
    writer, weights, found = Saver(run, keep=2), torch.zeros(1000), at(1, torch.empty(0))
    found.tensors["weights"]["w"] = weights
    writer.save_async(found, best=True)
    weights.fill_(7.0)  # the next steps of training
    found.state["list"].append(2)
    assert told.wait(60)
    writer.save_async(at(2, weights))
    with s3_server(port):
        writer.wait()
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "there"))
        stored = RunFolder(f"s3://bucket{query}", "run")
        stored.pull()
    old, new = (checkpoint.load(entry) for entry in checkpoint.entries(stored))
    assert (old.step, new.step) == (1, 2) and old.state["list"] == [1]
    assert bool((old.tensors["weights"]["w"] == 0).all()) and bool((new.tensors["weights"]["w"] == 7).all())


def test_what_went_wrong_is_raised_once_by_the_next(tmp_path):
    run = RunFolder(str(tmp_path), "run")
    run.create()
    writer = Saver(run, keep=9)
    writer.save_async(at(1, torch.ones(10)))
    writer.wait()
    with file_size_limit(1000):
        writer.save_async(at(2, torch.ones(10_000)), best=True)
        writer.save_async(
            at(3, torch.ones(10))
        )  # which may say that 2 is the best, and so must not be there without it
        while writer._thread is not None:
            writer._hurry = True
            time.sleep(0.01)
    with pytest.raises(RunFailed, match=r"step-000000002.* checkpoints written before are whole"):
        writer.save_async(at(4, torch.ones(10)))
    writer.save_async(at(5, torch.ones(10)))
    writer.wait()
    assert [entry.step for entry in checkpoint.entries(run)] == [1, 5]


@pytest.fixture
def gate(monkeypatch):
    """A disk that writes nothing until this is set; `gate.steps`: of what was written, in order."""
    gate, real = threading.Event(), checkpoint.save
    gate.steps = []

    def save(run, found, **options):
        assert gate.wait(20)
        gate.steps.append(found.step)
        return real(run, found, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    return gate


def test_of_what_waits_for_a_slow_disk_the_best_and_the_newest_are_written_in_order(tmp_path, gate):
    run = RunFolder(str(tmp_path), "run")
    run.create()
    writer = Saver(run, keep=9)
    writer.save_async(at(1, torch.ones(10)), best=True)
    while writer._waiting:
        time.sleep(0.001)  # it is being written
    for step, best in ((2, False), (3, True), (4, False), (5, True), (6, False), (7, False)):
        writer.save_async(at(step, torch.full((10,), step)), best=best)
    gate.set()
    writer.wait()
    assert gate.steps == [1, 5, 7]
    assert [(entry.step, entry.best) for entry in checkpoint.entries(run)] == [
        (1, True),
        (5, True),
        (7, False),
    ]
    assert [float(checkpoint.load(e).tensors["weights"]["w"][0]) for e in checkpoint.entries(run)] == [
        1,
        5,
        7,
    ]


def test_writing_begins_no_more_often_than_it_should_unless_it_is_waited_for(tmp_path, gate, monkeypatch):
    monkeypatch.setattr(saver, "SAVE_SECONDS", 1e6)
    gate.set()
    run = RunFolder(str(tmp_path), "run")
    run.create()
    writer = Saver(run, keep=9)
    writer.save_async(at(1, torch.ones(10)))
    deadline = time.monotonic() + 20
    while gate.steps != [1] and time.monotonic() < deadline:
        time.sleep(0.001)
    writer.save_async(at(2, torch.ones(10)), best=True)
    writer.save_async(at(3, torch.ones(10)))
    time.sleep(0.1)
    assert gate.steps == [1]
    writer.wait()
    assert gate.steps == [1, 2, 3]
    writer.save_async(at(4, torch.ones(10)))
    time.sleep(0.1)
    assert gate.steps == [1, 2, 3]
    writer.wait()
    assert gate.steps == [1, 2, 3, 4]


def test_no_epoch_waits_for_the_disk(tmp_path, gate):
    """While nothing can be written all epochs but the last are trained; then the last and the best are there."""
    trainer = make(tiny("mnist", epochs=8), tmp_path)
    for _ in range(7):
        trainer.train_epoch()
    assert gate.steps == []
    gate.set()
    trainer.fit()
    assert checkpoint.latest(trainer.run).step == trainer.total_steps
    assert checkpoint.best(trainer.run).step == trainer.selection.best["step"]


def test_a_slow_disk_and_kill_9_lose_no_best(tmp_path):
    """Each file takes its time to be flushed, and the run is killed again and again. Whatever is on the disk then, the
    best that the newest checkpoint knows of is there; in the end all is as undisturbed."""
    config = tiny("mnist", epochs=25)
    make(config, tmp_path / "calm").fit()
    folder = tmp_path / "killed"
    code = f"""
import time
from pathlib import Path
from helpers import tiny
from test_trainer import make
from crayon.system import files; from crayon.training import saver; from crayon.training import loop as trainer
flush = files.sync
files.sync = lambda path: (time.sleep(0.01), flush(path))
saver.SAVE_SECONDS = trainer.SAVE_SECONDS = 0.02
print("ready", flush=True)
make(tiny("mnist", epochs=25), Path({str(folder)!r})).fit()
"""
    run, draw, kills = RunFolder(str(folder), "run"), random.Random(1), 0
    while True:
        process = python(code)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        deadline = time.monotonic() + (draw.uniform(0.05, 0.6) if kills < 5 else 120)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        newest = checkpoint.latest(run)
        if newest is not None:
            told = checkpoint.load(newest, groups=[]).state["best"]
            assert told["step"] == checkpoint.best(run).step
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills > 0
    assert same(final(folder), final(tmp_path / "calm"))
    assert without_clocks(rows(folder / "run")) == without_clocks(rows(tmp_path / "calm" / "run"))
    best, wanted = (checkpoint.best(RunFolder(str(f), "run")) for f in (folder, tmp_path / "calm"))
    assert best.step == wanted.step
    assert best.digests == wanted.digests


def test_a_run_whose_disk_fails_in_the_middle_ends_there_and_goes_on(tmp_path):
    """The failure is told at the latest by its end, and the run goes on from the checkpoint before."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make(tiny("mnist", epochs=6), whole).fit()
    trainer = make(tiny("mnist", epochs=6), broken)
    for _ in range(2):
        trainer.train_epoch()
    trainer.saver.wait()
    kept = checkpoint.latest(trainer.run).step
    with file_size_limit(8_000), pytest.raises(RunFailed, match="checkpoints written before are whole"):
        for _ in range(4):
            trainer.train_epoch()
    assert checkpoint.latest(trainer.run).step == kept
    make(tiny("mnist", epochs=6), broken).fit()
    assert same(final(broken), final(whole))


def test_training_ends_with_its_last_checkpoint_written(tmp_path):
    begun = time.monotonic()
    trainer = make(tiny("mnist", epochs=2), tmp_path)
    trainer.fit()
    assert checkpoint.latest(trainer.run).step == trainer.total_steps, time.monotonic() - begun
