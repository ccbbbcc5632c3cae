"""Runs and studies that someone has made to do harm: nothing in them is executed, nothing outside is touched."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest
from helpers import flags, tiny
from hostile import DEEP
from test_bad_input import execute, refused, run
from test_sweep_study import plan

from crayon.cli import main as cli
from crayon.errors import BadInput
from crayon.report.wandb import run_id
from crayon.system.files import private_folder
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.tune.study import Study

# Checkpoints and what else lies in a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.raises(SystemExit) as end:
        cli.main("mnist", flags(tiny("mnist", name="run", storage=str(folder), epochs=1)))
    assert end.value.code == 0
    return folder


@pytest.fixture
def theirs(finished, tmp_path):
    """A run that came from someone else, not complete."""
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path


def newest(folder: Path) -> Path:
    return max((folder / "run" / "checkpoints").iterdir())


def forge(folder: Path, change: dict) -> None:
    """Change the settings in the newest checkpoint; its digests agree."""
    place = RunFolder(str(folder), "run")
    theirs = checkpoint.load(checkpoint.latest(place))
    checkpoint.save(place, dataclasses.replace(theirs, config=theirs.config | change))


def resumed(capsys, folder: Path) -> tuple[int, str, str]:
    return run(capsys, "mnist", folder, epochs=1)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_place_of_a_checkpoint(capsys, theirs, payload, kind):
    if kind == "pickle":
        newest(theirs).write_bytes(payload)
    else:
        with zipfile.ZipFile(newest(theirs), "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    refused(resumed(capsys, theirs), "step-")


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "\x1b[2J\nnothing to see"},
        {"lr": 10.0**300},
        {"epochs": int("9" * 4000)},
        {"data.root": "/etc"},
        {"data.source": {"a": [{}]}},
        {"preset": "x" * 10**6},
        {"name": "../../elsewhere", "storage": "/etc", "extra": 1, "lr": None},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_poisoned_config_is_only_compared(capsys, theirs, change):
    forge(theirs, change)
    code, out, err = resumed(capsys, theirs)
    refused((code, out, err), "other settings", "--name")
    assert len(err) < 600 and "\x1b" not in err


@pytest.mark.parametrize(
    "text", [DEEP, "[]", "3", '"x"', '{"seconds": "x"}', '{"a": "\\u001b[2J"}', '{"\\u001b": 1}']
)
def test_a_poisoned_result(capsys, theirs, text):
    (theirs / "run" / "result.json").write_text(text)
    code, out, err = resumed(capsys, theirs)
    refused((code, out, err), "result.json")
    assert "\x1b" not in out + err


def test_rows_that_are_none(capsys, theirs):
    (theirs / "run" / "metrics.jsonl").write_text(f"{DEEP}\n[]\n")
    assert RunFolder(str(theirs), "run").read_rows("metrics.jsonl") == []


@pytest.mark.parametrize("text", [DEEP, "[]", "3", '{"study": 3}', '{"study": {"a": 1}}'])
def test_a_poisoned_sweep(capsys, tmp_path, text):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(text)
    words = ["tune", *flags(tiny("mnist", name="s", storage=str(tmp_path)))]
    refused(execute(capsys, "mnist", words), "sweep.json")


def test_an_id_that_leads_to_another_folder(tmp_path):
    (tmp_path / "run").mkdir()
    for text in ("x/../../../precious", "*", "../x", "a\nb", "\x1b[31m", "", "a" * 500):
        (tmp_path / "run" / "wandb_id").write_text(text)
        assert set(run_id(tmp_path / "run")) <= set("crayon0123456789abcdef")


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "wandb_id", "wandb", "checkpoints", "pictures/over_time"]
)
def test_links_out_of_a_run(capsys, theirs, name):
    """Not followed: a lock is emptied when it is taken, rows are added, old checkpoints and W&B folders deleted."""
    precious = theirs / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    path = theirs / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(precious / "file" if "." in name or name == "wandb_id" else precious)
    refused(resumed(capsys, theirs), name, "link")
    assert [p.name for p in precious.iterdir()] == ["file"] and (precious / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["../x", "..", ".", "/etc", "a/b", "a\0b", "~", "$HOME", "\x1b[2J", "-x y"])
def test_names_that_lead_elsewhere(capsys, tmp_path, name):
    if "\0" not in name:  # the system itself refuses it in an argument
        refused(execute(capsys, "mnist", [f"--name={name}", "--storage", str(tmp_path / "runs")]), "--name")
    with pytest.raises(BadInput):
        RunFolder(str(tmp_path), name)
    assert not list(tmp_path.iterdir())


def test_objects_whose_names_lead_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))
    remote = RunFolder("s3://bucket/x", "run")

    class Store:
        uri = "s3://bucket/x/run"
        names = (
            "../up",
            "a/../../up",
            "/abs",
            "a//b",
            "..",
            "checkpoints/../../up",
            "ok.json",
            "\x1b[2J",
            "a/b/",
        )

        def list(self):
            return list(self.names)

        def download(self, name, file):
            file.write_bytes(b"x")

    remote.store = Store()
    remote.pull()
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"ok.json", ".pull"}


# Studies

WITHOUT_PLAN = '{"settings": 3, "space": {}}'


def database(tmp_path: Path) -> sqlite3.Connection:
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    number = study.add(study.suggest(), 3)
    study.report(number, 1, 0.5, 1.0, {})
    study.close()
    return sqlite3.connect(tmp_path / "study.db")


@pytest.mark.parametrize(
    "value",
    [
        "3",
        "[]",
        '"x"',
        "{}",
        WITHOUT_PLAN,
        '{"at": 1e99, "seconds": "x", "epoch": [], "metrics": 3}',
        DEEP,
        None,
    ],
)
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("study_user_attributes", "crayon:sweep"),
        ("study_user_attributes", "crayon:driver"),
        ("trial_user_attributes", "progress"),
    ],
)
def test_a_poisoned_study(tmp_path, payload, table, key, value):
    content = payload if value is None else value
    with database(tmp_path) as base:
        base.execute(f"UPDATE {table} SET value_json = ? WHERE key = ?", (content, key))
    base.close()
    # An empty one is as good as none, and what else it holds is not looked at.
    harmless = {"crayon:sweep": (), "crayon:driver": ("{}", "[]"), "progress": ("{}", WITHOUT_PLAN)}[key]
    if value in harmless:
        Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan()).close()
        return
    with pytest.raises(BadInput) as error:
        Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_pickle_as_a_study(tmp_path, payload):
    (tmp_path / "study.db").write_bytes(payload)
    with pytest.raises(BadInput, match="damaged"):
        Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())


def test_a_storage_that_would_unpickle_is_refused(capsys, tmp_path):
    words = flags(tiny("mnist", name="s", storage=str(tmp_path)))
    refused(
        execute(capsys, "mnist", ["tune", *words, "--study", "redis://localhost/0"]),
        "--study redis://",
        "SQLite",
    )
    with pytest.raises(BadInput, match="pickles"):
        Study("rediss://localhost/0", "s", plan())


def test_a_scratch_folder_that_is_a_trap(tmp_path, monkeypatch):
    from crayon.launch import cluster

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"crayon-ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="link"):
        cluster.scratch()
    assert private_folder(tmp_path / "elsewhere")
