"""Checkpoints written beside training: as the state was, one after the other, and with what went wrong told."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from disks import file_size_limit, s3_server
from helpers import tiny
from test_trainer import final, make, same

from crayon import checkpoint
from crayon.checkpoint import Checkpoint
from crayon.errors import RunFailed
from crayon.saver import Saver
from crayon.storage import RunFolder


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
    saver, weights, found = Saver(run, keep=2), torch.zeros(1000), at(1, torch.empty(0))
    found.tensors["weights"]["w"] = weights
    saver.put(found, best=True)
    weights.fill_(7.0)  # the next steps of training
    found.state["list"].append(2)
    assert told.wait(60)
    second = threading.Thread(target=saver.put, args=(at(2, weights),))
    second.start()  # waits for the first
    with s3_server(port):
        second.join(60)
        saver.wait()
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "there"))
        stored = RunFolder(f"s3://bucket{query}", "run")
        stored.pull()
    old, new = (checkpoint.load(entry) for entry in checkpoint.entries(stored))
    assert (old.step, new.step) == (1, 2) and old.state["list"] == [1]
    assert bool((old.tensors["weights"]["w"] == 0).all()) and bool((new.tensors["weights"]["w"] == 7).all())


def test_what_went_wrong_is_raised_once_by_the_next(tmp_path):
    run = RunFolder(str(tmp_path), "run")
    run.create()
    saver = Saver(run, keep=2)
    saver.put(at(1, torch.ones(10)))
    saver.wait()
    with file_size_limit(1000):
        saver.put(at(2, torch.ones(10_000)))
        saver._thread.join()
    with pytest.raises(RunFailed, match=r"step-000000002 .*checkpoints written before are whole"):
        saver.put(at(3, torch.ones(10)))
    saver.put(at(4, torch.ones(10)))
    saver.wait()
    assert [entry.step for entry in checkpoint.entries(run)] == [1, 4]


def test_a_run_whose_disk_fails_in_the_middle_ends_there_and_goes_on(tmp_path):
    """The failure is told at the latest by the next epoch's end, and the run goes on from the checkpoint before."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make(tiny("mnist", epochs=6), whole).fit()
    trainer = make(tiny("mnist", epochs=6), broken)
    for _ in range(2):
        trainer.train_epoch()
    trainer.saver.wait()
    with file_size_limit(8_000), pytest.raises(RunFailed, match="checkpoints written before are whole"):
        for _ in range(4):
            trainer.train_epoch()
    assert trainer.epoch <= 4
    assert checkpoint.latest(trainer.run).step == 2 * trainer.steps_per_epoch
    make(tiny("mnist", epochs=6), broken).fit()
    assert same(final(broken), final(whole))


def test_training_ends_with_its_last_checkpoint_written(tmp_path):
    begun = time.monotonic()
    trainer = make(tiny("mnist", epochs=2), tmp_path)
    trainer.fit()
    assert checkpoint.latest(trainer.run).step == trainer.total_steps, time.monotonic() - begun
