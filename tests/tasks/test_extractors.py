"""What GANs are measured in, where its weights are there and where they aren't."""

from __future__ import annotations

import hashlib

import pytest
import torch
from helpers import rows, tiny
from test_trainer import make as make_trainer

import crayon
from crayon import tasks
from crayon.config.names import identity
from crayon.errors import BadInput, Stopped
from crayon.system.runfolder import RunFolder
from crayon.tasks.adversarial import features
from crayon.tasks.adversarial.features import extractor
from crayon.training import checkpoint, worker


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Makes this a machine that has, or hasn't, a file in the place of Inception's weights."""

    def at(weights: bool) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / f"torch-{weights}"))
        features.weights_path().parent.mkdir(parents=True, exist_ok=True)
        if weights:
            features.weights_path().write_bytes(b"not looked at")

    monkeypatch.setattr(features, "URL", "http://127.0.0.1:9/none.pth")
    return at


def test_inception_without_its_weights_says_what_to_do(elsewhere, tmp_path):
    elsewhere(weights=False)
    assert extractor("auto").name == "crayon64"
    with pytest.raises(BadInput, match=r"could not be downloaded from .*--task\.extractor crayon64"):
        extractor("inception2015")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_inception_is_downloaded_verified_and_from_then_on_chosen(elsewhere, tmp_path, monkeypatch):
    elsewhere(weights=False)
    served = tmp_path / "served.pth"
    torch.save(features.Inception2015().net.state_dict(), served)
    monkeypatch.setattr(features, "URL", served.as_uri())
    with pytest.raises(BadInput, match=r"could not be downloaded.*hash"):
        extractor("inception2015")
    assert not features.weights_path().exists()
    monkeypatch.setattr(features, "SHA256", hashlib.sha256(served.read_bytes()).hexdigest())
    extractor("inception2015")
    net = extractor("auto")
    assert net.name == "inception2015" and net(torch.rand(2, 1, 32, 32)).shape == (2, 2048)


def test_a_run_is_measured_in_the_end_by_what_it_began_with(elsewhere, tmp_path):
    """Also where it is resumed on a machine that has the weights of Inception."""
    config = tiny(
        "gan", task__extractor="auto", epochs=2, eval__every_epochs=1, storage=str(tmp_path), name="r"
    )
    run = RunFolder(str(tmp_path), "r")
    run.create()
    elsewhere(weights=False)
    with pytest.raises(Stopped):
        worker.run_worker(config, run, measure=False, should_stop=(run.path / "metrics.jsonl").exists)
    elsewhere(weights=True)
    worker.run_worker(config, run, measure=False)
    assert [row["val/fd_crayon64"] > 0 for row in rows(run.path)] == [True, True]
    newest = checkpoint.load(checkpoint.latest(run), groups=[])
    assert newest.config["task.extractor"] == run.read_json("config.json")["task.extractor"] == "crayon64"
    checkpoint.check_identity(newest.config, identity(config))
    with pytest.raises(BadInput, match=r"task\.extractor was crayon64, now inception2015"):
        checkpoint.check_identity(newest.config, identity(tiny("gan", task__extractor="inception2015")))


def test_a_model_is_used_where_what_measured_it_is_not(elsewhere, tmp_path):
    """Images are made without the extractor; training without it doesn't begin."""
    elsewhere(weights=False)
    config = tiny("gan", task__extractor="inception2015", epochs=1, storage=str(tmp_path), name="r")
    run = RunFolder(str(tmp_path), "r")
    run.create()
    with pytest.raises(BadInput, match="Inception weights could not be downloaded"):
        worker.run_worker(config, run, measure=False)
    assert not (run.path / "metrics.jsonl").exists()
    trainer = make_trainer(tiny("gan", epochs=1), tmp_path / "trained")
    trainer.fit()
    made = checkpoint.load(checkpoint.latest(trainer.run))
    made.config["task.extractor"] = "inception2015"
    checkpoint.save(run, made)
    model = crayon.load(str(run.path), checkpoint="last", device="cpu")
    assert model.generate(torch.arange(2)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("weights", "metric", "compared"),
    [
        (True, "", "inception2015"),
        (True, "fd_crayon64", "crayon64"),
        (False, "fd_inception2015", "inception2015"),
        (False, "mse", "crayon64"),
    ],
)
def test_a_sweep_compares_by_what_it_began_with(elsewhere, weights, metric, compared):
    elsewhere(weights)
    config = tiny("gan", task__extractor="auto")
    config, monitor = tasks.kind(config).comparable(config, metric)
    assert config.task.extractor == compared and monitor == (f"fd_{compared}", "min")


@pytest.mark.parametrize(
    "change", [{"body.0.weight": None}, {"body.1.running_mean": None}, {"x": torch.ones(1)}]
)
def test_the_shipped_extractor_is_loaded_whole(monkeypatch, change):
    load = features.load
    monkeypatch.setattr(
        features, "load", lambda content: {n: w for n, w in (load(content) | change).items() if w is not None}
    )
    with pytest.raises(RuntimeError, match="state_dict"):
        extractor("crayon64")
