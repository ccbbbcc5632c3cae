"""Numbers recomputed from their definitions, one image and one pixel at a time."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from helpers import tiny

from crayon import tasks
from crayon.data.types import Batch, DataInfo
from crayon.report.plots import image_grid
from crayon.rng import Randomness
from crayon.tasks.adversarial.diffaugment import augment
from crayon.tasks.adversarial.distances import nearest
from crayon.tasks.base import Seen
from crayon.tasks.classification.metrics import BINS, calibration, classification_metrics, classification_sums
from crayon.tasks.reconstruction.metrics import ssim
from crayon.tasks.reconstruction.task import ReconstructionTask

WORD = 1 << 64


def mixed(z: int) -> int:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def bits(key: tuple, example: int, column: int) -> int:
    golden = 0x9E3779B97F4A7C15
    state = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    return mixed((mixed((example * golden + state) % WORD) + (column + 1) * golden) % WORD)


def test_draws_are_splitmix64s_of_the_key():
    """Another version that draws otherwise would not go on with a run as it was."""
    key, examples = (3, "step", 7, "mask"), [0, 1, 2, 77, 10**9]
    rng = Randomness(3, "step", 7).fold("mask")
    uniform = rng.uniform(torch.tensor(examples), 5)
    assert uniform.tolist() == [[(bits(key, e, c) >> 40) / 2**24 for c in range(5)] for e in examples]
    normal = rng.normal(torch.tensor(examples), 5)
    for e, row in zip(examples, normal.tolist(), strict=True):
        u = [((bits(key, e, c) >> 11) + 0.5) / 2**53 for c in range(6)]
        radius = [math.sqrt(-2 * math.log(x)) for x in u[:3]]
        angle = [2 * math.pi * x for x in u[3:]]
        expected = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        expected += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        assert row == pytest.approx(expected[:5], rel=1e-6, abs=1e-7)
    state = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    generator = torch.Generator().manual_seed(state % (1 << 63))
    assert torch.equal(rng.permutation(50), torch.randperm(50, generator=generator))
    rng.seed_torch()
    assert torch.initial_seed() == state % (1 << 63)


def similarity(a: np.ndarray, b: np.ndarray, side: int) -> float:
    """Wang et al. 2004, of one channel, window by window."""
    at = np.arange(side) - side // 2
    window = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    p, q = (np.lib.stride_tricks.sliding_window_view(image, (side, side)) for image in (a, b))

    def mean(x: np.ndarray) -> np.ndarray:
        return (window * x).sum((2, 3))

    mp, mq, c1, c2 = mean(p), mean(q), 0.01**2, 0.03**2
    covariance, variances = mean(p * q) - mp * mq, mean(p * p) - mp**2 + mean(q * q) - mq**2
    luminance = (2 * mp * mq + c1) / (mp**2 + mq**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (variances + c2)))


@pytest.mark.parametrize(
    ("height", "width", "side"), [(14, 13, 11), (11, 16, 11), (9, 20, 9), (8, 8, 7), (20, 10, 9), (7, 7, 7)]
)
def test_structural_similarity_is_the_papers(height, width, side):
    """In windows of 11 x 11, or the largest odd size that fits."""
    a = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    b = (a + 0.2 * torch.rand(a.shape, generator=torch.Generator().manual_seed(1))).clamp(max=1)
    expected = [
        np.mean([similarity(p, q, side) for p, q in zip(x, y, strict=True)])
        for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-4)
    assert float(ssim(a, b).max()) < 0.98


def changed(image: np.ndarray, u: list[float]) -> np.ndarray:
    """What augmentation makes of one image (C, H, W) by its draws."""
    _, h, w = image.shape
    x = image + (u[0] - 0.5)
    if len(image) == 3:
        grey = x.mean(0, keepdims=True)
        x = grey + (x - grey) * 2 * u[1]
    x = x.mean() + (x - x.mean()) * (u[2] + 0.5)
    most_y, most_x = round(h / 8), round(w / 8)
    dy, dx = int(u[3] * (2 * most_y + 1)) - most_y, int(u[4] * (2 * most_x + 1)) - most_x
    top, left = int(u[5] * (h + 1)) - round(h / 2) // 2, int(u[6] * (w + 1)) - round(w / 2) // 2
    out = np.full_like(x, 0.5)
    for i in range(h):
        for j in range(w):
            inside = 0 <= i + dy < h and 0 <= j + dx < w
            blanked = top <= i < top + round(h / 2) and left <= j < left + round(w / 2)
            if inside and not blanked:
                out[:, i, j] = x[:, i + dy, j + dx]
    return out


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 24), (1, 32, 20)])
def test_differentiable_augmentation_is_what_it_says(channels, height, width):
    rng, positions = Randomness(0, "augment"), torch.arange(3, 43)
    images = torch.rand(40, channels, height, width, generator=torch.Generator().manual_seed(0))
    draws = rng.uniform(positions, 7).double().tolist()
    expected = [changed(image, u) for image, u in zip(images.double().numpy(), draws, strict=True)]
    found = augment(images.requires_grad_(), rng, positions)
    found.sum().backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0
    torch.testing.assert_close(found.double(), torch.tensor(np.stack(expected)), rtol=1e-4, atol=1e-5)


def test_a_confidence_is_counted_in_the_bin_that_ends_with_it_or_above():
    confidences = [0.5, 0.51, 0.599, 0.601, 0.95, 1.0]
    probabilities = torch.tensor([[c, 1 - c] for c in confidences])
    sums = classification_sums(probabilities, torch.tensor([0, 1, 0, 0, 1, 0]))
    mean, right, count = calibration(sums)
    expected = [math.ceil(round(c * BINS, 6)) - 1 for c in confidences]
    assert BINS == 15 and expected == [7, 7, 8, 9, 14, 14]
    assert count.tolist() == [expected.count(i) for i in range(BINS)]
    assert mean[[7, 8, 9, 14]].tolist() == pytest.approx([0.505, 0.599, 0.601, 0.975])
    assert right[[7, 8, 9, 14]].tolist() == [0.5, 1, 1, 0.5]
    apart = 2 * abs(0.505 - 0.5) + (1 - 0.599) + (1 - 0.601) + 2 * (0.975 - 0.5)
    assert classification_metrics(sums, ("a", "b"))["ece"] == pytest.approx(apart / 6)
    certain = classification_sums(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert 20 < float(certain["loss"]) < 50  # and wrong, with a finite loss
    low = torch.full((1, 40), 1 / 40)  # a confidence may lie in the first bin
    assert int(classification_sums(low, torch.tensor([0]))["bin_count"][0]) == 1


@pytest.mark.parametrize("job", ["mnist", "autoencoder", "gan"])
def test_statistics_are_the_same_however_the_split_is_cut(job):
    torch.manual_seed(0)
    shape = (3, 32, 32) if job == "gan" else (1, 16, 16)
    # Normalisation over the batch makes a discriminator's scores those of a batch.
    config = tiny(job, **({"model__discriminator_norm": "none"} if job == "gan" else {}))
    task = tasks.build(config, DataInfo(shape[1], shape[0], tuple("abcd"), 1000, "faces"))
    task.networks.eval()
    batch = Batch(torch.rand(24, *shape), torch.arange(24) % 4, torch.arange(24))
    with torch.no_grad():
        whole = task.evaluate(task.networks, batch, Randomness(0))
        cuts = [Batch(*(part[i : i + 7] for part in batch)) for i in range(0, 24, 7)]
        parts = [task.evaluate(task.networks, cut, Randomness(1)) for cut in cuts]
    for name, value in whole.sums.items():
        added = torch.stack([part.sums[name] for part in parts]).sum(0)
        assert value.dtype in (torch.int64, torch.float64)
        torch.testing.assert_close(added, value, rtol=1e-5, atol=0)
    for name, value in whole.rows.items():
        joined = torch.cat([part.rows[name] for part in parts])
        torch.testing.assert_close(joined, value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("real", "neighbours"), [(30, 3), (2, 2), (3000, 3)])
def test_the_nearest_are_those_with_the_least_distances(real, neighbours):
    """Also where they lie in several blocks."""

    def features(n: int, seed: int) -> torch.Tensor:
        return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    points, others = features(4, 0), features(real, 1)
    distances, places = nearest(points, others, 3)
    assert places.shape == distances.shape == (4, neighbours)
    for i in range(4):
        squares = [float((points[i] - other).square().sum()) for other in others]
        order = sorted(range(real), key=squares.__getitem__)[:neighbours]
        assert places[i].tolist() == order
        assert distances[i].tolist() == pytest.approx([math.sqrt(squares[j]) for j in order])


@pytest.mark.parametrize(("side", "pixels"), [(16, 16), (32, 32), (64, 32)])
def test_raw_pixels_to_compare_codes_with_are_the_images_or_their_means(side, pixels):
    info = DataInfo(side, 1, ("a", "b"), 100, "digits")
    task = ReconstructionTask(tiny("autoencoder"), info)
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    task.networks.eval()
    with torch.no_grad():
        batch = Batch(images, torch.tensor([0, 1]), torch.arange(2))
        rows = task.evaluate(task.networks, batch, Randomness(0)).rows
    step = side // pixels
    means = images.view(2, pixels, step, pixels, step).mean((2, 4)).mul(255).round().flatten(1)
    assert rows["pixels"].dtype == torch.uint8 and rows["pixels"].shape == (2, pixels * pixels)
    assert float((rows["pixels"].float() - means).abs().max()) <= 1  # rounding
    assert rows["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_reconstructions_show_the_input_what_was_made_of_it_and_the_error(noise):
    task = ReconstructionTask(tiny("autoencoder", task__noise=noise), DataInfo(16, 1, (), 100, "digits"))
    network = task.networks["autoencoder"].eval()
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    with torch.no_grad():
        fed = task.corrupt(images, batch.positions, Randomness(0, "pictures"))
        made = network(fed)[1]
        stats = task.evaluate(task.networks, batch, Randomness(0))
        seen = Seen(stats, lambda places: Batch(*(part[places] for part in batch)))
        shown = task.pictures(task.networks, seen)["reconstructions"]
    rows = [images, fed.clamp(0, 1), made, (made - images).abs()]
    names = ["image", "input", "output", "difference"]
    if not noise:
        del rows[1], names[1]
    expected = image_grid(torch.cat(rows), columns=4, scale=2, row_names=names)
    assert shown.size == expected.size and shown.tobytes() == expected.tobytes()
