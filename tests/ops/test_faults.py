"""Faults over the four jobs, at moments that no test has chosen. Minutes long: `pytest -m faults -n 0`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from disks import s3_server, small_disk
from helpers import JOBS, crayon, flags, rows, tiny
from nodes import Nodes
from test_launch import command
from test_nodes import Run
from test_trainer import final, fit_on, same
from wandb_server import Server

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint

pytestmark = pytest.mark.faults
EPOCHS = {"mnist": 600, "cifar10": 400, "autoencoder": 400, "gan": 150}
"""Some twenty seconds of training, for the faults to fall into."""
FEW = {job: epochs // 4 for job, epochs in EPOCHS.items()}


def chaos(job: str, folder: Path, *what: str, epochs: int, **env: str) -> dict:
    """The verdict of `crayon JOB chaos`, which must be good. Its moments are other ones each time."""
    seed = str(random.SystemRandom().randrange(10**6))
    config = tiny(job, storage=str(folder), name="r", workers=2, epochs=epochs)
    words = ["chaos", *flags(config), *what, "--chaos-seed", seed]
    end = crayon(job, *words, timeout=900, **{"OMP_NUM_THREADS": "1"} | env)
    said = f"--chaos-seed {seed}\n{end.stdout}{end.stderr}{(folder / 'r-chaos.log').read_text()[-3000:]}"
    print(said)
    assert end.returncode == 0 and "Traceback" not in said, said
    return json.loads((folder / "r-chaos" / "chaos.json").read_text())


@pytest.mark.parametrize("job", JOBS)
def test_killed_and_halted_at_random_moments(job, tmp_path):
    kinds = ("worker", "pause", "driver", "stop")
    verdict = chaos(job, tmp_path, "--kill", ",".join(kinds), "--times", "4", epochs=EPOCHS[job])
    assert verdict["complete"] and verdict["every_epoch_once"] and verdict["equal"] is True
    assert {fault["kind"] for fault in verdict["faults"]} == set(kinds)
    assert verdict["commands"] == 3 and verdict["resumed"] >= 1


@pytest.mark.parametrize("job", JOBS)
def test_a_node_killed_at_a_random_moment(job, tmp_path):
    with Nodes(3, dashboard=True) as nodes:
        alive = len([raylet for raylet in nodes.raylets if raylet.is_running()])
        verdict = chaos(job, tmp_path, "--kill", "node", "--times", "1", epochs=EPOCHS[job], **nodes.env)
        assert len([r for r in nodes.raylets if r.is_running() and r.status() != "zombie"]) == alive - 1
    # Killed before the first checkpoint, it begins again, and there is nothing to resume from.
    assert verdict["equal"] is True and verdict["commands"] == 1
    assert (verdict["faults"][0]["step"] > 0) <= verdict["resumed"] <= 1


@pytest.mark.parametrize("job", JOBS)
def test_a_disk_that_fills_up_under_workers(job, tmp_path):
    alone = tmp_path / "alone"
    fit_on(2, tmp_path, (job, alone, 0, {"epochs": FEW[job]}))
    with small_disk(tmp_path / "disk", 24) as disk:
        arguments = command(job, disk, workers=2, epochs=FEW[job])
        run = Run(arguments, OMP_NUM_THREADS="1")
        run.reaches(disk, 27)
        with (disk / "filler").open("wb", buffering=0) as filler:
            while run.process.poll() is None:
                try:
                    filler.write(bytes(65_536))
                except OSError:
                    time.sleep(0.001)
        assert run.ends() == 1, run.out
        assert "the disk is full" in run.out and "Traceback" not in run.out
        assert run.out.count("stopped: ") == 1
        (disk / "filler").unlink()
        again = Run(arguments, OMP_NUM_THREADS="1")
        assert again.ends() == 0, again.out
        assert "Going on from the checkpoint of step" in again.out
        assert same(final(disk), final(alone))
        assert [row["epoch"] for row in rows(disk / "run")] == list(range(1, FEW[job] + 1))


@pytest.mark.parametrize("job", JOBS)
def test_a_store_that_goes_away_under_workers(job, tmp_path, monkeypatch):
    alone = tmp_path / "alone"
    fit_on(2, tmp_path, (job, alone, 0, {"epochs": FEW[job]}))
    with s3_server() as query:
        port = int(query.partition("&")[0].rpartition(":")[2])
        keys = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        arguments = command(job, tmp_path, workers=2, epochs=FEW[job])
        arguments[arguments.index("--storage") + 1] = f"s3://bucket{query}"
        run = Run(arguments, OMP_NUM_THREADS="1", CRAYON_CACHE=str(tmp_path / "this machine"), **keys)
        run.says("epoch", seconds=200)
        time.sleep(random.SystemRandom().uniform(0, 3))
    run.says("can't be reached", seconds=200)
    time.sleep(5)
    with s3_server(port):
        assert run.ends() == 0, run.out
        assert "Traceback" not in run.out
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "another machine"))
        stored = RunFolder(f"s3://bucket{query}", "run")
        stored.pull()
    assert [row["epoch"] for row in stored.read_rows("metrics.jsonl")] == list(range(1, FEW[job] + 1))
    entry = checkpoint.latest(stored)
    checkpoint.load(entry)
    assert entry.digests == checkpoint.latest(RunFolder(str(alone), "run")).digests


@pytest.mark.parametrize("job", JOBS)
def test_a_second_command_with_the_name_of_a_running_one(job, tmp_path):
    run = Run(command(job, tmp_path, workers=1, epochs=20_000))
    run.reaches(tmp_path, 9)
    second = crayon(*command(job, tmp_path, workers=1, epochs=20_000))
    assert second.returncode == 2 and second.stderr.startswith("error: Another process is training")
    assert second.stderr.count("\n") == 1
    run.process.send_signal(signal.SIGTERM)
    assert run.ends() == 130, run.out
    epochs = [row["epoch"] for row in rows(tmp_path / "run")]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_wandb_out_of_reach_changes_nothing(job, when, tmp_path):
    alone, there = tmp_path / "alone", tmp_path / "there"
    epochs = {"from the start": FEW, "in the middle": EPOCHS}[when][job]
    fit_on(1, tmp_path, (job, alone, 0, {"epochs": epochs}))
    with contextlib.ExitStack() as stack:
        server = Server()
        if when == "in the middle":
            stack.enter_context(server)
        else:
            stack.callback(server.close)  # takes connections, and never answers, until the run has ended
        env = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.port}", "WANDB_API_KEY": "c0ffee" * 6 + "beef"}
        one_thread = {"ray__cpus_per_worker": 1, "wandb": "online"}
        run = Run(command(job, there, workers=1, epochs=epochs, **one_thread), **env)
        while run.process.poll() is None and not server.rows:
            time.sleep(0.05)
    assert run.ends() == 0 and bool(server.rows) == (when == "in the middle"), run.out
    assert run.out.count("W&B: ") == 1 and "going on offline" in run.out and "wandb sync" in run.out
    assert "Traceback" not in run.out and env["WANDB_API_KEY"] not in run.out
    assert same(final(there), final(alone))
