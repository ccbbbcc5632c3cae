"""Jobs of one's own: what they may be, where they are found, and what is said of one that can't be."""

from __future__ import annotations

import ast
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import python, tiny
from torch import nn

import crayon
from crayon.cli import main as cli
from crayon.tasks import jobs, kind
from crayon.use.settings import commands_of

SHOWN = {"workers": 0, "wandb": "off", "device": "cpu", "global_batch_size": 8}


@pytest.fixture(autouse=True)
def registry(monkeypatch, own_cache):
    """What these tests register is gone afterwards."""
    monkeypatch.setattr(jobs, "_registered", {})
    monkeypatch.setattr(jobs, "_places", {})


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 10, 12), np.uint8)


def source(**changes):
    def load(split, root):
        n = {"train": 40, "test": 10}[split]
        return images(n), np.arange(n) % 3

    return crayon.Source(**({"name": "mine", "load": load, "classes": ("a", "b", "c")} | changes))


def job(**changes):
    config = crayon.ClassificationExperiment(
        epochs=2, data=crayon.DataConfig(source="mine", image_size=8, channels=1), **SHOWN
    )
    given = {"name": "own", "about": "Mine.", "presets": {"quick": config}, "source": source()}
    return crayon.Job(**(given | changes))


def linear(model, info):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.channels * info.image_size**2, len(info.classes)))


def test_a_job_trains_its_own_network_on_its_own_images(tmp_path):
    crayon.register(job(network=linear))
    run = crayon.train(crayon.preset("own", name="run", storage=str(tmp_path)))
    assert run.config["data.source"] == "mine" and run.config["job"] == "own"
    assert set(run.load().networks["classifier"].state_dict()) == {"1.weight", "1.bias"}
    assert run.load().classes == ["a", "b", "c"]
    assert list((tmp_path / "run" / "sources.json").read_text().split('"')[1:2]) == ["test_jobs.py"]


class Brightness(crayon.Task):
    """The mean of an image, by a linear layer."""

    monitor = ("mae", "min")

    def __init__(self, experiment, info):
        self.networks = nn.ModuleDict({"net": nn.Sequential(nn.Flatten(), nn.Linear(info.image_size**2, 1))})
        self.info = info

    def error(self, network, batch):
        return network(batch.images)[:, 0].float() - batch.images.flatten(1).mean(1)

    def loss(self, phase, nets, batch, rng):
        return self.error(nets[phase], batch).square().mean(), {}

    def evaluate(self, nets, batch, rng):
        error = self.error(nets["net"], batch).abs().double()
        return crayon.Statistics({"n": torch.tensor(len(error)), "mae": error.sum()})

    def summarize(self, stats, train=None):
        return {"mae": float(stats.sums["mae"] / stats.sums["n"])}


def test_a_task_without_settings_is_named_by_its_job(tmp_path, capsys):
    data = crayon.DataConfig(source="mine", image_size=8, channels=1)
    quick = {"quick": crayon.Experiment(epochs=2, data=data, **SHOWN)}
    with refused("own needs a task"):
        crayon.register(job(presets=quick))
    own = crayon.register(job(presets=quick, task=Brightness))
    assert commands_of("own") == ["export", "evaluate", "serve"]
    run = crayon.train(crayon.preset("own", name="run", storage=str(tmp_path)), progress=True)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(shown) == 2 and all("val mae" in line for line in shown), shown
    assert run.result["test/mae"] > 0 and "test_jobs.py" in (run.path / "sources.json").read_text()
    assert set(run.load().networks["net"].state_dict()) == {"1.weight", "1.bias"}
    for command in ("serve", "predict"):
        with refused("can't classify" if command == "serve" else "no command"):
            cli.run(own, [command, str(run.path)])
    assert cli.run(own, ["export", str(run.path), "--out", str(tmp_path / "out"), "--formats", "pt2"]) == 0
    assert "names no function to export" in capsys.readouterr().out
    # It may also stand in the place of a built-in task, with the settings of that.
    whole = job(task=type("Other", (Brightness,), {})).experiment()
    assert whole.abilities == ("classify",) and kind(whole).__name__ == "Other"


def test_the_help_has_what_is_the_jobs_own(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Wide:
        """Mine."""

        width: int = 3

    config = dataclasses.replace(job().experiment(), model=Wide())
    cli.run(job(presets={"quick": config, "long": {"epochs": 3}}), ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for words in ("--model.width INT", "This job has quick, long.", "Or the job's own: mine."):
        assert words in told
    assert "--optim.eps" not in told


def refused(match: str):
    return pytest.raises(crayon.BadInput, match=match)


def test_jobs_that_cannot_be_are_told_where_they_are_used(capsys):
    config = tiny("mnist")
    for given, said in (
        ({"name": "a b"}, "can't be called 'a b'"),
        ({"name": None}, "can't be called None"),
        ({"presets": [config]}, "own needs a preset"),
        ({"source": source(name="a/b")}, "source can't be called"),
        ({"source": source(load=None)}, "`load` is no function but a NoneType"),
        ({"presets": {}}, "own needs a preset"),
        ({"presets": {"quick": {"epochs": 3}}}, "own needs a preset, the first of them a whole"),
        (
            {"presets": {"quick": config, "long": {"epoch": 3}}},
            r"'epoch', which is no setting of it; did you mean epochs\?",
        ),
        ({"presets": {"quick": config, "long": {"epochs": 0}}}, "--epochs 0 is out of range"),
    ):
        wrong = job(**given)  # at the top of a script, where nothing could make a sentence of it
        with refused(said):
            crayon.register(wrong)
        with pytest.raises(SystemExit) as end:
            crayon.main(wrong, [])
        told = capsys.readouterr().err
        assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    crayon.register(job())
    again = crayon.register(job())  # as by a cell of a notebook that is run again
    assert crayon.jobs()["own"] is again
    with refused("There is a job 'own' already"):
        cli.run(job(), [])
    with refused("There is a job 'mnist' already"):
        crayon.register(job(name="mnist"))
    with refused("There is no preset 'slow' for own; choose --preset quick"):
        crayon.preset("own", "slow")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (
            lambda model, info: nn.Flatten(),
            r"makes \(2, 64\) of images \(2, 1, 8, 8\); a classifier makes logits \(2, 3\)",
        ),
        (lambda model, info: nn.Linear(3, 3), r"fails on images \(2, 1, 8, 8\)"),
    ],
)
def test_a_network_of_the_wrong_shape_is_told(network, said, tmp_path):
    crayon.register(job(network=network))
    with refused(said):
        crayon.train(crayon.preset("own", storage=str(tmp_path)))


@pytest.mark.slow
def test_on_ray_a_network_of_the_wrong_shape_is_told_before_a_worker_starts(tmp_path):
    code = f"""
import crayon
from test_jobs import job, nn
crayon.register(job(network=lambda model, info: nn.Flatten()))
try:
    crayon.train(crayon.preset("own", storage={str(tmp_path)!r}, name="run", workers=1), progress=True)
except crayon.BadInput as error:
    print(error)
"""
    out, err = python(code).communicate(timeout=200)
    assert "a classifier makes logits (2, 3)" in out and err == "" and "images of mine" not in out


def test_modules_that_cannot_be_imported_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad_jobs.py").write_text("import nothing_like_this\n")
    Path("good_jobs.py").write_text("job = 3\n")
    for place, said in (
        ("none.py:job", "There is no file none.py"),
        ("none.such:job", "There is no module 'none.such'"),
        ("good_jobs.py:jop", "good_jobs.py has no 'jop'; did you mean job?"),
        ("json:dumps", "json:dumps is no crayon.Job but a function"),
        ("bad_jobs.py:job", "bad_jobs.py can't be imported"),
    ):
        with refused(re.escape(said)):
            cli.run(None, [place, "--epochs", "1"])
    assert "nothing_like_this" in capsys.readouterr().err  # the user's own traceback


def test_loading_a_run_imports_nothing_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    crayon.register(job(network=linear))
    run = crayon.train(crayon.preset("own", name="run", storage=str(tmp_path)))
    monkeypatch.setattr(jobs, "_registered", {})
    Path("test_jobs.py").write_text("open('executed', 'w')\n")
    (run.path / "sources.json").write_text('{"test_jobs.py": ""}')
    with refused(r"made by test_jobs\.py.*named by its module, as in my_jobs\.py:flowers"):
        run.load()
    assert not Path("executed").exists()


def test_an_installed_package_brings_jobs(tmp_path, monkeypatch):
    (tmp_path / "flowers_jobs.py").write_text(
        "import crayon\njob = crayon.Job(name='flowers', about='', presets={'quick': crayon.preset('mnist')})\n"
    )
    (tmp_path / "flowers-1.dist-info").mkdir()
    (tmp_path / "flowers-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flowers\nVersion: 1\n"
    )
    (tmp_path / "flowers-1.dist-info" / "entry_points.txt").write_text(
        "[crayon.jobs]\nflowers = flowers_jobs:job\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "flowers" in jobs.names() and crayon.preset("flowers").job == "flowers"
    assert crayon.jobs()["flowers"].presets.keys() == {"quick"}


def test_nothing_but_the_jobs_names_a_job():
    """Sources have names of their own, of which two are those of jobs; so has the autoencoder's network."""
    root, names = Path(crayon.__file__).parent, jobs.names()
    for path in root.rglob("*.py"):
        place = path.relative_to(root).parts
        if place[:2] == ("tasks", "jobs") or place[0] == "data" or place[-1] == "card.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in names:
                assert place[:2] == ("tasks", "reconstruction") or (
                    node.value == "mnist" and place[-1] == "settings.py"
                ), path
