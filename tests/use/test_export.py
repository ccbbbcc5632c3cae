"""Exported files: they compute what the model does, and the card says what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import trainer
from PIL import Image
from safetensors.torch import load_file

import crayon
from crayon import tasks
from crayon.cli import main as cli
from crayon.config.names import override
from crayon.data.types import DataInfo
from crayon.errors import BadInput, RunFailed
from crayon.tasks.jobs import get
from crayon.training import checkpoint
from crayon.use import card as card_module
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
        made = trainer(storage, job, **changes)
        made.save(best=True, metrics={"val/loss": 0.25, "val/recall/cat": 0.5})
    return storage


def exported(job, runs, out, *formats):
    assert cli.run(job, ["export", str(runs / job), "--formats", *formats, "--out", str(out)]) == 0
    return crayon.load(runs / job, device="cpu"), json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("job", CHANGES)
def test_files_compute_what_the_model_does_and_the_card_says_what_they_are(runs, job, tmp_path):
    model, result = exported(job, runs, tmp_path, "safetensors", "pt2", "--check")
    made = {p.stem: torch.export.load(p).module() for p in sorted(tmp_path.glob("*.pt2"))}
    assert list(made) == FUNCTIONS[job]
    assert set(result["largest_difference"]) == {f"{n}.pt2" for n in made}
    torch.manual_seed(0)
    images = torch.rand(5, model.channels, model.image_size, model.image_size)
    with torch.no_grad():
        if job == "mnist":
            theirs, ours = made["classifier"](images), model.classify(images)
        elif job == "autoencoder":
            theirs, ours = made["encoder"](images), model.encode(images)
            shown = model.reconstruct(images).float() / 255
            torch.testing.assert_close(made["decoder"](theirs), shown, atol=1.5 / 255, rtol=0)
        else:
            ours = model.generate(torch.arange(5)).float() / 255
            theirs = made["generator"](model.latents(torch.arange(5)))
    torch.testing.assert_close(theirs, ours, atol=1.5 / 255 if job == "gan" else 1e-4, rtol=1e-4)

    # The weights and settings are the model again.
    config = json.loads((tmp_path / "config.json").read_text())
    settings = {k: v for k, v in config["settings"].items() if k != "job"}
    experiment = override(get(config["job"], settings["preset"]), settings)
    sizes = (config["image_size"], config["channels"])
    info = DataInfo(*sizes, tuple(config["classes"] or ()), 1, settings["data.source"])
    task = tasks.build(experiment, info)
    checkpoint.restore_network(task.networks, load_file(tmp_path / "model.safetensors"))
    for name, tensor in task.networks.state_dict().items():
        assert torch.equal(tensor, model.networks.state_dict()[name])
    assert sorted(config["functions"]) == FUNCTIONS[job]

    # Nothing in the folder says where it was made.
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        content = file.read_bytes()
        assert not [p for p in (runs, Path(crayon.__file__).parent) if str(p).encode() in content], file
    assert "storage" not in config["settings"]

    check = result["check"].get({"mnist": "classifier.pt2", "autoencoder": "encoder.pt2"}.get(job), {})
    if job == "gan":
        assert not check
    else:
        assert check["split"] == "test" and check["images"] > 100 and check["precision"] == "fp32"
        assert check["largest_difference"] < 1e-3
        assert (check.get("same_class", 0) > 0.99) == (job == "mnist")

    card = (tmp_path / "README.md").read_text()
    assert f"of {model.image_size} x {model.image_size} pixels" in card.split("\n")[2]
    assert "in fp32; the ONNX" in card and ("On the run's own images" in card) == (job != "gan")
    for part in ("## Use", "## Data", "## Versions", "## Licence", " export ", torch.__version__):
        assert part in card
    assert "| loss | 0.25 |" in card and "cat" not in card.split("## Figures")[1]
    assert all(f'torch.export.load("{n}.pt2")' in card for n in made)
    assert "onnx" not in card


@pytest.mark.slow
@pytest.mark.parametrize("job", CHANGES)
def test_onnx_files_compute_what_the_model_does(runs, job, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, result = exported(job, runs, tmp_path, "onnx")
    differences = result["largest_difference"]
    assert sorted(differences) == [f"{n}.onnx" for n in FUNCTIONS[job]]
    assert max(differences.values()) < 1e-4
    for name, function in model.task.exports(model.networks).items():
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        inputs = torch.cat([function.example] * 2)[:3]
        with torch.no_grad():
            wanted = function.module(inputs)
        (found,) = session.run([function.output_name], {function.input_name: inputs.numpy()})
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_card_names_the_data_that_the_model_saw():
    config = get("mnist").data
    for root, source, what in (
        (None, "mnist", "MNIST (LeCun, Cortes & Burges)"),
        (
            "/home/me/kmnist/",
            "mnist",
            "what the folder `kmnist` has in the files of MNIST (LeCun, Cortes & Burges)",
        ),
        ("s3://bucket/flowers?region=x", "folder", "the folder of images `flowers`"),
    ):
        found, terms = card_module._data(replace(config, root=root, source=source))
        assert found == what
        assert ("aren't known" in terms) == (root is not None)
    command = card_module.portable(
        r"/opt/x/flowers.py --data.root C:\\me\\kmnist --config=../a/config.json --lr 3e-3 ~/r"
    )
    assert command == "flowers.py --data.root kmnist --config=config.json --lr 3e-3 r"


def test_a_card_says_what_the_model_was_selected_by(runs, tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ash", "oak"):
            (tmp_path / "trees" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 20 * i).save(tmp_path / "trees" / split / name / f"{i}.png")
    folder = {"data__source": "folder", "data__root": str(tmp_path / "trees"), "data__image_size": 8}
    trainer(tmp_path, "mnist", **folder, global_batch_size=2).save()
    for place, text in (
        (tmp_path, "Its own 4 validation images were there"),
        (runs, "% of its training images were"),
    ):
        assert text in card_module._selected_by(crayon.load(place / "mnist", device="cpu"))


def test_a_file_that_computes_something_else_is_not_left(runs, tmp_path, monkeypatch):
    def wrong(exported):
        return b"", lambda inputs: exported.module(inputs) + 0.01

    monkeypatch.setitem(export.WRITERS, "pt2", wrong)
    with pytest.raises(RunFailed, match="other results than PyTorch"):
        exported("gan", runs, tmp_path / "o", "pt2")
    assert not (tmp_path / "o" / "generator.pt2").exists()


def test_missing_packages_are_told(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"ONNX needs onnx, .*crayon-ray\[export\]"):
        exported("gan", runs, tmp_path / "o", "onnx")
    assert not (tmp_path / "o").exists()
