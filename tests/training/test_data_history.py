"""A run knows the images that it has learned from: other classes are refused, other images told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import flags, tiny
from PIL import Image

import crayon
from crayon.cli import main as cli
from crayon.config.settings import Experiment
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint, data_history, worker

SIDE = 8


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), np.uint8)
    Image.fromarray(pixels).save(path)  # a BMP: all of them have as many bytes


def settings(base: Path, **changes) -> Experiment:
    known = {"data__source": "folder", "data__root": str(base / "images"), "data__image_size": SIDE}
    known |= {"data__val_fraction": 0.2, "global_batch_size": 4, "epochs": 1, "data__size": None}
    return tiny("mnist", name="run", storage=str(base / "runs"), **known | changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """`images` of two classes, and `runs/run`, a classifier that was trained on them for an epoch."""
    base = tmp_path_factory.mktemp("base")
    for split, n in (("train", 12), ("test", 4)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(n):
                draw(base / "images" / split / name / f"{i:02}.bmp", 100 * k + i)
    config, run = settings(base), RunFolder(str(base / "runs"), "run")
    run.create()
    worker.build(config, worker.load_data(config), run).fit()
    return base


@pytest.fixture
def base(first, tmp_path) -> Path:
    """A copy, as if the run had been started there."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    os.utime(tmp_path / "images/train/cat/00.bmp")
    trainer = opened(settings(tmp_path), [])
    trainer.save(best=True)
    return tmp_path


def opened(config: Experiment, said: list[str]):
    """What goes on with the run of `config`; what it says is added to `said`."""
    run = RunFolder(config.storage, "run")
    trainer = worker.build(
        config, worker.load_data(config), run, emit=lambda event: said.append(str(event.text))
    )
    trainer.restore()
    assert trainer.step
    return trainer


def test_the_same_images_in_another_place_are_the_same(base):
    shutil.move(base / "images", base / "moved")
    said: list[str] = []
    trainer = opened(settings(base, data__root=str(base / "moved")), said)
    assert said == ["Going on from the checkpoint of step 4."]
    assert [entry["root"] for entry in trainer.data] == [str(base / "moved")]
    assert data_history.notes(trainer.data) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("renamed", "now there are aardvark, cat (gone: dog; new: aardvark)"),
        ("added", "now there are cat, dog, eel (new: eel)"),
    ],
)
def test_other_classes_are_refused_by_name_and_nothing_changes(base, change, told):
    for split in ("train", "test"):
        if change == "renamed":
            (base / "images" / split / "dog").rename(base / "images" / split / "aardvark")
        else:
            draw(base / "images" / split / "eel/0.bmp", 7)
    for name in ("result", "config"):
        (base / f"runs/run/{name}.json").write_text("{}")
    with pytest.raises(crayon.BadInput) as caught:
        cli.run("mnist", [*flags(settings(base, epochs=2)), "--extend"])
    assert f"Run 'run' was trained with classes cat, dog; {told}. Give it" in str(caught.value)
    assert {(base / f"runs/run/{name}.json").read_text() for name in ("result", "config")} == {"{}"}


def test_other_images_are_told_and_noted_in_the_report(base, capsys):
    for i in range(3):
        (base / f"images/train/cat/{i:02}.bmp").unlink()
    draw(base / "images/test/dog/more.bmp", 5)
    changed = "3 training images fewer (cat 12, now 9) and 1 test image more (dog 4, now 5)"
    assert cli.run("mnist", flags(settings(base))) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert (
        f"warning: The images changed: {changed} than when it began; it goes on with what is there now."
        in said
    )
    assert "doesn't count from here on: it was chosen by other validation images." in said
    report = (base / "runs/run/report.html").read_text()
    assert f"The images changed at step 4: {changed} than before." in report


def test_every_change_is_told_once(base):
    draw(base / "images/test/dog/00.bmp", 99)  # of the same name and size
    said: list[str] = []
    opened(settings(base), said).save()
    text = "The images changed: other test images than when it began; it goes on with what is there now."
    assert text in said and not [text for text in said if "doesn't count" in text]
    draw(base / "images/train/dog/more.bmp", 7)
    trainer = opened(settings(base), said := [])
    assert said[-2].startswith("The images changed: 1 training image more (dog 12, now 13) than at step 4;")
    assert len(data_history.notes(trainer.data)) == 2
    trainer.save()
    opened(settings(base), said := [])
    assert said == ["Going on from the checkpoint of step 4."]


def test_other_images_in_another_place_are_refused(base):
    shutil.copytree(base / "images", base / "other")
    (base / "other/train/cat/00.bmp").unlink()
    for _ in range(2):
        with pytest.raises(
            crayon.BadInput, match=r"started with other images \(data.root was .*, with 1 training"
        ):
            cli.run("mnist", flags(settings(base, data__root=str(base / "other"))))
        (base / "runs/run/result.json").write_text("{}")  # of a complete run, too


def test_a_run_from_before_fingerprints_knows_its_classes(base):
    found = checkpoint.load(checkpoint.latest(RunFolder.at(base / "runs/run")))
    now = found.state.pop("data")[-1]
    history, config = data_history.of(found), tiny("mnist")
    data_history.check(history, now, config, "It")
    assert data_history.follow(history, now) == ([history[0], now], "")
    assert data_history.notes([*history, now]) == []
    with pytest.raises(crayon.BadInput, match=r"classes cat, dog; now there are dog, cat \(in another order"):
        data_history.check(history, now | {"classes": ["dog", "cat"]}, config, "It")
    with pytest.raises(crayon.BadInput, match=r"data.root was .*, now elsewhere\)"):
        data_history.check(history, now | {"root": "elsewhere"}, config, "It")
    # To who learns no labels, classes are no more than a difference.
    data_history.check(history, now | {"classes": ["a"]}, tiny("autoencoder"), "It")


def test_evaluate_tells_other_images_and_refuses_other_classes(base, capsys):
    draw(base / "images/test/dog/00.bmp", 99)
    words = ["evaluate", str(base / "runs/run"), "--out", str(base / "out"), "--device", "cpu"]
    assert cli.run("mnist", words) == 0
    text = "The images changed: other test images than when this model was trained."
    assert f"warning: {text}" in " ".join("".join(capsys.readouterr()).split())
    assert text in (base / "out/report.html").read_text()
    assert cli.run("mnist", words) == 0  # as they are now, this was done already
    (base / "images/test/dog/01.bmp").unlink()
    with pytest.raises(crayon.BadInput, match=r"results of another command \(different: images\)"):
        cli.run("mnist", words)
    for split in ("train", "test"):
        (base / "images" / split / "dog").rename(base / "images" / split / "aardvark")
    with pytest.raises(crayon.BadInput, match="has the class 'aardvark' and the model has cat, dog"):
        cli.run("mnist", words)
