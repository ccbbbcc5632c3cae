"""Sampling and the adversarial task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny
from torch import nn

from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput
from crayon.rng import Randomness
from crayon.tasks.adversarial.network import BatchStatistics, Generator, interpolate, sample
from crayon.tasks.adversarial.settings import GanConfig
from crayon.tasks.adversarial.task import AdversarialTask
from crayon.tasks.base import Seen

SMALL = GanConfig(latent_dim=16, width=4)
INFO = DataInfo(32, 3, (), 1000, "faces")


def make(**settings) -> AdversarialTask:
    torch.manual_seed(0)
    changes = {k if "__" in k else f"task__{k}": v for k, v in settings.items()}
    return AdversarialTask(tiny("gan", **changes), INFO)


def batch(n: int = 8) -> Batch:
    images = Randomness(3).uniform(torch.arange(n), 3 * 32 * 32).view(n, 3, 32, 32)
    return Batch(images, torch.zeros(n, dtype=torch.int64), torch.arange(n))


@pytest.fixture(scope="module")
def trained() -> Generator:
    """A generator with BatchNorm statistics of its own."""
    torch.manual_seed(1)
    g = Generator(SMALL, image_size=32, channels=3).to(memory_format=torch.channels_last)
    for _ in range(5):
        g(torch.randn(16, 16))
    return g


def test_a_sample_is_the_same_in_whatever_company(trained):
    trained.train()
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    whole = sample(trained, 7, torch.arange(100))
    assert trained.training and all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert whole.dtype == torch.uint8 and whole.shape == (100, 3, 32, 32)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(trained, 7, shuffled), whole[shuffled])
    for size in (1, 23):
        parts = torch.arange(100)[:: 9 if size == 1 else 1].split(size)
        assert torch.equal(torch.cat([sample(trained, 7, p) for p in parts]), whole[torch.cat(parts)])
    assert torch.equal(sample(trained, 7, torch.tensor([5, 5])), whole[[5, 5]])
    assert sample(trained, 7, torch.arange(0)).shape == (0, 3, 32, 32)
    every = torch.cat([whole, sample(trained, 8, torch.arange(100))])
    assert len(every.flatten(1).unique(dim=0)) == 200  # other seeds and indices are other images


def test_interpolation_keeps_to_the_sphere():
    a, b = F.normalize(Randomness(0).normal(torch.arange(2), 32), dim=1)
    path = interpolate(a, b, 5)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))


@pytest.mark.parametrize(
    ("setting", "train_size", "epochs", "augments"),
    [
        ("auto", 29_999, 50, True),
        ("auto", 30_000, 50, False),
        ("auto", 29_999, 49, False),
        ("on", 10**6, 1, True),
        ("off", 10, 100, False),
    ],
)
def test_diffaugment_by_the_size_of_the_data(setting, train_size, epochs, augments):
    config = tiny("gan", task__diffaugment=setting, epochs=epochs)
    assert AdversarialTask(config, INFO._replace(train_size=train_size)).augments is augments


def test_relativistic_networks_have_no_normalisation():
    norms = {nn.BatchNorm2d, BatchStatistics}
    assert not norms & {type(m) for m in make(loss="relativistic").networks.modules()}
    assert norms <= {type(m) for m in make(loss="classic").networks.modules()}


def freeze_but(task: AdversarialTask, phase: str) -> None:
    for name, net in task.networks.items():
        net.requires_grad_(name == phase).zero_grad()


@pytest.mark.parametrize("loss", ["classic", "relativistic"])
def test_losses_are_those_of_the_papers(loss):
    """And a phase calls its own network once, and moves nothing else."""
    task, rng, b = make(loss=loss, gamma=0.3), Randomness(0, 1), batch()
    d, g = task.networks["discriminator"], task.networks["generator"]
    freeze_but(task, "discriminator")
    fake = g(rng.fold("latents").normal(b.positions, task.latent_dim)).detach().requires_grad_()
    real = b.images.clone().requires_grad_()
    r, f = d(real), d(fake)
    r1 = torch.autograd.grad(r.sum(), real, retain_graph=True)[0].square().sum((1, 2, 3)).mean()
    r2 = torch.autograd.grad(f.sum(), fake, retain_graph=True)[0].square().sum((1, 2, 3)).mean()
    classic = -(torch.sigmoid(r).log().mean() + torch.sigmoid(-f).log().mean())
    expected = classic if loss == "classic" else F.softplus(f - r).mean()
    wanted = {"discriminator": expected + 0.15 * (r1 + r2)}
    wanted["generator"] = -torch.sigmoid(f).log().mean() if loss == "classic" else F.softplus(r - f).mean()
    for phase, expected in wanted.items():
        freeze_but(task, phase)
        calls = []
        hook = task.networks[phase].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        value, logged = task.loss(phase, task.networks, b, rng)
        hook.remove()
        torch.testing.assert_close(value, expected)
        assert "penalty" not in logged or torch.allclose(logged["penalty"], r1 + r2)
        assert all(not v.requires_grad for v in logged.values())
        value.backward()
        assert calls == [1] and ("penalty" in logged) == (phase == "discriminator")
        for name, net in task.networks.items():
            assert all((p.grad is not None) == (name == phase) for p in net.parameters())


def test_the_penalty_is_unharmed_by_autocast():
    """Gradients of the penalised loss under bfloat16 autocast equal those in float32, given the same fakes."""
    task, b = make(loss="relativistic", gamma=1.0), batch()
    freeze_but(task, "discriminator")
    d = task.networks["discriminator"]
    fake = task.networks["generator"](torch.randn(8, task.latent_dim)).detach()
    grads = []
    for enabled in (False, True):
        d.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = task._discriminator_loss(d, b, fake, Randomness(0))
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in d.parameters()]))
    assert torch.equal(*grads)


def test_summary_and_pictures():
    task = make()
    task.networks.eval()
    with torch.no_grad():
        stats = task.evaluate(task.networks, batch(24), Randomness(0))
        train = task.evaluate(task.networks, batch(32), Randomness(0))
        shown = []

        def show(places):
            shown.append(places)
            return Batch(*(x[places] for x in batch(32)))

        pictures = task.pictures(task.networks, Seen(stats, None), Seen(train, show))
    # The three nearest training images of each of twelve generated ones.
    distance = torch.cdist(stats.rows["fake"][:12].double(), train.rows["real"].double())
    assert torch.equal(shown[0].view(12, 3), distance.argsort(1)[:, :3])
    metrics = task.summarize(stats, train)
    name = task.extractor.name
    assert set(metrics) == {
        *(f"{kind}_{name}{end}" for kind in ("fd", "kd") for end in ("", "_floor")),
        *("precision", "recall", "density", "coverage", "score_real", "score_fake", "n", "modes_covered"),
        *("authenticity", "authenticity_real"),
    }
    assert metrics["n"] == 24 and 1 <= metrics["modes_covered"] <= 24
    # These "held-out" images are in the training set.
    assert metrics["authenticity_real"] == 0.0
    assert task.monitor == (f"fd_{name}", "min")
    assert set(pictures) == {"samples", "nearest", "interpolation"}
    assert task.progress_image(task.networks, torch.device("cpu")).size == pictures["samples"].size


def test_one_image_is_measured_without_a_crash():
    task = make()
    with torch.no_grad():
        assert task.summarize(task.evaluate(task.networks.eval(), batch(1), Randomness(0)))["n"] == 1


def test_compiled_networks_take_no_penalty():
    AdversarialTask(tiny("gan", compile=True), INFO)
    with pytest.raises(BadInput, match="--compile can't be had"):
        AdversarialTask(tiny("gan", compile=True, task__gamma=0.1), INFO)


def test_a_generator_of_one_image_is_told():
    task = make()
    nets = {name: net.eval() for name, net in task.networks.items()}
    well = task.evaluate(nets, batch(16), Randomness(0))
    assert not task.trouble(well, done=1.0)
    nets["generator"].layers[0].weight.data.zero_()  # it doesn't look at its latents any more
    collapsed = task.evaluate(nets, batch(16), Randomness(0))
    assert "collapsed" in task.trouble(collapsed, done=0.5) and not task.trouble(collapsed, done=0.1)
