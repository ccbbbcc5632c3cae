"""Checkpoints written beside training: as the state was, in order, the best always, and with what went wrong told."""

from __future__ import annotations

import random
import signal
import subprocess
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


def at(step: int, size: int = 10) -> Checkpoint:
    weights = {"w": torch.full((size,), float(step))}
    return Checkpoint(step, {"weights": weights}, {"list": [step]}, {"job": "mnist"})


@pytest.fixture
def run(tmp_path):
    run = RunFolder(str(tmp_path), "run")
    run.create()
    return run


def test_a_store_that_is_away_holds_up_no_step_and_gets_what_was_then(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "here"))
    with s3_server() as query:
        port = int(query.partition("&")[0].rpartition(":")[2])
        run = RunFolder(f"s3://bucket{query}", "run")
        run.create()
    told = threading.Event()
    run.tell = lambda text: told.set()
    writer, found = Saver(run, keep=2), at(1)
    writer.save_async(found, best=True)
    found.tensors["weights"]["w"].fill_(7.0)  # the next steps of training
    found.state["list"].append(2)
    assert told.wait(60)
    writer.save_async(at(2))
    with s3_server(port):
        writer.wait()
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "there"))
        stored = RunFolder(f"s3://bucket{query}", "run")
        stored.pull()
    kept = [checkpoint.load(entry) for entry in checkpoint.entries(stored)]
    assert [(old.step, old.state["list"]) for old in kept] == [(1, [1]), (2, [2])]
    assert [old.tensors["weights"]["w"].unique().tolist() for old in kept] == [[1.0], [2.0]]


def test_what_went_wrong_is_raised_once_by_the_next(run):
    writer = Saver(run, keep=9)
    writer.save_async(at(1))
    writer.wait()
    with file_size_limit(1000):
        writer.save_async(at(2, 10_000), best=True)
        writer.save_async(at(3))  # it may say that 2 is the best, and so must not be there without it
        while writer._thread is not None:
            writer._hurry = True
            time.sleep(0.01)
    with pytest.raises(RunFailed, match=r"step-000000002.* checkpoints written before are whole"):
        writer.save_async(at(4))
    writer.save_async(at(5))
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


def test_of_what_waits_for_a_slow_disk_the_best_and_the_newest_are_written_in_order(run, gate):
    writer = Saver(run, keep=9)
    writer.save_async(at(1), best=True)
    while writer._waiting:
        time.sleep(0.001)  # it is being written
    for step, best in ((2, False), (3, True), (4, False), (5, True), (6, False), (7, False)):
        writer.save_async(at(step), best=best)
    gate.set()
    writer.wait()
    assert gate.steps == [1, 5, 7]
    found = checkpoint.entries(run)
    assert [(entry.step, entry.best) for entry in found] == [(1, True), (5, True), (7, False)]
    assert [float(checkpoint.load(e).tensors["weights"]["w"][0]) for e in found] == [1, 5, 7]


def test_writing_begins_no_more_often_than_it_should_unless_it_is_waited_for(run, gate, monkeypatch):
    monkeypatch.setattr(saver, "SAVE_SECONDS", 1e6)
    gate.set()
    writer = Saver(run, keep=9)
    writer.save_async(at(1))
    deadline = time.monotonic() + 20
    while gate.steps != [1] and time.monotonic() < deadline:
        time.sleep(0.001)
    writer.save_async(at(2), best=True)
    writer.save_async(at(3))
    time.sleep(0.1)
    assert gate.steps == [1]
    writer.wait()
    assert gate.steps == [1, 2, 3]
    writer.save_async(at(4))
    time.sleep(0.1)
    assert gate.steps == [1, 2, 3]  # nobody waits any more
    writer.wait()


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
    code = """
import time
from pathlib import Path
from helpers import tiny
from test_trainer import make
from crayon.system import files; from crayon.training import loop, saver
flush = files.sync
files.sync = lambda path: (time.sleep(0.01), flush(path))
saver.SAVE_SECONDS = loop.SAVE_SECONDS = 0.02
print("ready", flush=True)
make(tiny("mnist", epochs=25, checkpoint__every_minutes=1e-4), Path({folder!r})).fit()
"""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    make(tiny("mnist", epochs=25), calm).fit()
    run, draw, kills = RunFolder(str(killed), "run"), random.Random(1), 0
    while True:
        process = python(code.format(folder=str(killed)))
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        try:
            process.wait(draw.uniform(0.1, 0.6) if kills < 5 else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        _, errors = process.communicate()
        newest = checkpoint.latest(run)
        if newest is not None:
            told = checkpoint.load(newest, groups=[]).state["best"]
            assert told is None or told["step"] == checkpoint.best(run).step
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, errors
    assert kills > 0
    assert same(final(killed), final(calm))
    assert without_clocks(rows(killed / "run")) == without_clocks(rows(calm / "run"))
    best, wanted = (checkpoint.best(RunFolder(str(folder), "run")) for folder in (killed, calm))
    assert (best.step, best.digests) == (wanted.step, wanted.digests)


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
