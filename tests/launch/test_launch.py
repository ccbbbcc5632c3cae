"""Whole commands: on real Ray Train workers, with real kills, and in one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from helpers import crayon, flags, kill_with_family, rows, tiny
from test_trainer import final, fit_on, same

from crayon.fast.ray_start import TRIED
from crayon.launch.driver import each_takes
from crayon.launch.workers import what_happened
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint


def command(kind: str, folder: Path, **changes) -> list[str]:
    config = tiny(kind, name="run", storage=str(folder), **changes)
    return [config.job, *flags(config)]


def start(arguments: list[str], *python: str, **env: str) -> subprocess.Popen[str]:
    """`crayon ARGUMENTS`; python: Python's own arguments in place of `-m crayon.cli`."""
    return subprocess.Popen(
        [sys.executable, *(python or ("-m", "crayon.cli")), *arguments],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], out: Any = None) -> None:
    """Wait for the checkpoint of a step, or a later one. out: returns what the process has said, if that is read."""
    deadline = time.monotonic() + 240
    run = RunFolder(str(folder), "run")
    while (newest := checkpoint.latest(run)) is None or newest.step < step:
        assert process.poll() is None, out() if out else process.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint in time\n{out() if out else ''}"
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [p for p in children if "RayTrainWorker" in " ".join(p.cmdline())]


@pytest.mark.parametrize("kind", ["mnist", "autoencoder", "gan"])
def test_a_run_leaves_everything(kind, tmp_path):
    end = crayon(*command(kind, tmp_path, wandb="offline"))
    assert end.returncode == 0, end.stderr
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    split = "val" if kind == "gan" else "test"
    wanted = {
        "mnist": ["accuracy", "loss", "ece"],
        "autoencoder": ["mse", "psnr", "ssim", "knn_accuracy", "probe_accuracy"],
        "gan": ["recall", "precision", "coverage", "density", "score_real", "score_fake"],
    }[kind]
    for name in wanted:
        assert isinstance(result[f"{split}/{name}"], float), name
    assert result["seconds"] > result["train_seconds"] > 0
    assert {"torch", "ray", "crayon"} <= set(json.dumps(result["environment"]).replace('"', " ").split())
    assert len(rows(run)) == 3
    assert json.loads((run / "config.json").read_text())["data.source"] == tiny(kind).data.source
    pictures = {p.name for p in (run / "pictures").glob("*")}
    assert {"learning_curves.png"} < pictures
    page = (run / "report.html").read_text()
    assert page.count("data:image/") >= len([p for p in pictures if "." in p])
    assert "wandb sync" in end.stdout
    assert "Traceback" not in end.stdout + end.stderr
    # The same command again repeats nothing and shows the results.
    before = (run / "result.json").read_text()
    again = crayon(*command(kind, tmp_path, wandb="offline"))
    assert again.returncode == 0 and "complete already" in again.stdout
    assert (run / "result.json").read_text() == before


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "broken").mkdir()
    assert crayon(*command("mnist", tmp_path / "whole", epochs=40)).returncode == 0
    process = start(command("mnist", tmp_path / "broken", epochs=40))
    wait_for_step(tmp_path / "broken", 9, process)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130, out
    assert "stopped:" in out and "Traceback" not in out
    end = crayon(*command("mnist", tmp_path / "broken", epochs=40))
    assert end.returncode == 0 and "Going on from the checkpoint" in end.stdout
    assert same(final(tmp_path / "broken"), final(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.again
def test_ray_trains_what_two_bare_processes_train_and_survives_a_killed_worker_and_driver(tmp_path):
    """Two Ray Train workers, one of them killed, then the command: bit for bit the weights of two processes left in
    peace."""
    alone, on_ray = tmp_path / "alone", tmp_path / "ray"
    fit_on(2, tmp_path, ("mnist", alone, 0, {"epochs": 60}))
    arguments = command("mnist", on_ray, workers=2, epochs=60)
    process = start(arguments, OMP_NUM_THREADS="1")
    wait_for_step(on_ray, 27, process)
    victims = workers_of(process)
    assert len(victims) == 2
    victims[0].kill()
    saved = checkpoint.latest(RunFolder(str(on_ray), "run")).step
    wait_for_step(on_ray, saved + 27, process)
    kill_with_family(process)
    end = crayon(*arguments, OMP_NUM_THREADS="1")
    assert end.returncode == 0, end.stdout + end.stderr
    assert "Going on from the checkpoint" in end.stdout
    split = "Each of --workers 2 takes 16 of a step's 32 images."
    assert end.stdout.index(split) < end.stdout.index("times one worker's")
    untried = f"Ray {ray.__version__}: started by its public interface alone, some seconds slower than {TRIED[-1]}.\n"
    assert end.stderr == ("" if ray.__version__.rpartition(".")[0] in TRIED else untried)
    assert same(final(on_ray), final(alone))
    assert [row["epoch"] for row in rows(on_ray / "run")] == list(range(1, 61))


@pytest.mark.faults  # one that is elastic ends so in test_nodes
def test_sigterm_to_a_run_on_ray_writes_a_checkpoint(tmp_path):
    """What `ray job stop`, Kubernetes and a machine that shuts down send."""
    process = start(command("mnist", tmp_path, workers=1, epochs=2000))
    wait_for_step(tmp_path, 18, process)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130, out
    assert "stopped: Stopped after step" in out and "Traceback" not in out and "SIGTERM" not in out
    stopped_at = int(out.partition("Stopped after step ")[2].split()[0].replace(",", ""))
    assert checkpoint.latest(RunFolder(str(tmp_path), "run")).step == stopped_at


def test_images_of_a_worker_are_told_whether_they_are_as_many_for_each_or_not():
    said = [each_takes(tiny("mnist", workers=n, global_batch_size=1024)) for n in (4, 3, "1..4")]
    assert [text.split("takes ")[1] for text in said] == [
        "256 of a step's 1,024 images.",
        "341 to 342 of a step's 1,024 images.",
        "256 to 1,024 of a step's 1,024 images.",
    ]


def test_a_worker_that_is_lost_for_want_of_memory_says_what_needs_less():
    def lost(text):
        error = RuntimeError(text)
        error.health_check_failure = None  # as Ray Train's WorkerHealthCheckFailedError has
        return {0: error, 1: RuntimeError("[gloo] Connection closed by peer")}

    ray_says = "Task was killed due to the node running low on memory. Refer to the documentation."
    assert what_happened(lost("End of file. (1) SIGKILL by OOM killer")) == "A worker was lost"
    for why in (
        what_happened(lost("End of file."), killed=True),
        what_happened(lost(ray_says)),
    ):
        assert "memory" in why and "--global-batch-size" in why
    assert what_happened({0: KeyError("mark")}) == "A worker failed with: KeyError: 'mark'"


@pytest.mark.slow
def test_too_many_dead_workers_end_the_run_in_a_sentence(tmp_path):
    """With what a batch system gives: a long temporary folder, though sockets have paths of at most 107 letters, and a
    home that can't be written."""
    folder = tmp_path / ("job-" + "x" * 90)
    folder.mkdir()
    system = {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "HOME": "/proc/nobody"}
    process = start(command("autoencoder", tmp_path, workers=1, epochs=200, ray__max_failures=0), **system)
    wait_for_step(tmp_path, 9, process)
    for victim in workers_of(process):
        victim.kill()
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 1, out
    assert "stopped: The workers failed more than --ray.max-failures 0 times" in out
    assert "Traceback" not in out
    assert "worker group" not in out, "Ray Train's own log"
    assert checkpoint.latest(RunFolder(str(tmp_path), "run")).step >= 9


@pytest.mark.faults
def test_failures_count_anew_after_a_checkpoint(tmp_path):
    process, step = start(command("autoencoder", tmp_path, workers=1, epochs=400, ray__max_failures=1)), 9
    for _ in range(3):
        wait_for_step(tmp_path, step, process)
        for victim in workers_of(process):
            victim.kill()
        step = checkpoint.latest(RunFolder(str(tmp_path), "run")).step + 9
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0, out
    assert out.count("(failure 1 of 1)") == 3
