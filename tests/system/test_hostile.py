"""Runs and studies that someone has made to do harm: nothing in them is executed, nothing outside is touched."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest
from helpers import flags, tiny
from hostile import DEEP
from test_bad_input import execute, refused, run
from test_sweep_study import plan

from crayon.errors import BadInput
from crayon.report.wandb import run_id
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.tuning.study import Study


@pytest.fixture
def theirs(runs, tmp_path):
    """A run that came from someone else, not complete."""
    shutil.copytree(runs / "mnist", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path


def resumed(capsys, folder: Path) -> tuple[int, str, str]:
    return run(capsys, "mnist", folder)


def test_a_pickle_in_place_of_a_checkpoint(capsys, theirs, payload):
    newest = max((theirs / "run" / "checkpoints").iterdir())
    newest.write_bytes(payload)
    refused(resumed(capsys, theirs), "step-")
    with zipfile.ZipFile(newest, "w") as archive:  # as torch.save writes it
        archive.writestr("archive/data.pkl", payload)
    refused(resumed(capsys, theirs), "step-")


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "\x1b[2J\nnothing to see"},
        {"epochs": int("9" * 4000)},
        {"name": "../../elsewhere", "storage": "/etc", "extra": 1, "lr": None},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_poisoned_config_is_only_compared(capsys, theirs, change):
    place = RunFolder(str(theirs), "run")
    whole = checkpoint.load(checkpoint.latest(place))
    checkpoint.save(place, dataclasses.replace(whole, config=whole.config | change))  # its digests agree
    code, out, err = resumed(capsys, theirs)
    refused((code, out, err), "other settings", "--name")
    assert len(err) < 600 and "\x1b" not in err


@pytest.mark.parametrize("text", [DEEP, "[]", '{"test/\\u001b[2J": "\\u001b[2J"}'])
def test_a_poisoned_result(capsys, theirs, text):
    (theirs / "run" / "result.json").write_text(text)
    code, out, err = resumed(capsys, theirs)
    assert "\x1b" not in out + err
    if "test/" in text:
        assert code == 0 and "?[2J  ?[2J" in out  # shown, without its escape sequence
    else:
        refused((code, out, err), "result.json")


@pytest.mark.parametrize("text", [DEEP, "[]", '{"study": 3}'])
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


def database(tmp_path: Path) -> sqlite3.Connection:
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    number = study.add(study.suggest(), 3)
    study.report(number, 1, 0.5, 1.0, {})
    study.close()
    return sqlite3.connect(tmp_path / "study.db")


POISONED = {
    "crayon:sweep": ("3", '{"settings": 3, "space": {}}', DEEP, None),
    "crayon:driver": ("3", DEEP, None),
    "progress": ('{"at": 1e99, "seconds": "x", "epoch": [], "metrics": 3}', DEEP, None),
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in POISONED.items() for v in values])
def test_a_poisoned_study(tmp_path, payload, key, value):
    table = "trial_user_attributes" if key == "progress" else "study_user_attributes"
    content = payload if value is None else value
    with database(tmp_path) as base:
        base.execute(f"UPDATE {table} SET value_json = ? WHERE key = ?", (content, key))
    base.close()
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
    assert not (tmp_path / "s").exists()
    with pytest.raises(BadInput, match="pickles"):
        Study("rediss://localhost/0", "s", plan())
