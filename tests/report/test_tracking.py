"""Weights & Biases, read back from what it wrote; and every way in which it can fail on this machine, none of which may
be felt.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import python, until
from PIL import Image
from wandb_files import ABOUT, follower, history, of_kind, process_of, records, result, row

from crayon.report import wandb_follower
from crayon.report.wandb import run_id
from crayon.report.wandb_follower import catch_up
from crayon.system.runfolder import RunFolder
from crayon.tasks.classification.settings import ClassificationExperiment

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    """Of the rows that the only offline folder of `run` holds."""
    return [r["step"] for r in history(records(run)) if "train/loss" in r]


def summary(found: list) -> dict[str, str]:
    return {
        i.key or "/".join(i.nested_key): i.value_json for s in of_kind(found, "summary") for i in s.update
    }


def test_an_offline_run_holds_everything(run, capfd):
    (run / "pictures").mkdir()
    for name in ("grid.png", "over_time.gif"):
        Image.new("RGB", (8, 8)).save(run / "pictures" / name)
    (run / "confusion.json").write_text(json.dumps({"classes": ["cat", "dog"], "counts": [[5, 1], [0, 4]]}))
    told: list[str] = []
    t = follower(run, tell=told.append)
    row(run, 10)
    row(run, 20)
    result(run)
    upload = t.finish()

    assert told == []
    found = records(run)
    (started,) = of_kind(found, "run")
    config = {c.key: json.loads(c.value_json) for c in started.config.update if c.key != "_wandb"}
    called = (started.project, started.display_name, started.run_group, started.job_type, config)
    assert called == tuple(ABOUT.values())
    assert started.run_id == run_id(run)
    logged = [r for r in history(found) if "train/loss" in r]
    assert [(r["step"], r["epoch"], r["train/loss"]) for r in logged] == [(10, 1, 0.1), (20, 2, 0.05)]
    assert "bad" not in logged[0]
    media = [p.path for files in of_kind(found, "files") for p in files.files]
    assert any(m.startswith("media/images/pictures/grid") for m in media)
    assert any(m.startswith("media/videos/pictures/over_time") and m.endswith(".gif") for m in media)
    (model,) = [a for a in of_kind(found, "artifact") if a.type == "model"]
    name = "step-000000010.safetensors"
    assert (model.name, [c.path for c in model.manifest.contents]) == ("a-run-model", [name])
    (table,) = run.glob("wandb/offline-run-*/files/media/table/*.json")
    counts = [["cat", "cat", 5], ["cat", "dog", 1], ["dog", "cat", 0], ["dog", "dog", 4]]
    assert json.loads(table.read_text())["data"] == counts
    end = summary(found)
    assert (end["test/accuracy"], end["selected/step"]) == ("0.8", "10")
    assert end["lr"] == "0.001"  # as it was set, where the newest row has what it had fallen to
    assert of_kind(found, "exit")[0].exit_code == 0
    assert {m.glob_name: m.step_metric for m in of_kind(found, "metric")}["*"] == "step"
    (folder,) = run.glob("wandb/offline-run-*")
    assert upload == f"wandb sync {folder}"
    assert capfd.readouterr() == ("", "")  # silent
    assert catch_up(RunFolder.at(run), "auto", told.append) == "" and steps(run) == [10, 20]


def test_a_killed_process_is_followed_by_one_that_goes_on(run):
    told: list[str] = []
    t = follower(run, tell=told.append)
    row(run, 10)
    process_of(run).kill()
    row(run, 20)
    process_of(run).kill()
    row(run, 30)
    t.finish()
    assert steps(run) == [10, 20, 30] and told == []
    assert of_kind(records(run), "exit")[0].exit_code == 1  # it has no result


TRAINING = """
import time
from pathlib import Path
from wandb_files import follower, row
run = Path("RUN")
t = follower(run)
for step in (10, 20, 30):
    row(run, step)
time.sleep(60)
"""


@pytest.mark.parametrize("both", [False, True])
def test_a_killed_training_is_gone_on_with(run, both):
    """Its process is still there when the next command starts, or was killed too."""
    training = python(TRAINING.replace("RUN", str(run)))
    process = process_of(run)
    training.kill()
    training.communicate()
    if both:
        process.kill()
    first = run_id(run)
    RunFolder.at(run).truncate_rows("metrics.jsonl", lambda row: row["step"] <= 20)  # the checkpoint's
    t = follower(run)
    for step in (30, 40):
        row(run, step)
    result(run)
    t.finish()
    assert run_id(run) == first == of_kind(records(run), "run")[0].run_id
    assert steps(run) == [10, 20, 30, 40]
    assert of_kind(records(run), "exit")[0].exit_code == 0


ANEW = """
from pathlib import Path
from crayon.report.wandb import Sender
from crayon.system.runfolder import RunFolder
from wandb_files import ABOUT, history, records, row
run = Path("RUN")
RunFolder.at(run).write_json("wandb.json", ABOUT)
sender = Sender("offline", print)
for steps in ((10, 20, 30), (20, 30, 40)):
    for step in steps:
        row(run, step)
    sender.look(run)
    RunFolder.at(run).truncate_rows("metrics.jsonl", lambda row: row["step"] <= 10)
    sender.look(run)
sender.close()
print([row["step"] for row in history(records(run))])
"""


def test_rows_written_anew_after_a_checkpoint_are_there_once_as_soon_as_it_is_closed(run):
    """A worker or a trial may start anew under a process that goes on."""
    out, err = python(ANEW.replace("RUN", str(run))).communicate(timeout=100)
    assert out == "[10, 20, 30, 40]\n", out + err


def test_a_process_that_hangs_is_killed_at_the_end_and_all_is_written_down(run, monkeypatch):
    monkeypatch.setattr(wandb_follower, "FINISH_SECONDS", 2.0)
    told: list[str] = []
    t = follower(run, tell=told.append)
    row(run, 10)
    hung = process_of(run)
    hung.send_signal(signal.SIGSTOP)
    row(run, 20)
    result(run)
    upload = t.finish()
    assert len(told) == 1 and "not all was sent within 2 s" in told[0]
    assert steps(run) == [10, 20] and upload.startswith("wandb sync ")
    assert not hung.is_running()


def test_a_process_that_hangs_whatever_is_done_is_given_up(run, monkeypatch):
    hang = run / "hang"
    hang.write_text("#!/bin/sh\nexec sleep 60\n")
    hang.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hang))
    monkeypatch.setattr(wandb_follower, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(wandb_follower, "OFFLINE_SECONDS", 1.0)
    told, begun = [], time.monotonic()
    t = follower(run, tell=told.append)
    row(run, 10)
    assert t.finish() == ""
    assert time.monotonic() - begun < 8
    assert len(told) == 2 and "it is off for the rest of this run" in told[1]


def test_a_complete_run_that_was_not_sent_is_sent_by_the_next_command(run):
    t = follower(run)
    row(run, 10)
    result(run)
    t.mode, t._left = "offline", 0  # the command is killed here
    process_of(run).kill()
    assert catch_up(RunFolder.at(run), "auto", print).startswith("wandb sync ")
    assert steps(run) == [10] and of_kind(records(run), "exit")[0].exit_code == 0


def test_trials_are_followed_while_they_train_and_are_runs_of_their_own(run):
    sweep = RunFolder.at(run)
    t = wandb_follower.Follower(sweep, "auto", print)
    trials = [RunFolder.at(run / "trials" / f"{n:04d}") for n in range(3)]
    for trial in trials:
        about = ABOUT | {"job_type": "trial", "group": "sweep", "monitor": ["train/loss", "max"]}
        trial.write_json("wandb.json", about)
        row(trial.path, 10)
    files = until(lambda: len(found := list(run.glob("trials/*/wandb/offline-run-*/*.wandb"))) == 3 and found)
    assert [p.parents[2].name for p in sorted(files)] == ["0000", "0001", "0002"]
    for trial, failed in ((trials[0], False), (trials[1], True)):  # the third is interrupted
        row(trial.path, 20)
        end = {"summary": {"value": 0.5, "train/loss": 0.1}, "failed": failed, "tags": ["pruned"]}
        trial.write_json("wandb.json", about | {"end": end})
    t.finish()
    assert [steps(trial.path) for trial in trials] == [[10, 20], [10, 20], [10]]
    assert [of_kind(records(t.path), "exit")[0].exit_code for t in trials] == [0, 1, 1]
    assert [trial.holds("wandb_sent") for trial in trials] == [True, True, False]
    assert [list(of_kind(records(t.path), "run")[-1].tags) for t in trials] == [["pruned"], ["pruned"], []]
    for trial in trials:  # what it is compared by is its best, also before it has ended
        assert summary(records(trial.path))["train/loss"] == "0.1"


def test_starting_does_not_wait_and_nothing_is_imported_before_the_first_row(run):
    begun = time.monotonic()
    t = follower(run)
    assert time.monotonic() - begun < 1
    time.sleep(1.5)
    assert not (run / "wandb").exists()
    assert t.finish() == "" and not (run / "wandb").exists()


@pytest.mark.parametrize(
    ("mode", "name", "value"),
    [("off", "", ""), ("auto", "WANDB_MODE", "disabled"), ("auto", "WANDB_DISABLED", "true")],
)
def test_off_does_nothing(run, monkeypatch, mode, name, value):
    if name:
        monkeypatch.setenv(name, value)
    t = follower(run, mode)
    assert t.finish() == "" and list(run.iterdir()) == []


def test_what_could_not_be_sent_is_told(run):
    told: list[str] = []
    t = follower(run, "online", told.append)
    row(run, 10)
    result(run, model=False)
    assert t.finish().startswith("wandb sync ")
    assert "no API key is configured (wandb login, or WANDB_API_KEY); going on offline" in told[0]
    assert len(told) == 2 and told[1].startswith("W&B: the model could not be sent")
    assert steps(run) == [10]


@pytest.mark.parametrize("command", ["/nonexistent/python", "/bin/false", None])
def test_a_process_that_does_not_start_or_a_folder_that_cannot_be_written_is_one_warning(
    run, monkeypatch, command
):
    told: list[str] = []
    if command:
        monkeypatch.setattr(sys, "executable", command)
    else:
        run.rmdir()
        run.write_text("")
    follower(run, "offline", told.append).finish()
    assert len(told) == 1 and "off for the rest of this run" in told[0]


def test_variables_of_another_run_and_a_home_that_cannot_be_written_change_nothing(
    run, monkeypatch, tmp_path
):
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-9-9")  # of a notebook that has ended
    monkeypatch.setenv("WANDB_RESUME", "nonsense")
    for name in ("WANDB_RESUME_FROM", "WANDB_FORK_FROM"):
        monkeypatch.setenv(name, "abc?_step=1")
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("WANDB_TAGS", "wished")
    monkeypatch.setenv("WANDB_RUN_GROUP", "paper")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    told: list[str] = []
    t = follower(run, tell=told.append)
    row(run, 10)
    t.finish()
    assert told == []
    found = of_kind(records(tmp_path / "elsewhere"), "run")[-1]
    assert found.run_id == run_id(run) and list(found.tags) == ["wished"]
    assert found.run_group == "paper" and not (run / "wandb").exists()
    assert ClassificationExperiment(job="mnist").wandb_project == "crayon"
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    assert ClassificationExperiment(job="mnist").wandb_project == "thesis"


def test_a_wrong_variable_of_wandb_is_named(run, monkeypatch):
    monkeypatch.setenv("WANDB_QUIET", "nonsense")
    told: list[str] = []
    t = follower(run, tell=told.append)
    row(run, 10)
    t.finish()
    assert told and all("quiet: Input should be a valid boolean" in text for text in told)
