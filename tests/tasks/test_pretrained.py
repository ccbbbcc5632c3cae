"""torchvision's networks with weights from a file: what is taken, what is trained, and how fast."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

import crayon
from crayon.tasks import jobs
from crayon.training.optimizer import adam

INFO = crayon.DataInfo(32, 1, ("a", "b", "c"), 10, "x")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(a .pth file of a ResNet-18 with other classes, its tensors)."""
    torch.manual_seed(0)
    state = models.resnet18(num_classes=7).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path, state


def build(weights, **settings):
    return crayon.PretrainedClassifier(crayon.Pretrained(weights=str(weights), **settings), INFO)


def test_all_layers_but_the_last_are_those_of_the_file(weights, tmp_path):
    path, state = weights
    save_file(state, tmp_path / "same.safetensors")
    for file in (path, tmp_path / "same.safetensors"):
        network = build(file).eval()
        own = network.body.state_dict()
        assert all(torch.equal(own[name], state[name]) for name in state if not name.startswith("fc."))
        images = torch.rand(2, 1, 32, 32)
        body = models.resnet18(num_classes=3).eval()
        body.load_state_dict(own)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        assert torch.equal(network(images), body((images.repeat(1, 3, 1, 1) - mean) / std))


def test_layers_have_learning_rates_of_their_own_or_are_frozen(weights):
    config = crayon.ClassificationExperiment(lr=0.01, optim=crayon.OptimConfig(eps=1e-12))
    moved = {}
    for name, settings in (("slow", {"lr_factor": 0.1}), ("frozen", {"freeze": True})):
        network = build(weights[0], **settings).train()
        assert network.body.bn1.training is (name == "slow")
        before = {k: v.clone() for k, v in network.state_dict().items()}
        optimizer = adam(network, config)
        network(torch.rand(4, 1, 32, 32)).square().sum().backward()
        optimizer.step()
        after = network.state_dict()
        moved[name] = {k: float((after[k].double() - before[k].double()).abs().max()) for k in before}
    # Adam's first step is the learning rate, whatever the gradient.
    assert moved["slow"]["body.fc.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["slow"]["body.conv1.weight"] == pytest.approx(0.001, rel=1e-2)
    assert {k for k, v in moved["frozen"].items() if v} == {"body.fc.weight", "body.fc.bias"}


@pytest.mark.faults
def test_a_large_one_is_trained_and_used(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_registered", {})
    torch.manual_seed(0)
    torch.save(models.convnext_tiny().state_dict(), tmp_path / "convnext_tiny.pth")
    model = crayon.Pretrained(name="convnext_tiny", weights=str(tmp_path / "convnext_tiny.pth"))
    data = crayon.DataConfig(source="shapes", image_size=32, channels=3, size=32)
    small = {"epochs": 1, "global_batch_size": 8, "workers": 0, "wandb": "off", "device": "cpu"}
    quick = crayon.ClassificationExperiment(data=data, model=model, **small)
    crayon.register(
        crayon.Job(name="large", about="x", network=crayon.PretrainedClassifier, presets={"quick": quick})
    )
    run = crayon.train(crayon.preset("large", name="run", storage=str(tmp_path)))
    begun = crayon.PretrainedClassifier(model, INFO._replace(channels=3)).state_dict()
    trained = run.load().networks["classifier"].state_dict()
    assert not torch.equal(trained["body.features.0.0.weight"], begun["body.features.0.0.weight"])
    assert run.load().classify(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_what_cannot_be_begun_with_is_told(weights, tmp_path):
    (tmp_path / "text.pth").write_text("x")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    for file, settings, said in (
        (tmp_path / "none.pth", {}, "can't be read"),
        (tmp_path / "text.pth", {}, "can't be read"),
        (tmp_path / "other.pth", {}, r"aren't resnet18's \(see"),
        (weights[0], {"name": "convnext_tiny"}, "aren't convnext_tiny's"),
    ):
        with pytest.raises(crayon.BadInput, match=said):
            build(file, **settings)
    for name, size, said in (
        ("vit_b_16", 40, "needs squares in multiples of 16, such as 32 or 48"),
        ("vit_b_16", (48, 32), "needs squares in multiples of 16, such as 32 or 48"),
        ("convnext_tiny", 24, "needs at least 32"),
    ):
        with pytest.raises(crayon.BadInput, match=said):
            settings = crayon.Pretrained(name=name, weights="none")
            crayon.PretrainedClassifier(settings, INFO._replace(size=size))


def test_loading_weights_executes_nothing(payload, tmp_path):
    (tmp_path / "harm.pth").write_bytes(payload)
    with pytest.raises(crayon.BadInput, match="can't be read"):
        build(tmp_path / "harm.pth")
