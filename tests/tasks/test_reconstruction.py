import numpy as np
import pytest
import torch
from helpers import tiny

from crayon.data.types import Batch, DataInfo
from crayon.rng import Randomness
from crayon.tasks.reconstruction.metrics import knn_accuracy, linear_probe_accuracy, psnr
from crayon.tasks.reconstruction.task import PATCH, ReconstructionTask

RNG = Randomness(0, "test")


def build(classes=("a", "b"), **changes):
    torch.manual_seed(0)
    plain = {"task__noise": 0.0, "task__latent_noise": 0.0, "model__latent_dim": 6}
    config = tiny("autoencoder", **plain | {f"task__{name}": value for name, value in changes.items()})
    return ReconstructionTask(config, DataInfo(16, 1, classes, 100, "digits"))


def smooth_batch(n=24, size=16, first=0):
    """Blobs whose place depends on their class."""
    labels = torch.arange(first, first + n) % 2
    generator = torch.Generator().manual_seed(first)
    centre = 5.0 + 5.0 * labels[:, None] + torch.rand(n, 2, generator=generator)
    at = torch.arange(size, dtype=torch.float32)
    images = torch.exp(
        -((at[None, :, None] - centre[:, :1, None]) ** 2 + (at[None, None] - centre[:, 1:, None]) ** 2) / 8
    )
    return Batch(images[:, None], labels, torch.arange(first, first + n))


def blobs(n, seed):
    """Three overlapping Gaussian classes in 8 dimensions, one of them constant."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    points = rng.normal(size=(n, 8)) + 1.2 * np.eye(8)[labels] + 50
    points[:, 7] = 1.0
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


def evaluated(task, batch):
    task.networks.eval()
    with torch.no_grad():
        return task.evaluate(task.networks, batch, RNG)


def test_training_lowers_the_error_and_the_figures_agree_with_the_images():
    batch = smooth_batch()
    before = build().summarize(evaluated(build(), batch))
    task = build()
    optimizer = torch.optim.Adam(task.networks.parameters(), 1e-2)
    for step in range(80):
        optimizer.zero_grad()
        task.loss("autoencoder", task.networks, batch, RNG.fold(step))[0].backward()
        optimizer.step()
    after = task.summarize(evaluated(task, batch))
    assert after["mse"] < 0.2 * before["mse"]
    assert after["ssim"] > before["ssim"]
    with torch.no_grad():
        made = task.networks["autoencoder"](batch.images)[1]
    each = (made - batch.images).square().mean((1, 2, 3))
    assert after["mse"] == pytest.approx(float(each.mean()), rel=1e-5)
    assert after["psnr"] == pytest.approx(float((-10 * each.log10()).mean()), rel=1e-5)


def test_probes_are_reported_only_with_the_training_split_and_labels():
    task = build()
    train, test = evaluated(task, smooth_batch(60)), evaluated(task, smooth_batch(20, first=60))
    assert set(task.summarize(test)) == {"mse", "psnr", "ssim"}
    names = {"knn_accuracy", "probe_accuracy", "pixel_knn_accuracy", "pixel_probe_accuracy"}
    metrics = task.summarize(test, train)
    assert set(metrics) == {"mse", "psnr", "ssim"} | names
    assert metrics["pixel_knn_accuracy"] == metrics["pixel_probe_accuracy"] == 1.0
    bare = build(classes=())
    assert set(bare.summarize(*(evaluated(bare, smooth_batch(n)) for n in (20, 60)))) == {
        "mse",
        "psnr",
        "ssim",
    }


def test_corruption_is_keyed_by_position_not_by_batch():
    task, batch = build(noise=0.3, mask=0.5), smooth_batch()
    whole = task.corrupt(batch.images, batch.positions, RNG)
    part = task.corrupt(batch.images[5:9], batch.positions[5:9], RNG)
    assert torch.equal(whole[5:9], part)
    assert not torch.equal(whole, task.corrupt(batch.images, batch.positions, RNG.fold(1)))


def test_mask_blanks_whole_patches_of_the_set_share():
    n, size = 400, 18  # not a multiple of the patch
    kept = build(mask=0.4).corrupt(torch.ones(n, 1, size, size), torch.arange(n), RNG)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    patches = kept[:, :, :16, :16].unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(4)
    assert (patches.amin(-1) == patches.amax(-1)).all()
    assert 1 - float(patches[..., 0].mean()) == pytest.approx(0.4, abs=0.02)


def test_noise_has_the_set_deviation_and_the_target_stays_clean():
    task, batch = build(noise=0.25), smooth_batch(64)
    added = task.corrupt(batch.images, batch.positions, RNG) - batch.images
    assert float(added.std()) == pytest.approx(0.25, rel=0.03)
    # In eval mode with the corruption in, the loss is the error against the clean image.
    task.networks.eval()
    with torch.no_grad():
        loss, _ = task.loss("autoencoder", task.networks, batch, RNG)
        made = task.networks["autoencoder"](task.corrupt(batch.images, batch.positions, RNG))[1]
    assert torch.allclose(loss, (made - batch.images).square().mean())


def test_latent_noise_changes_training_and_not_evaluation():
    batch = smooth_batch()
    quiet, noisy = build(), build(latent_noise=0.5)
    a, b = (t.loss("autoencoder", t.networks, batch, RNG)[0] for t in (quiet, noisy))
    assert a != b
    quiet, noisy = build(), build(latent_noise=0.5)  # anew: training moved the BatchNorm statistics
    assert torch.equal(evaluated(quiet, batch).sums["mse"], evaluated(noisy, batch).sums["mse"])


def test_the_progress_image_is_of_the_same_codes():
    task = build()
    first, second = (np.asarray(task.progress_image(task.networks, torch.device("cpu"))) for _ in range(2))
    assert np.array_equal(first, second) and first.std() > 0


def test_psnr():
    assert psnr(torch.tensor([1.0, 0.01, 0.0])).tolist() == pytest.approx([0.0, 20.0, 100.0])


def test_probes_tell_classes_apart_the_same_every_time():
    train, test = blobs(1500, 0), blobs(1000, 1)
    for probe in (knn_accuracy, linear_probe_accuracy):
        accuracy = probe(train, test)
        assert 0.5 < accuracy < 1 and probe(train, test) == accuracy
    scaled = ((features * 3 - 7, labels) for features, labels in (train, test))
    assert accuracy == pytest.approx(linear_probe_accuracy(*scaled), abs=0.002)


def test_probes_take_what_a_split_may_hold():
    """uint8 pixels, a constant one, fewer examples than neighbours, and a single class."""
    (x, y), (q, t) = blobs(600, 0), blobs(300, 1)
    least = x.min()
    x, q = (((v - least) * 12).clamp(0, 255).to(torch.uint8) for v in (x, q))
    x, q = (torch.cat([v, torch.full((len(v), 1), 7, dtype=torch.uint8)], 1) for v in (x, q))
    before = x.clone()
    for probe in (knn_accuracy, linear_probe_accuracy):
        assert 0.2 < probe((x, y), (q, t)) < 1
        share = float((t == 0).float().mean())
        assert probe((x[:3], torch.zeros(3).long()), (q, t)) == pytest.approx(share)
    assert torch.equal(x, before)
