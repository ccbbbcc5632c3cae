"""Exported files: they compute what the model does, and the card says what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file

import crayon
from crayon import tasks
from crayon.cli import main as cli
from crayon.config.names import override
from crayon.data.types import DataInfo
from crayon.errors import BadInput, RunFailed
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training import checkpoint, worker
from crayon.use import export

CHANGES = {
    "mnist": {"task__tta": True},
    "autoencoder": {"data__image_size": 15},  # an odd size, which the decoder cuts down to
    "gan": {"data__size": 64},
}
FUNCTIONS = {"mnist": ["classifier"], "autoencoder": ["decoder", "encoder"], "gan": ["generator"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained models of all kinds, as checkpoints."""
    storage = tmp_path_factory.mktemp("runs")
    for job, changes in CHANGES.items():
        config = tiny(job, name=job, storage=str(storage), **changes)
        run = RunFolder(config.storage, job)
        run.create()
        trainer = worker.build(config, worker.load_data(config), run)
        trainer.save(best=True, metrics={"val/loss": 0.25, "val/recall/cat": 0.5})
    return storage


@pytest.fixture(scope="module", params=CHANGES)
def exported(request, runs, tmp_path_factory):
    """(the model, the folder): weights and torch.export's files."""
    job, out = request.param, tmp_path_factory.mktemp("out")
    assert (
        cli.run(job, ["export", str(runs / job), "--formats", "safetensors", "pt2", "--out", str(out)]) == 0
    )
    return crayon.load(runs / job, device="cpu"), out


def test_the_files_are_those_of_the_task(exported):
    model, out = exported
    assert sorted(p.stem for p in out.glob("*.pt2")) == FUNCTIONS[model.job]
    result = json.loads((out / "result.json").read_text())
    assert set(result["largest_difference"]) == {f"{n}.pt2" for n in FUNCTIONS[model.job]}


def test_exported_programs_compute_what_the_model_does(exported):
    model, out = exported
    made = {n: torch.export.load(out / f"{n}.pt2").module() for n in FUNCTIONS[model.job]}
    torch.manual_seed(0)
    images = torch.rand(5, model.channels, model.image_size, model.image_size)
    with torch.no_grad():
        if model.job == "mnist":
            torch.testing.assert_close(
                made["classifier"](images), model.classify(images), atol=1e-4, rtol=1e-4
            )
        elif model.job == "autoencoder":
            codes = made["encoder"](images)
            torch.testing.assert_close(codes, model.encode(images), atol=1e-4, rtol=1e-4)
            ours = model.reconstruct(images).float() / 255
            torch.testing.assert_close(made["decoder"](codes), ours, atol=1.5 / 255, rtol=0)
        else:
            latents = model.latents(torch.arange(5))
            ours = model.generate(torch.arange(5)).float() / 255
            torch.testing.assert_close(made["generator"](latents), ours, atol=1.5 / 255, rtol=0)


def test_weights_and_config_are_the_model_again(exported):
    model, out = exported
    config = json.loads((out / "config.json").read_text())
    settings = {k: v for k, v in config["settings"].items() if k != "job"}
    experiment = override(get(config["job"], settings["preset"]), settings)
    sizes = (config["image_size"], config["channels"])
    info = DataInfo(*sizes, tuple(config["classes"] or ()), 1, settings["data.source"])
    task = tasks.build(experiment, info)
    checkpoint.restore_network(task.networks, load_file(out / "model.safetensors"))
    for name, tensor in task.networks.state_dict().items():
        assert torch.equal(tensor, model.networks.state_dict()[name])
    assert sorted(config["functions"]) == FUNCTIONS[model.job]


def test_the_card_says_what_it_is(exported):
    model, out = exported
    card = (out / "README.md").read_text()
    for part in (
        "## Use",
        "## Data",
        "## Figures",
        "## Versions",
        "## Licence",
        " export ",
        torch.__version__,
    ):
        assert part in card
    assert "| loss | 0.25 |" in card and "cat" not in card.split("## Figures")[1]
    assert all(f'torch.export.load("{n}.pt2")' in card for n in FUNCTIONS[model.job])
    assert "onnx" not in card


@pytest.mark.slow
@pytest.mark.parametrize("job", CHANGES)
def test_onnx_files_compute_what_the_model_does(runs, job, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    assert cli.run(job, ["export", str(runs / job), "--formats", "onnx", "--out", str(tmp_path)]) == 0
    differences = json.loads((tmp_path / "result.json").read_text())["largest_difference"]
    assert sorted(differences) == [f"{n}.onnx" for n in FUNCTIONS[job]]
    assert max(differences.values()) < 1e-4
    model = crayon.load(runs / job, device="cpu")
    for name, exported in model.task.exports(model.networks).items():
        worker = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        inputs = torch.cat([exported.example] * 2)[:3]
        with torch.no_grad():
            wanted = exported.module(inputs)
        (found,) = worker.run([exported.output_name], {exported.input_name: inputs.numpy()})
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_file_that_computes_something_else_is_not_left(runs, tmp_path, monkeypatch):
    def wrong(exported):
        return b"", lambda inputs: exported.module(inputs) + 0.01

    monkeypatch.setitem(export.WRITERS, "pt2", wrong)
    with pytest.raises(RunFailed, match="other results than PyTorch"):
        cli.run("gan", ["export", str(runs / "gan"), "--formats", "pt2", "--out", str(tmp_path / "o")])
    assert not (tmp_path / "o" / "generator.pt2").exists()


def test_missing_packages_are_told(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"ONNX needs onnx, .*crayon-ray\[export\]"):
        cli.run("gan", ["export", str(runs / "gan"), "--out", str(tmp_path / "o")])
    assert not (tmp_path / "o").exists()
