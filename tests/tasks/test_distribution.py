"""Distances between sets of images: known values, and that they answer to what they are for."""

from __future__ import annotations

import math

import pytest
import torch

from crayon.data.procedural import faces
from crayon.tasks.adversarial.distances import (
    authenticity,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
)
from crayon.tasks.adversarial.features import extractor, resize


def normal(n: int, f: int, seed: int) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def exactly(points: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`points` moved so that their sample mean and covariance are exactly `mean` and diag(scale^2)."""
    points = points.double() - points.double().mean(0)
    whitened = points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T
    return whitened * scale + mean


def test_frechet_distance_of_gaussians_is_the_closed_form():
    a = exactly(normal(200, 3, 0), torch.tensor([0.0, 0, 0]), torch.tensor([1.0, 2, 3]))
    b = exactly(normal(300, 3, 1), torch.tensor([1.0, 0, 2]), torch.tensor([2.0, 2, 1]))
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (1 + 0 + 4), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(10, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(frechet_distance(normal(8, 64, 0), normal(8, 64, 1)))  # more features than images


def test_kernel_distance_agrees_with_its_definition():
    x, y = normal(5, 4, 0).double(), normal(7, 4, 1).double()

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    expected = (
        sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
        + sum(kernel(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / 42
        - 2 * sum(kernel(a, b) for a in x for b in y) / 35
    )
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_manifold_metrics_on_a_line():
    # Real images at 0..9, generated ones exactly on 0..4: half of the real set is missed.
    real, fake = torch.arange(10.0)[:, None], torch.arange(5.0)[:, None]
    found = manifold_metrics(real, fake, k=1, k_density=1)
    assert found["precision"] == 1.0
    assert found["recall"] == 0.5
    assert found["coverage"] == 0.5
    assert found["density"] == 1.0


def test_precision_and_recall_have_balls_to_the_third_neighbour_density_and_coverage_to_the_fifth():
    # The outermost of ten points on a line has its k-th neighbour at a distance of k, the next one at k - 1.
    real = torch.arange(10.0)[:, None]
    found = {away: manifold_metrics(real, torch.tensor([[-away]])) for away in (2.9, 3.1, 4.9, 5.1)}
    assert {away: f["precision"] for away, f in found.items()} == {2.9: 1, 3.1: 0, 4.9: 0, 5.1: 0}
    assert found[4.9]["density"] == pytest.approx(1 / 5) and found[4.9]["coverage"] == pytest.approx(1 / 10)
    assert found[5.1]["density"] == found[5.1]["coverage"] == 0
    fake = {away: manifold_metrics(torch.tensor([[-away]]), real)["recall"] for away in (2.9, 3.1)}
    assert fake == {2.9: 1, 3.1: 0}


def test_the_same_image_again_and_again_is_precise_and_recalls_nothing():
    real = normal(200, 8, 0)
    fake = real.mean(0) + 1e-3 * normal(200, 8, 1)
    found = manifold_metrics(real, fake)
    assert found["precision"] == 1.0 and found["recall"] == 0.0 and found["coverage"] < 0.5


def test_blocks_change_nothing(monkeypatch):
    """Of sets that fill several blocks, and not the last one."""
    real, fake, train = normal(333, 8, 0), 1.1 * normal(222, 8, 1), normal(500, 8, 2)

    def all_of_it() -> list[float]:
        values = [f(real, fake) for f in (frechet_distance, kernel_distance)]
        return [*values, *manifold_metrics(real, fake).values(), authenticity(train, fake)]

    whole = all_of_it()
    monkeypatch.setattr("crayon.tasks.adversarial.distances.BLOCK", 50)
    assert all_of_it() == pytest.approx(whole, rel=1e-9)


def test_of_very_many_images_some_are_compared(monkeypatch):
    real, fake = normal(300, 4, 0), normal(200, 4, 1)
    monkeypatch.setattr("crayon.tasks.adversarial.distances.MOST", 100)
    assert manifold_metrics(real, fake) == manifold_metrics(real[::3], fake[::2])
    assert kernel_distance(real, fake) == kernel_distance(real[::3], fake[::2])


def test_authenticity_tells_copies_from_new_images():
    train = normal(300, 8, 0)
    assert authenticity(train, train[:50] + 1e-4) == 0.0
    assert authenticity(train, normal(50, 8, 1)) > 0.2


@pytest.fixture(scope="module")
def measured():
    """Features of 400 procedural faces, a way to measure others, and the images."""
    net = extractor("crayon64")
    images, labels = faces.render(torch.arange(800), 32)
    images = images.float() / 255
    return net, images, labels, net(images)


def test_the_extractor_names_the_modes_of_faces_and_takes_grey_images_and_every_size(measured):
    net, _, labels, features = measured
    assert (net.modes(features) == labels).float().mean() > 0.95
    for channels, size in ((1, 28), (3, 64), (3, 128)):
        assert net(torch.rand(2, channels, size, size)).shape == (2, 64)


def test_blur_noise_and_dropped_modes_raise_the_distances(measured):
    net, images, labels, features = measured
    real, held_out = features[:400], features[400:]
    floor, base = frechet_distance(real, held_out), manifold_metrics(real, held_out)
    # Blurred, noisy, and bald men only: each is clearly farther away than other faces are.
    small = net(resize(resize(images[400:], 12), 32))
    noisy = net((images[400:] + 0.1 * normal(400 * 3 * 32, 32, 0).view(400, 3, 32, 32)).clamp(0, 1))
    few = features[400:][labels[400:] < 9]
    assert frechet_distance(real, small) > 3 * floor
    assert frechet_distance(real, noisy) > 3 * floor
    assert frechet_distance(real, few) > 3 * floor
    assert kernel_distance(real, small) > 10 * abs(kernel_distance(real, held_out))
    assert manifold_metrics(real, few)["recall"] < 0.6 * base["recall"]
    assert manifold_metrics(real, few)["coverage"] < 0.6 * base["coverage"]
