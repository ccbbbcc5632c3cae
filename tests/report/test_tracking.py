"""Weights & Biases, read back from what it wrote; and every way in which it can fail on this machine, none of which may
be felt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from wandb_files import Warnings, arguments_of_children, history, of_kind, records, tracker

from crayon.report import wandb
from crayon.report.wandb import run_id

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def rows_to(run: Path, steps: list[int]) -> None:
    lines = [json.dumps({"step": s, "epoch": s // 10, "train/loss": 1 / s, "bad": None}) for s in steps]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_an_offline_run_holds_everything(run, capfd):
    (run / "step-7.safetensors").write_bytes(bytes(100))
    Image.new("RGB", (4, 4)).save(run / "over_time.gif")
    warnings = Warnings()
    t = tracker(run, warn=warnings)
    t.log({"step": 10, "epoch": 1, "val/accuracy": 0.5, "val/nan": float("nan"), "val/none": None}, 10)
    t.log({"step": 20, "epoch": 2, "val/accuracy": 0.75}, 20)
    t.pictures({"grid": Image.new("RGB", (8, 8), "red"), "over_time": run / "over_time.gif"}, 20)
    t.confusion_matrix([[5, 1], [0, 4]], ["cat", "dog"], 20)
    t.artifact(run / "step-7.safetensors", "a run/model", {"test/accuracy": 0.8})
    t.finish({"test/accuracy": 0.8, "step": 10})

    assert warnings == []
    found = records(run)
    (started,) = of_kind(found, "run")
    assert (started.project, started.display_name, started.run_group, started.job_type) == (
        "crayon-tests",
        "a run",
        "mnist",
        "train",
    )
    assert started.run_id == run_id(run)
    config = {c.key: json.loads(c.value_json) for c in started.config.update}
    assert (config["lr"], config["data.source"]) == (1e-3, "digits")
    logged = [row for row in history(found) if "val/accuracy" in row]
    assert [(r["step"], r["epoch"], r["val/accuracy"]) for r in logged] == [(10, 1, 0.5), (20, 2, 0.75)]
    assert not {"val/nan", "val/none"} & set(logged[0])
    media = [p.path for files in of_kind(found, "files") for p in files.files]
    assert any(m.startswith("media/images/pictures/grid") for m in media)
    assert any(m.startswith("media/videos/pictures/over_time") and m.endswith(".gif") for m in media)
    models = [a for a in of_kind(found, "artifact") if a.type == "model"]
    assert [(a.name, [c.path for c in a.manifest.contents]) for a in models] == [
        ("a-run-model", ["step-7.safetensors"])
    ]
    (table,) = run.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [
        ["cat", "cat", 5],
        ["cat", "dog", 1],
        ["dog", "cat", 0],
        ["dog", "dog", 4],
    ]
    summary = {
        i.key or "/".join(i.nested_key): i.value_json for s in of_kind(found, "summary") for i in s.update
    }
    assert summary["test/accuracy"] == "0.8"
    assert summary["selected/step"] == "10"
    assert of_kind(found, "exit")[0].exit_code == 0
    assert {m.glob_name: m.step_metric for m in of_kind(found, "metric")}["*"] == "step"
    (folder,) = run.glob("wandb/offline-run-*")
    assert t.sync_command == f"wandb sync {folder}"
    assert capfd.readouterr() == ("", "")  # silent


KILLED = """
import os, sys, time
from pathlib import Path
from crayon.report.wandb import Tracker
run = Path(sys.argv[1])
t = Tracker(mode="auto", project="p", name="n", config={}, folder=run)
for step in (10, 20, 30):
    t.log({"step": step, "train/loss": 0.5}, step)
while not list(run.glob("wandb/offline-run-*/*.wandb")) or not t.sync_command:
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


def test_a_killed_and_resumed_run_has_every_row_once(run):
    subprocess.run([sys.executable, "-c", KILLED, str(run)], check=False, timeout=60)
    first = run_id(run)
    rows_to(run, [10, 20])  # the checkpoint was at step 20
    t = tracker(run)
    for step in (30, 40):
        t.log({"step": step, "train/loss": 1 / step}, step)
    t.finish({})
    found = records(run)  # of the one offline folder there is
    assert of_kind(found, "run")[0].run_id == first == run_id(run)
    assert [(r["step"], r["train/loss"]) for r in history(found)] == [(s, 1 / s) for s in (10, 20, 30, 40)]


def test_a_run_resumed_after_its_last_row_is_whole_too(run):
    rows_to(run, [10, 20])
    t = tracker(run)
    t.finish({"test/accuracy": 1.0}, failed=True)
    assert [r["step"] for r in history(records(run))] == [10, 20]
    assert of_kind(records(run), "exit")[0].exit_code == 1


def test_rows_the_server_has_are_not_sent_again():
    from crayon.report.wandb_process import handle

    class Run(list):
        def log(self, row):
            self.append(row)

    run = Run()
    for step in (10, 20, 30):
        handle(run, {"do": "log", "row": {"step": step}}, last=20)
    assert run == [{"step": 30}]


def test_another_folder_is_another_run(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert run_id(tmp_path / "a") == run_id(tmp_path / "a") != run_id(tmp_path / "b")


def test_starting_and_logging_do_not_wait(run):
    begun = time.perf_counter()
    t = tracker(run)
    for step in range(1, 500):
        t.log({"step": step, **{f"val/recall/{i}": 0.1 for i in range(100)}}, step)
    assert time.perf_counter() - begun < 1.0
    t._give_up("enough")


@pytest.mark.parametrize(("mode", "variable"), [("off", None), ("auto", "disabled")])
def test_off_does_nothing(run, monkeypatch, mode, variable):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    t = tracker(run, mode)
    t.log({"step": 1}, 1)
    t.pictures({"x": Image.new("L", (2, 2))}, 1)
    t.artifact(run, "x", {})
    t.finish({})
    assert list(run.iterdir()) == []
    assert t.sync_command == ""


def test_what_could_not_be_sent_is_told_at_the_end(run):
    warnings = Warnings()
    t = tracker(run, "offline", warnings)
    t.log({"step": 10}, 10)
    t.artifact(run / "gone", "gone", {})
    t.finish({})
    assert len(warnings) == 1 and warnings[0].startswith("W&B: artifact could not be sent")
    assert [r["step"] for r in history(records(run))] == [10]


def test_online_without_a_key_says_so_and_goes_on_offline(run):
    warnings = Warnings()
    t = tracker(run, "online", warnings)
    t.log({"step": 10}, 10)
    t.finish({})
    assert len(warnings) == 1
    assert "no API key is configured" in warnings[0]
    assert [r["step"] for r in history(records(run))] == [10]


@pytest.mark.parametrize("command", ["/nonexistent/python", "/bin/false"])
def test_a_process_that_does_not_start_is_one_warning(run, monkeypatch, command):
    monkeypatch.setattr(sys, "executable", command)
    warnings = Warnings()
    t = tracker(run, "offline", warnings)
    t.log({"step": 10}, 10)
    t.finish({})
    assert len(warnings) == 1
    assert "off for the rest of this run" in warnings[0]


def test_a_process_that_dies_is_one_warning(run):
    warnings = Warnings()
    t = tracker(run, "offline", warnings)
    t.log({"step": 0}, 0)
    deadline = time.monotonic() + 30
    while t._process is None and time.monotonic() < deadline:
        time.sleep(0.01)
    t._process.kill()
    for step in range(1, 100):
        t.log({"step": step}, step)
    t.finish({})
    t.log({"step": 101}, 101)
    assert len(warnings) == 1


def test_a_process_that_hangs_is_given_up(run, monkeypatch):
    hang = run / "hang"
    hang.write_text("#!/bin/sh\nexec sleep 60\n")
    hang.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hang))
    monkeypatch.setattr(wandb, "FINISH_SECONDS", 1.0)
    warnings, begun = Warnings(), time.monotonic()
    t = tracker(run, "offline", warnings)
    t.log({"step": 10}, 10)
    t.finish({})
    assert time.monotonic() - begun < 8
    assert len(warnings) == 1
    assert "sleep" not in arguments_of_children()


def test_an_unwritable_folder_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    warnings = Warnings()
    t = tracker(tmp_path / "file", "offline", warnings)
    t.log({"step": 10}, 10)
    t.finish({})
    assert len(warnings) == 1


def test_variables_of_another_run_and_a_home_that_cannot_be_written_change_nothing(run, monkeypatch):
    for name, value in {
        "WANDB_SERVICE": "3-1-tcp-localhost-9-9",  # of a notebook that has ended
        "WANDB_RESUME": "nonsense",
        "WANDB_RESUME_FROM": "abc?_step=1",
        "WANDB_FORK_FROM": "abc?_step=1",
        "HOME": "/proc/nowhere",
        "WANDB_TAGS": "wished",
    }.items():
        monkeypatch.setenv(name, value)
    warned = Warnings()
    t = tracker(run, warn=warned)
    t.log({"step": 1, "train/loss": 0.5}, 1)
    t.confusion_matrix([[5, 1], [0, 4]], ["cat", "dog"], 1)
    t.finish({})
    assert warned == []
    (found,) = of_kind(records(run), "run")
    assert found.run_id == run_id(run) and list(found.tags) == ["wished"]


def test_a_wrong_variable_of_wandb_is_named(run, monkeypatch):
    monkeypatch.setenv("WANDB_QUIET", "nonsense")
    warned = Warnings()
    tracker(run, warn=warned).finish({})
    assert warned and all("quiet: Input should be a valid boolean" in text for text in warned)


def test_what_switches_wandb_off_elsewhere_does_here(run, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert not tracker(run).on and not (run / "wandb").exists()
    assert tracker(run, "offline").on  # asked for by name
