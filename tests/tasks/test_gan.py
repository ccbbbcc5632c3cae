"""Generator, discriminator, sampling, DiffAugment and the adversarial task."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
import torch.nn.functional as F
from helpers import rows, tiny
from test_trainer import make as make_trainer
from torch import nn

import crayon
from crayon import tasks
from crayon.config.names import identity
from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput, Stopped
from crayon.rng import Randomness
from crayon.system.runfolder import RunFolder
from crayon.tasks.adversarial import features, inception
from crayon.tasks.adversarial.diffaugment import augment
from crayon.tasks.adversarial.features import extractor
from crayon.tasks.adversarial.network import (
    BatchStatistics,
    Discriminator,
    Generator,
    interpolate,
    sample,
    stages,
)
from crayon.tasks.adversarial.settings import GanConfig
from crayon.tasks.adversarial.task import AdversarialTask, build_task
from crayon.tasks.base import Statistics
from crayon.training import checkpoint, worker

SMALL = GanConfig(latent_dim=16, width=4)


def info(size: int = 32, channels: int = 3, train_size: int = 1000, source: str = "faces") -> DataInfo:
    return DataInfo(size, channels, (), train_size, source)


def make(**settings) -> AdversarialTask:
    torch.manual_seed(0)
    changes = {k if "__" in k else f"task__{k}": v for k, v in settings.items()}
    return build_task(tiny("gan", **changes), info())


def batch(n: int = 8, size: int = 32, channels: int = 3) -> Batch:
    images = Randomness(3).uniform(torch.arange(n), channels * size * size)
    return Batch(images.view(n, channels, size, size), torch.zeros(n, dtype=torch.int64), torch.arange(n))


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (48, 3), (64, 1), (96, 3), (128, 3)])
def test_networks_make_and_judge_images_of_every_size(size, channels):
    g = Generator(SMALL, image_size=size, channels=channels)
    d = Discriminator(SMALL, image_size=size, channels=channels)
    images = g(torch.randn(2, 16)).detach()
    assert images.shape == (2, channels, size, size)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    assert d(images).shape == (2,)


@pytest.mark.parametrize("size", [30, 33, 200, 8])
def test_sizes_that_cannot_be_made_are_bad_input(size):
    with pytest.raises(BadInput, match=f"data.image_size {size}"):
        stages(size)


def test_parameter_counts():
    d = Discriminator(GanConfig(width=32), image_size=64, channels=3, normalise=False)
    convolutions = sum(16 * i * o + o for i, o in ((3, 32), (32, 64), (64, 128), (128, 256)))
    assert sum(p.numel() for p in d.parameters()) == convolutions + 256 * 16 + 1


@pytest.fixture(scope="module")
def trained() -> Generator:
    """A generator with BatchNorm statistics of its own."""
    torch.manual_seed(1)
    g = Generator(SMALL, image_size=32, channels=3).to(memory_format=torch.channels_last)
    for _ in range(5):
        g(torch.randn(16, 16))
    return g


def test_a_sample_is_the_same_in_whatever_company(trained):
    whole = sample(trained, 7, torch.arange(100))
    assert whole.dtype == torch.uint8 and whole.shape == (100, 3, 32, 32)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(trained, 7, shuffled), whole[shuffled])
    assert torch.equal(
        torch.cat([sample(trained, 7, torch.tensor([i])) for i in range(0, 100, 9)]), whole[::9]
    )
    assert torch.equal(torch.cat([sample(trained, 7, p) for p in torch.arange(100).split(23)]), whole)
    assert torch.equal(sample(trained, 7, torch.tensor([5, 5])), whole[[5, 5]])
    assert sample(trained, 7, torch.arange(0)).shape == (0, 3, 32, 32)


def test_other_seeds_and_indices_are_other_images(trained):
    a, b = sample(trained, 0, torch.arange(20)), sample(trained, 1, torch.arange(20))
    assert len(torch.cat([a, b]).flatten(1).unique(dim=0)) == 40


def test_sampling_leaves_the_generator_as_it_was(trained):
    trained.train()
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    sample(trained, 0, torch.arange(5))
    assert trained.training
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


def test_interpolation_keeps_to_the_sphere():
    a, b = F.normalize(Randomness(0).normal(torch.arange(2), 32), dim=1)
    path = interpolate(a, b, 5)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))


def test_diffaugment_is_keyed_by_example_and_differentiable():
    images, rng = batch(6).images.requires_grad_(), Randomness(0, "x")
    changed = augment(images, rng, torch.arange(6))
    assert torch.equal(changed[[4]], augment(images[[4]], rng, torch.tensor([4])))
    assert not torch.equal(changed, augment(images, Randomness(0, "y"), torch.arange(6)))
    changed.sum().backward()
    # The square is blanked, so it teaches nothing; the contrast's mean alone keeps a gradient there.
    assert torch.isfinite(images.grad).all() and float(images.grad.abs().sum()) > 0
    # Moving an image by whole pixels and blanking it neither makes nor sharpens anything.
    flat = augment(torch.full((6, 3, 32, 32), 0.5), rng, torch.arange(6))
    assert all(len(image.unique()) <= 2 for image in flat)


def test_diffaugment_moves_and_blanks():
    image = torch.full((64, 1, 32, 32), 0.9)
    changed = augment(image, Randomness(0), torch.arange(64))
    grey = (changed == 0.5).float().mean((1, 2, 3))
    assert float(grey.max()) > 0.25 and float(grey.min()) >= 0.04
    assert len(changed.flatten(1).unique(dim=0)) == 64


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
    assert build_task(config, info(train_size=train_size)).augments is augments


def test_relativistic_networks_have_no_normalisation():
    norms = {nn.BatchNorm2d, BatchStatistics}
    assert not norms & {type(m) for m in make(loss="relativistic").networks.modules()}
    assert norms <= {type(m) for m in make(loss="classic").networks.modules()}


def test_normalisation_takes_real_and_generated_images_apart():
    d = Discriminator(SMALL, image_size=32, channels=3)
    real, fake = batch(8).images, batch(8).images * 0.3
    together = d(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([d(real), d(fake)]))
    assert not torch.allclose(d(torch.cat([real, fake])), together)


def freeze_but(task: AdversarialTask, phase: str) -> None:
    for name, net in task.networks.items():
        net.requires_grad_(name == phase).zero_grad()


class Counted(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *inputs, **options):
        self.calls += 1
        return self.inner(*inputs, **options)


@pytest.mark.parametrize("loss", ["classic", "relativistic"])
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_a_phase_calls_its_own_network_once_and_moves_nothing_else(loss, phase):
    task = make(loss=loss, gamma=0.1)
    freeze_but(task, phase)
    nets = dict(task.networks.items())
    nets[phase] = Counted(nets[phase])
    value, logged = task.loss(phase, nets, batch(), Randomness(0, 1))
    value.backward()
    assert nets[phase].calls == 1
    for name, net in task.networks.items():
        assert all((p.grad is not None) == (name == phase) for p in net.parameters())
    assert all(not v.requires_grad for v in logged.values())


def test_losses_are_those_of_the_papers():
    for loss in ("classic", "relativistic"):
        task, rng, b = make(loss=loss, gamma=0.3), Randomness(0, 1), batch()
        d, g = task.networks["discriminator"], task.networks["generator"]
        freeze_but(task, "discriminator")
        fake = g(rng.fold("latents").normal(b.positions, task.latent_dim)).detach().requires_grad_()
        real = b.images.clone().requires_grad_()
        r, f = d(real), d(fake)
        r1 = torch.autograd.grad(r.sum(), real)[0].square().sum((1, 2, 3)).mean()
        r2 = torch.autograd.grad(f.sum(), fake)[0].square().sum((1, 2, 3)).mean()
        r, f = d(real), d(fake)
        classic = -(torch.sigmoid(r).log().mean() + torch.sigmoid(-f).log().mean())
        expected = classic if loss == "classic" else F.softplus(f - r).mean()
        value, logged = task.loss("discriminator", task.networks, b, rng)
        torch.testing.assert_close(value, expected + 0.15 * (r1 + r2))
        torch.testing.assert_close(logged["penalty"], r1 + r2)
        expected = -torch.sigmoid(f).log().mean() if loss == "classic" else F.softplus(r - f).mean()
        torch.testing.assert_close(task.loss("generator", task.networks, b, rng)[0], expected)


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


def test_evaluation_is_the_same_however_it_is_cut():
    task = make(model__discriminator_norm="none")  # batch normalisation makes the scores those of a batch
    task.networks.eval()
    b = batch(24)
    with torch.no_grad():
        whole = task.evaluate(task.networks, b, Randomness(0)).rows
        parts = [
            task.evaluate(task.networks, Batch(*(x[i : i + 8] for x in b)), Randomness(1)).rows
            for i in (0, 8, 16)
        ]
    for name, value in whole.items():
        joined = torch.cat([p[name] for p in parts])
        torch.testing.assert_close(joined.double(), value.double(), atol=0, rtol=1e-3)


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

        pictures = task.pictures(task.networks, stats, None, train, show)
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
    rows = make().evaluate(make().networks.eval(), batch(1), Randomness(0)).rows
    metrics = make().summarize(Statistics(rows={k: v.detach() for k, v in rows.items()}))
    assert metrics["n"] == 1


def test_unknown_extractor_is_bad_input():
    with pytest.raises(BadInput, match=r"task\.extractor"):
        extractor("vgg")


def test_inception_without_its_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/none.pth")
    assert extractor("auto").name == "crayon64"
    with pytest.raises(BadInput, match=r"--task\.extractor crayon64"):
        extractor("inception2015")
    assert not list(tmp_path.rglob("tmp*"))


@pytest.mark.slow
def test_inception_is_chosen_when_its_weights_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    inception.weights_path().parent.mkdir(parents=True)
    torch.save(inception.Inception2015().net.state_dict(), inception.weights_path())
    with pytest.raises(BadInput, match="does not hold the Inception weights"):
        extractor("auto")
    monkeypatch.setattr(inception, "SHA256", "")
    net = extractor("auto")
    assert net.name == "inception2015"
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 2048)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Makes this a machine that has, or hasn't, a file in the place of Inception's weights."""

    def at(weights: bool) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / f"torch-{weights}"))
        inception.weights_path().parent.mkdir(parents=True, exist_ok=True)
        if weights:
            inception.weights_path().write_bytes(b"not looked at")

    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/none.pth")
    return at


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


def test_a_sweep_compares_by_what_it_began_with(elsewhere):
    config = tiny("gan", task__extractor="auto")
    elsewhere(weights=True)
    assert tasks.monitor(tasks.comparable(config)) == ("fd_inception2015", "min")
    assert tasks.monitor(tasks.comparable(config, "fd_crayon64")) == ("fd_crayon64", "min")
    elsewhere(weights=False)
    assert tasks.monitor(tasks.comparable(config, "fd_inception2015")) == ("fd_inception2015", "min")
    assert tasks.comparable(config, "mse").task.extractor == "crayon64"


def test_the_shipped_extractor_is_loaded_whole(monkeypatch):
    weights = features.load(
        resources.files("crayon.tasks.adversarial").joinpath("crayon64.safetensors").read_bytes()
    )
    for change in ({"body.0.weight": None}, {"body.1.running_mean": None}, {"more": torch.zeros(1)}):
        changed = {name: w for name, w in {**weights, **change}.items() if w is not None}
        monkeypatch.setattr(features, "load", lambda content, changed=changed: changed)
        with pytest.raises(RuntimeError, match="state_dict"):
            features.crayon64()


def test_compiled_networks_take_no_penalty():
    info = DataInfo(32, 3, (), 160, "faces")
    build_task(tiny("gan", compile=True), info)
    with pytest.raises(BadInput, match="--compile can't be had"):
        build_task(tiny("gan", compile=True, task__gamma=0.1), info)
