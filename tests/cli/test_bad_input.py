"""Whatever is asked wrongly: one sentence on stderr, exit code 2, no traceback, no worker, nothing lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import flags, tiny

from crayon.cli import main as cli
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint


def run(capsys, kind: str, folder: Path, **changes) -> tuple[int, str, str]:
    config = tiny(kind, name="run", storage=str(folder), **changes)
    return execute(capsys, config.job, flags(config))


def execute(capsys, job: str, arguments: list[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(job, arguments)
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, ["--epochs 0"]),
        ({"lr": float("nan")}, ["--lr"]),
        ({"augment__rotate": float("inf")}, ["--augment.rotate inf", "finite"]),
        ({"workers": -1}, ["--workers -1"]),
        ({"workers": 10_000, "global_batch_size": 10_000}, ["--workers 10000", "CPU cores"]),
        ({"threads": 0}, ["--threads 0", "at least 1"]),
        ({"device": "mps", "workers": 1}, ["--device mps", "--workers 0"]),
        ({"threads": 10_000}, ["--threads 10000", "CPU cores"]),
        ({"workers": 2, "global_batch_size": 1}, ["--global-batch-size 1", "fewer workers"]),
        ({"global_batch_size": 5000}, ["5,000", "training images"]),
        ({"data__source": "imagenet"}, ["imagenet", "mnist"]),
        ({"data__source": "folder"}, ["--data.root"]),
        ({"data__source": "folder", "data__root": "/nowhere/at/all"}, ["/nowhere/at/all"]),
        ({"data__source": "mnist", "data__root": "/nowhere/at/all"}, ["/nowhere/at/all"]),
        ({"data__image_size": 0}, ["--data.image-size"]),
        ({"name": "../escape"}, ["--name"]),
        ({"storage": "ftp://host/x"}, ["ftp://"]),
        ({"model__dropout": 1.5}, ["--model.dropout 1.5", "between 0 and 1"]),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work(capsys, tmp_path, changes, words):
    refused(
        execute(capsys, "mnist", flags(tiny("mnist", **({"name": "r", "storage": str(tmp_path)} | changes)))),
        *words,
    )
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_size_that_the_gan_cannot_make_is_said_before_an_image_is_read(capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "no image.jpg").write_text("of which decoding would complain")
    changes = {"data__source": "folder", "data__root": str(tmp_path / "photos"), "data__image_size": "100x70"}
    refused(run(capsys, "gan", tmp_path, **changes), "100x70", "96x64 or 96x80")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(capsys, tmp_path):
    refused(run(capsys, "mnist", tmp_path, device="cuda"), "--device cuda")


def test_storage_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(run(capsys, "mnist", tmp_path / "file"), "--storage", "file is in the way")
    if Path("/proc/1").exists():
        refused(run(capsys, "mnist", Path("/proc/1")), "--storage")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, trained once."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.raises(SystemExit) as end:
        cli.main("mnist", flags(tiny("mnist", name="run", storage=str(folder))))
    assert end.value.code == 0
    return folder


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of it, as a command killed just before it wrote its results leaves it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in sorted((folder / "run" / "checkpoints").rglob("*")) if p.is_file()
    }


def test_a_checkpoint_of_other_settings_another_job_or_preset(capsys, trained):
    before = snapshot(trained)
    refused(run(capsys, "mnist", trained, lr=0.123), "lr", "0.123", "--name")
    refused(run(capsys, "mnist", trained, epochs=9), "epochs", "--name")
    refused(run(capsys, "autoencoder", trained), "mnist", "autoencoder", "--name")
    refused(
        execute(capsys, "mnist", [*flags(tiny("mnist", name="run", storage=str(trained), preset="full"))]),
        "preset",
    )
    assert snapshot(trained) == before


def test_a_setting_that_came_later_than_the_checkpoint(capsys, trained):
    folder = RunFolder(str(trained), "run")
    old = checkpoint.load(checkpoint.latest(folder))
    del old.config["model.activation"]
    checkpoint.save(folder, old, best=checkpoint.latest(folder).best)
    refused(run(capsys, "mnist", trained, model__activation="gelu"), "(model.activation was relu, now gelu)")
    code, out, _ = run(capsys, "mnist", trained)
    assert code == 0 and "Going on from the checkpoint" in out


def test_a_damaged_checkpoint_and_one_of_an_older_layout(capsys, trained):
    path = checkpoint.latest(RunFolder(str(trained), "run")).path
    os.truncate(path, path.stat().st_size // 2)
    before = snapshot(trained)
    refused(run(capsys, "mnist", trained), path.name)
    assert snapshot(trained) == before
    path.unlink()
    path.with_suffix("").mkdir()
    refused(run(capsys, "mnist", trained), "crayon 0.1")


def test_the_same_name_twice_at_once(capsys, trained):
    other = RunFolder(str(trained), "run")
    with other.lock():
        refused(run(capsys, "mnist", trained), "--name")


def test_ray_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    config = tiny("mnist", name="run", storage=str(tmp_path), workers=1)
    code, _, err = execute(capsys, "mnist", flags(config))
    assert code == 2 and "RAY_ADDRESS=127.0.0.1:1" in err and err.count("\n") == 1
