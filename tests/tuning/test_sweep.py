"""Whole sweeps on real Ray: killed in every way, they end as if left in peace."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest
from helpers import crayon, kill_with_family, rows
from test_launch import start
from test_trainer import final, same

from crayon.system.runfolder import RunFolder

BASE = shlex.split(
    "tune --data.source digits --data.image-size 16 --data.size 320 --global-batch-size 32 --model.width 8 "
    "--model.growth 2 --model.depth 1 --precision fp32 --epochs 8 --device cpu --wandb off --concurrent 1 "
    "--ray.cpus-per-worker 1"
)
"""A trial takes one to three seconds."""
TRIAL = re.compile("Trainable|TrialActor")
"""In the name of a process that trains trials, at work or between two epochs."""


def commandline(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return " ".join(process.cmdline())
    return ""


def sweep(folder: Path, *arguments: str) -> list[str]:
    return ["mnist", *BASE, "--storage", str(folder), "--name", "s", *arguments]


def result(folder: Path) -> dict:
    return json.loads((folder / "s" / "result.json").read_text())


def trials(folder: Path) -> list[tuple]:
    """What the study holds of each trial, clocks left out."""
    import optuna

    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 's' / 'study.db'}")
    return [(t.number, t.state.name, t.params, t.intermediate_values) for t in study.trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sweep left in peace."""
    folder = tmp_path_factory.mktemp("whole")
    end = crayon(*sweep(folder, "--trials", "7"))
    assert end.returncode == 0, end.stdout + end.stderr
    return folder


@pytest.mark.slow
def test_a_sweep_leaves_everything(whole):
    found, folder = result(whole), whole / "s"
    assert sum(found["trials"].values()) == 7
    assert found["trials"]["running"] == found["trials"]["waiting"] == 0
    pictures = {"history", "learning_curves", "slices", "parallel_coordinates", "pareto"}
    assert pictures <= {p.stem for p in (folder / "pictures").iterdir()}
    assert "<img" in (folder / "report.html").read_text()
    assert len(list((folder / "trials").iterdir())) == 7
    # The best trial, whole, is a run of its own; only it knows the test split.
    best = json.loads((folder / "best" / "result.json").read_text())
    assert best["test/accuracy"] == found["test/accuracy"] > 0.5
    assert not list((folder / "trials").glob("*/result.json"))
    # Once it is over, a trial has what it can go on from, and what it is measured by.
    assert all(len(list(t.glob("checkpoints/*"))) <= 2 for t in (folder / "trials").iterdir())
    values = [max(curve.values()) for _, _, _, curve in trials(whole) if curve]
    assert found["best"]["value"] == best["val/accuracy"] == max(values) >= found["preset_value"]
    assert found["preset_value"] == max(trials(whole)[0][3].values())
    # How little a trial costs beside its training is for benchmarks to say; here, that it is measured.
    assert 0 < found["this_command"]["overhead_seconds"] < found["this_command"]["search_seconds"]


@pytest.mark.slow
def test_the_command_that_retrains_the_best_does(whole, tmp_path):
    """Bit for bit, on as many threads as the trial had."""
    command = result(whole)["commands"]["retrain the best"].split()[2:]
    end = crayon("mnist", *command, "--storage", str(tmp_path), "--name", "run", "--workers", "0")
    assert end.returncode == 0, end.stderr
    number = result(whole)["best"]["trial"]
    (tmp_path / "trial").mkdir()
    os.symlink(whole / "s" / "trials" / f"{number:04d}", tmp_path / "trial" / "run")
    assert same(final(tmp_path), final(tmp_path / "trial"))


def wait_for(folder: Path, what, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            kill_with_family(process)
            raise AssertionError(f"not in time: {process.communicate()[0]}")
        time.sleep(0.02)


def rows_of(folder: Path, number: int) -> int:
    path = folder / "s" / "trials" / f"{number:04d}"
    return len(rows(path)) if (path / "metrics.jsonl").exists() else 0


@pytest.mark.faults
def test_a_sweep_without_a_name_tells_how_to_go_on_with_it(tmp_path):
    end = crayon("mnist", *BASE, "--storage", str(tmp_path), "--trials", "1", "--epochs", "1")
    assert end.returncode == 0, end.stdout + end.stderr
    (folder,) = tmp_path.iterdir()
    text = f"{folder}  (--name {folder.name} goes on with it when it is interrupted)"
    assert text in end.stdout.splitlines()
    (line,) = [line for line in end.stdout.splitlines() if line.startswith("go on, raising --trials")]
    words = shlex.split(line[line.index(" tune ") :].replace("--trials 1 ", "--trials 2 "))
    end = crayon("mnist", *words)
    assert end.returncode == 0, end.stdout + end.stderr
    assert "Going on with 1 finished trial" in end.stdout
    assert list(tmp_path.iterdir()) == [folder] and len(list((folder / "trials").iterdir())) == 2


@pytest.mark.slow
def test_killed_driver_ctrl_c_and_killed_trial_end_as_if_left_in_peace(whole, tmp_path):
    """kill -9 of the driver, then of a trial, then Ctrl-C, and more trials: the same study as in one go."""
    process = start(sweep(tmp_path, "--trials", "2"))
    wait_for(tmp_path, lambda: rows_of(tmp_path, 1) >= 1, process)
    kill_with_family(process)

    process = start(sweep(tmp_path, "--trials", "5"))
    wait_for(tmp_path, lambda: rows_of(tmp_path, 2) >= 1, process)
    actors: list[psutil.Process] = []

    def found() -> bool:
        family = psutil.Process(process.pid).children(recursive=True)
        actors[:] = [p for p in family if TRIAL.search(commandline(p))]
        return bool(actors)

    wait_for(tmp_path, found, process)
    for victim in actors:
        victim.kill()
    wait_for(tmp_path, lambda: rows_of(tmp_path, 3) >= 1, process)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 130, out
    assert "Traceback" not in out and "the same command goes on" in out and "(raylet)" not in out
    assert not [t for t in trials(tmp_path) if t[1] == "RUNNING"]
    before = len([t for t in trials(tmp_path) if t[1] in ("COMPLETE", "PRUNED")])

    end = crayon(*sweep(tmp_path, "--trials", "7"))
    assert end.returncode == 0, end.stdout + end.stderr
    assert f"Going on with {before} finished trials" in end.stdout
    assert trials(tmp_path) == trials(whole)
    assert result(tmp_path)["test/accuracy"] == result(whole)["test/accuracy"]


@pytest.mark.slow
def test_fewer_slots_than_trials_two_objectives_and_a_target(tmp_path, call):
    """Two slots for four trials, without a deadlock; W&B gets every trial and a summary."""
    arguments = [a for a in sweep(tmp_path, "--trials", "4", "--objective", "pareto") if a != "off"]
    arguments.insert(arguments.index("--wandb") + 1, "offline")
    arguments[arguments.index("--concurrent") + 1] = "2"
    end = crayon(*arguments)
    assert end.returncode == 0, end.stdout + end.stderr
    found = result(tmp_path)
    assert found["objective"] == "pareto" and found["front"]
    assert sum(found["trials"].values()) == 4
    assert len(list((tmp_path / "s" / "trials").glob("*/wandb/offline-run-*"))) == 4
    assert len(list((tmp_path / "s" / "wandb").glob("offline-run-*"))) == 1
    assert end.stdout.count("wandb sync") == 2, end.stdout  # in one line
    code, _, err = call(*[a if a != "pareto" else "quality" for a in arguments])
    assert code == 2 and "objective was pareto, now quality" in err
    # A sweep's name is no run's, and the other way round.
    train = BASE[1 : BASE.index("--concurrent")]
    code, _, err = call("mnist", *train, "--workers", "0", "--storage", str(tmp_path), "--name", "s")
    assert code == 2 and "holds a sweep" in err
    assert RunFolder(str(tmp_path), "s").holds("study.db")


@pytest.mark.slow
@pytest.mark.again
def test_trials_of_two_workers_are_trained_by_ray_train(tmp_path):
    words = "--trials 1 --workers 2 --target 0.01 --space.epochs 2 --epochs 2"
    end = crayon(*sweep(tmp_path, *words.split()))
    assert end.returncode == 0, end.stdout + end.stderr
    found = result(tmp_path)
    assert found["best"]["trial"] == 0 and "reached the target" in found["stopped"]
    config = json.loads((tmp_path / "s" / "trials" / "0000" / "config.json").read_text())
    assert config["workers"] == 2
