"""The `chaos` command, on a run in one process: its driver is really killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys

import psutil
import pytest
from helpers import PRESETS, crayon, flags, python, tiny

from crayon.cli.flags import parse
from crayon.config.names import override
from crayon.ops.chaos import Fault, Verdict, _DisturbedRun, command, lines
from crayon.ops.processes import OwnProcesses
from crayon.report.terminal import Terminal
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_trains_exactly_what_was_asked_for(preset):
    """Also where a setting is None and its preset's is not."""
    config = override(get("mnist", preset), {"data.size": None, "lr": 0.0123, "data.root": "/some where"})
    words = command(config, "again")
    job = words.index("mnist")
    assert parse("mnist", words[job + 1 :], "x") == override(config, {"name": "again"})


@pytest.mark.slow
def test_a_killed_command_given_again_ends_with_the_same_weights(tmp_path):
    config = tiny("mnist", storage=str(tmp_path), name="c", epochs=150)
    end = crayon("mnist", "chaos", *flags(config), "--kill", "driver", "--times", "1", "--chaos-seed", "9")
    assert end.returncode == 0, end.stdout + end.stderr
    assert "equal to the undisturbed run's, bit for bit" in end.stdout
    verdict = json.loads((tmp_path / "c-chaos" / "chaos.json").read_text())
    assert verdict["complete"] and verdict["every_epoch_once"] and verdict["equal"] is True
    assert [fault["kind"] for fault in verdict["faults"]] == ["driver"] and verdict["commands"] == 2


def test_only_what_happened_counts_as_a_fault(tmp_path):
    """Not a signal to a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # RayTrainWorker"])
    own = OwnProcesses()
    worker = psutil.Process(process.pid)
    assert own.signal(worker, signal.SIGKILL)
    process.wait()
    assert not own.signal(worker, signal.SIGKILL)

    class Gone(OwnProcesses):
        def workers(self, process):
            return [worker]

        def end_node(self, worker):
            return False  # as of the machine of the command

    for kind in ("worker", "pause", "node"):
        folder, terminal = RunFolder(str(tmp_path), "r"), Terminal(io.StringIO())
        disturbed = _DisturbedRun(tiny("mnist"), folder, [kind], 0, Gone(), terminal)
        assert not disturbed.break_one(kind, process) and disturbed.faults == []


@pytest.mark.slow
def test_the_machine_of_the_command_is_no_lost_node():
    """All workers are on it, so no node can be lost."""
    code = """
from crayon.launch import cluster
from crayon.ops.processes import ClusterProcesses
with cluster.connected() as ray:
    here = ray.get_runtime_context().get_node_id()
    assert not ClusterProcesses().end_node((here, 0))
    assert ray.get(ray.remote(num_cpus=0)(ray.util.get_node_ip_address).remote()) == "127.0.0.1"
"""
    process = python(code)
    assert process.communicate(timeout=180)[1] == "" and process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kill", "cat"], "There is no --kill cat; choose worker"),
        (["--kill", "worker", "--workers", "0"], "--kill worker needs --workers 1 or more"),
        (["--kill", "node"], "--kill node needs a Ray cluster"),
        (["--times", "0"], "--times 0 is out of range"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words):
    end = crayon("mnist", "chaos", "--data.source", "digits", *arguments)
    assert end.returncode == 2 and words in end.stderr and "Traceback" not in end.stderr


def test_a_verdict_is_bad_where_anything_differs():
    good = {"complete": True, "every_epoch_once": True, "equal": True, "resumed": 1, "commands": 1}
    assert Verdict(**good).good and Verdict(**good | {"equal": None}).good
    for change in ({"complete": False}, {"every_epoch_once": False}, {"equal": False}):
        verdict = Verdict(**good | change, faults=[Fault("worker", 1.0, 9)], missed=1)
        assert not verdict.good
        assert any("NO" in text for _, text in lines(verdict))
