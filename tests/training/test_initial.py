"""Runs that begin with other weights, go on for more epochs, or with another run's settings."""

from __future__ import annotations

import json

import pytest
import torch
from disks import s3_server
from helpers import flags, rows, tiny
from safetensors.torch import save_file

import crayon
from crayon.cli import main as cli
from crayon.system.runfolder import RunFolder
from crayon.training import worker


def train(tmp_path, name, **changes):
    return crayon.train(tiny("mnist", name=name, storage=str(tmp_path), epochs=1, **changes))


def test_a_run_begins_with_what_fits_of_another_ones_weights(tmp_path, capsys):
    first = train(tmp_path, "first")
    again = tiny("mnist", name="again", storage=str(tmp_path), epochs=1, lr=1e-12, init_from=str(first.path))
    again = crayon.train(again, progress=True)
    old, new = (run.load().networks["classifier"].state_dict() for run in (first, again))
    weights = [name for name in old if name.endswith("weight") and "norm" not in name]
    assert weights and all(torch.allclose(old[name], new[name], atol=1e-6) for name in weights)
    made = json.loads((again.path / "initial.json").read_text())
    assert made["from"] == str(first.path) and not made["not taken"]

    wide = tiny(
        "mnist", name="wide", storage=str(tmp_path), epochs=1, init_from=str(first.path), model__growth=3
    )
    crayon.train(wide, progress=True)
    out = capsys.readouterr().out
    assert "Began with" in out and "there," in out and "not classifier.stages.1" in out
    # The file of one network, without its name at the beginning of the tensors'.
    save_file({name: tensor.contiguous() for name, tensor in old.items()}, tmp_path / "w.safetensors")
    crayon.train(
        tiny("mnist", name="file", storage=str(tmp_path), epochs=1, init_from=str(tmp_path / "w.safetensors"))
    )
    assert not json.loads((tmp_path / "file" / "initial.json").read_text())["not taken"]


def test_other_classes_of_the_run_that_one_begins_with_are_named(tmp_path):
    from PIL import Image

    def begin(name, *classes, **changes):
        for label in classes:
            (tmp_path / name / "train" / label).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 60 * i).save(tmp_path / name / "train" / label / f"{i}.png")
        data = {"data__source": "folder", "data__root": str(tmp_path / name), "data__image_size": 8}
        config = tiny(
            "mnist", name="run", storage=str(tmp_path / name), global_batch_size=2, **data, **changes
        )
        said = []
        run = RunFolder(config.storage, "run")
        run.create()
        trainer = worker.build(config, worker.load_data(config), run, emit=said.append)
        trainer.save()
        return " ".join(event.text for event in said if getattr(event, "warning", False))

    assert not begin("a", "ash", "oak")
    place = str(tmp_path / "a" / "run")
    told = "was trained with other classes: 2 of them, here"
    assert f"{told} 2 (gone: ash; new: elm)" in begin("b", "elm", "oak", init_from=place)
    assert f"{told} 3 (new: elm)" in begin("c", "ash", "elm", "oak", init_from=place)
    assert not begin("d", "ash", "oak", init_from=place)


def test_a_run_begins_with_the_weights_of_one_in_an_object_store(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))
    with s3_server() as query:
        crayon.train(tiny("mnist", name="first", storage=f"s3://bucket/runs{query}", epochs=1))
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "another machine"))
        place = f"s3://bucket/runs/first{query}"
        crayon.train(tiny("mnist", name="again", storage=str(tmp_path), epochs=1, init_from=place))
        assert not json.loads((tmp_path / "again" / "initial.json").read_text())["not taken"]
        nothing = tiny(
            "mnist", name="no", storage=str(tmp_path), epochs=1, init_from=place.replace("first", "no")
        )
        with pytest.raises(
            crayon.BadInput, match=r"--init-from: s3://bucket/runs/no.* has no complete checkpoint"
        ):
            crayon.train(nothing)


def test_what_cannot_be_begun_with_is_told(tmp_path):
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("x")
    for place, said in (
        ("other.safetensors", "nothing in .* fits this network"),
        ("empty", "has no complete checkpoint"),
        ("text.safetensors", "can't be read as a run or a .safetensors file"),
        ("nowhere", "there is no folder or file"),
    ):
        with pytest.raises(crayon.BadInput, match=said):
            train(tmp_path, "x", init_from=str(tmp_path / place))


def test_a_complete_run_is_extended(tmp_path):
    run = train(tmp_path, "run")
    longer = tiny("mnist", name="run", storage=str(tmp_path), epochs=3)
    with pytest.raises(crayon.BadInput, match=r"epochs was 1, now 3.*add --extend"):
        crayon.train(longer)
    assert crayon.train(longer, extend=True).result["epochs"] == 3
    assert [row["epoch"] for row in rows(run.path)] == [1, 2, 3]
    assert crayon.train(longer).result["epochs"] == 3  # an ordinary run by now
    with pytest.raises(crayon.BadInput, match="lr was"):
        crayon.train(tiny("mnist", name="run", storage=str(tmp_path), epochs=5, lr=0.5), extend=True)
    assert run.result["epochs"] == 3, "what was refused has removed the result"
    with pytest.raises(crayon.BadInput, match="epochs was 3, now 1"):
        crayon.train(tiny("mnist", name="run", storage=str(tmp_path), epochs=1), extend=True)


def test_the_settings_of_a_run_are_read_back_and_shown(tmp_path, capsys):
    config = tiny("mnist", name="run", storage=str(tmp_path), epochs=1, lr=0.0123)
    crayon.train(config)
    file = str(tmp_path / "run" / "config.json")
    assert cli.run("mnist", ["--config", file, "--epochs", "2", "--print-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert shown == kept | {"epochs": 2, "name": None, "storage": "runs"}
    assert cli.run("mnist", [*flags(config), "--print-config"]) == 0
    asked = {name: "auto" for name in ("task.balance", "task.monitor")}  # decided when the run began
    assert json.loads(capsys.readouterr().out) == kept | asked
    for name, text in (
        ("bad", '{"job": "mnist", "preset": "quick", "none": 3}'),
        ("text", '{"job": "mnist", "epochs": "ten"}'),
        ("list", "[3]"),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    for job, place, said in (
        ("cifar10", file, "is of mnist; give one of cifar10"),
        ("mnist", str(tmp_path / "no.json"), "can't be read"),
        ("mnist", str(tmp_path / "bad.json"), "There is no option --none"),
        ("mnist", str(tmp_path / "text.json"), "--epochs ten is not a whole number"),
        ("mnist", str(tmp_path / "list.json"), "can't be read as a run's config.json"),
    ):
        with pytest.raises(crayon.BadInput, match=said):
            cli.run(job, ["--config", place])
