"""Training on a cluster whose nodes go and come."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import JOBS, rows
from metadata import cloud
from nodes import Nodes
from test_launch import command, start, wait_for_step
from test_recipe import pictures
from test_sweep import sweep
from test_trainer import final, fit_on, same

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint

IMPATIENT = """
from crayon.cli.main import main
from crayon.launch import workers
workers.SETTLE_SECONDS = workers.GROW_SECONDS = 2.0
main()
"""


class Run:
    """A command in a process of its own, whose output is read as it comes. python: as `start` takes it."""

    def __init__(self, arguments: list[str], *python: str, **env: str):
        self.process = start(arguments, *python, **env)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._reader.start()

    @property
    def out(self) -> str:
        return "".join(self.lines)

    def says(self, text: str, times: int = 1, seconds: float = 150) -> None:
        """Wait until it has said `text` so many times."""
        deadline = time.monotonic() + seconds
        while self.out.count(text) < times:
            if self.process.poll() is not None:
                self._reader.join(10)
                assert self.out.count(text) >= times, self.out
                return
            if time.monotonic() > deadline:
                self.process.kill()  # else it is another test's warning, too
                self.ends(30)
                raise AssertionError(f"{text!r} was not said:\n{self.out}")
            time.sleep(0.05)

    def reaches(self, folder: Path, step: int) -> None:
        """Wait for the checkpoint of a step, or a later one."""
        wait_for_step(folder, step, self.process, lambda: self.out)

    def ends(self, seconds: float = 300) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        self.process.stdout.close()
        return code


def drain(nodes: Nodes, number: int) -> None:
    """A node that looks after its cloud's notice is about to be taken away."""
    with cloud("aws", notice=True) as metadata:
        where = ["--address", nodes.address, "--node-id", nodes.ids[number]]
        command = [sys.executable, "-m", "crayon.ops.preemption", "aws", "--metadata", metadata, *where]
        subprocess.run(command, check=True, capture_output=True)


def busy(nodes: Nodes) -> list[int]:
    """The nodes on which something trains."""
    return [i for i, raylet in enumerate(nodes.raylets) if raylet.is_running() and nodes.workers(i)]


OTHERS = [job for job in JOBS if job != "mnist"]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["mnist", *(pytest.param(job, marks=pytest.mark.faults) for job in OTHERS)])
def test_an_elastic_run_shrinks_with_its_cluster_and_grows_again(job, tmp_path):
    """A notice that a node will go: the run saves, and goes on with one worker. A new node: with two again."""
    with Nodes(2) as nodes:
        run = Run(command(job, tmp_path, workers="1..2", epochs=20_000), "-c", IMPATIENT, **nodes.env)
        run.reaches(tmp_path, 18)
        drain(nodes, 1)
        run.says("the workers start anew: a node is about to go")
        run.says("Going on from the checkpoint of step")
        nodes.kill(1)
        nodes.add()
        run.says("the workers start anew: there is room for more workers")
        run.says("Going on from the checkpoint of step", 2)
        assert len(busy(nodes)) == 2
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 130, run.out
    stopped_at = int(run.out.partition("stopped: Stopped after step ")[2].split()[0].replace(",", ""))
    assert checkpoint.latest(RunFolder(str(tmp_path), "run")).step == stopped_at
    assert "Traceback" not in run.out and "failure" not in run.out
    # Each epoch once, in order: nothing was trained twice, or lost.
    epochs = [row["epoch"] for row in rows(tmp_path / "run")]
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) > 2


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["a node killed where another is free", "a worker that stands still"])
def test_a_fault_changes_no_weight(fault, tmp_path):
    alone, there = tmp_path / "alone", tmp_path / "nodes"
    fit_on(2, tmp_path, ("mnist", alone, 0, {"epochs": 100}))
    killed = "node" in fault
    with Nodes(3 if killed else 2) as nodes:
        run = Run(command("mnist", there, workers=2, epochs=100), OMP_NUM_THREADS="1", **nodes.env)
        run.reaches(there, 27)
        if killed:
            nodes.kill(busy(nodes)[-1])
        else:
            slow = nodes.workers(1)[0]
            slow.suspend()
            time.sleep(20)
            slow.resume()
        assert run.ends() == 0, run.out
    assert ("the workers start anew (failure 1 of 3)" in run.out) == killed
    assert "Traceback" not in run.out and "(raylet)" not in run.out  # nor Ray's own account of the lost node
    assert same(final(there), final(alone))


@pytest.mark.faults
def test_without_room_the_run_ends_in_a_sentence_and_goes_on_with_fewer_workers(tmp_path):
    with Nodes(2) as nodes:
        quick = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
        run = Run(command("mnist", tmp_path, workers=2, epochs=300), **quick, **nodes.env)
        run.reaches(tmp_path, 27)
        nodes.kill(1)
        assert run.ends() == 1, run.out
        assert "Waiting for nodes: --workers 2 of 1 CPU cores each, and there is room for 1 now." in run.out
        assert "stopped: The cluster had no room for --workers 2 of 1 CPU cores each" in run.out
        assert "Traceback" not in run.out
        again = Run(command("mnist", tmp_path, workers=1, epochs=300), **nodes.env)
        assert again.ends() == 0, again.out
    assert "Going on from the checkpoint" in again.out
    assert [row["epoch"] for row in rows(tmp_path / "run")] == list(range(1, 301))


HOG = """
import time, numpy
kept = []
for _ in range({blocks}):
    kept.append(numpy.ones(2**25, dtype=numpy.uint8))
    time.sleep(0.01)
time.sleep({seconds})
"""


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
def test_want_of_memory_costs_no_more_than_the_epoch_under_way(job, tmp_path):
    """Ray ends workers when a machine's memory is nearly full: here all of them, since the nodes share this machine."""
    alone, there = tmp_path / "alone", tmp_path / "nodes"
    fit_on(1, tmp_path, (job, alone, 0, {"epochs": 400}))
    arguments = command(job, there, workers=1, epochs=400)
    with Nodes(1, memory_gib=5.0) as nodes:
        run = Run(arguments, OMP_NUM_THREADS="1", **nodes.env)
        run.reaches(there, 27)
        hog = subprocess.Popen([sys.executable, "-c", HOG.format(blocks=200, seconds=30)])
        try:
            run.says("ran out of memory")
        finally:
            hog.kill()
            hog.wait()
        if run.ends():
            assert run.process.returncode == 1 and "stopped: The actor through which" in run.out
            assert "ran out of memory. The same command goes on" in run.out
            run = Run(arguments, OMP_NUM_THREADS="1", **nodes.env)
            assert run.ends() == 0, run.out
    assert "Going on from the checkpoint of step" in run.out
    assert "Traceback" not in run.out
    assert same(final(there), final(alone))


@pytest.mark.faults
def test_a_node_that_does_not_see_the_storage_is_told_before_training(tmp_path):
    """Of two nodes, one has a disk of its own where the runs go."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with Nodes(1) as nodes, nodes.apart(runs) as possible:
        if not possible:
            pytest.skip("needs a mount namespace")
        arguments = sweep(runs, "--trials", "4")
        del arguments[(at := arguments.index("--concurrent")) : at + 2]
        for words in (command("mnist", runs, workers=2), arguments):
            run = Run(words, **nodes.env)
            assert run.ends() == 2, run.out
            assert f"--storage {runs} is not shared between the machines of this cluster: " in run.out
            assert f"has no {runs}/{words[words.index('--name') + 1]} of the driver's" in run.out
            assert "Traceback" not in run.out
    assert not (runs / "run" / "metrics.jsonl").exists()


@pytest.mark.faults
def test_the_nodes_images_decide_a_preset_and_the_cluster_is_named(tmp_path):
    """Without the driver's own look at a folder that is elsewhere on the nodes."""
    words = ["--data.source", "folder", "--data.root", str(pictures(tmp_path / "trees")), "--wandb", "off"]
    words += ["--storage", str(tmp_path), "--model.width", "2", "--data.image-size", "8", "--workers", "1"]
    with Nodes(1) as nodes:
        run = Run(["cifar10", *words, "--name", "run", "--epochs", "1"], **nodes.env)
        assert run.ends() == 0, run.out
        tune = Run(["cifar10", "tune", *words, "--name", "sweep", "--trials", "1"], **nodes.env)
        tune.says("is fitted to about 22 images")
        tune.process.terminate()
        tune.ends()
    assert "Joining the Ray cluster at" in run.out and "RAY_ADDRESS=local" in run.out
    assert run.out.count("is fitted to about 22 images") == 1
