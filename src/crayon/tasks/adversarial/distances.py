"""How far a set of generated images is from a set of real ones, in the features of a named extractor.

Fidelity alone misses a generator that makes the same good picture again and again: recall and coverage fall then.

Shapes: N real, M generated, F features. Everything is computed in float64, block by block, so the memory needed beside
the features themselves doesn't depend on N and M; the blocks change a value only by rounding. What takes time with the
square of the number of images takes at most 50,000 of each set, evenly spaced: the number for which precision and
recall were defined, and at which Frechet distances are published.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1024
"""Rows of a set that are compared with as many of another at a time: 8 MiB of distances."""
MOST = 50_000
"""Images of a set of which all pairs are compared (Kynkaanniemi et al. 2019)."""


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between Gaussians fitted to (N, F) and (M, F) (Heusel et al. 2017).

    Biased upwards for small N and M: compare only at equal numbers.
    """
    (m1, c1), (m2, c2) = _moments(real), _moments(fake)
    # tr (C1 C2)^(1/2) = tr (R C2 R)^(1/2) with R = C1^(1/2): symmetric, so no complex square root is needed.
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    shift = (m1 - m2).square().sum()
    return max(0.0, float(shift + c1.trace() + c2.trace() - 2 * cross))


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and unbiased covariance (F, F)."""
    mean = sum(part.double().sum(0) for part in points.split(BLOCK)) / len(points)
    centred = (part.double() - mean for part in points.split(BLOCK))
    return mean, sum(part.T @ part for part in centred) / max(1, len(points) - 1)


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / F + 1)^3 (KID; Binkowski et al. 2018).

    Unbiased, so it may be slightly negative. All pairs are used; the paper's mean over 100 subsets of 1,000 images
    estimates the same, from fewer of them.
    """
    x, y = _some(real), _some(fake)
    across = sum(float(_kernel(a, b).sum()) for a in x.split(BLOCK) for b in y.split(BLOCK))
    return _within(x) + _within(y) - 2 * across / (len(x) * len(y))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().T).div_(a.shape[1]).add_(1).pow_(3)


def _within(points: Tensor) -> float:
    """Mean of the kernel over all pairs of different points."""
    parts, total, n = points.split(BLOCK), 0.0, len(points)
    for i, a in enumerate(parts):
        own = _kernel(a, a)
        total += float(own.sum() - own.trace()) + 2 * sum(float(_kernel(a, b).sum()) for b in parts[i + 1 :])
    return total / max(1, n * (n - 1))


def _some(points: Tensor) -> Tensor:
    """At most 50,000 of the points."""
    if len(points) <= MOST:
        return points
    return points[torch.arange(MOST, device=points.device) * len(points) // MOST]


def nearest(points: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances float64 and places int64, (N, k), of the `k` (or all, if fewer) of `others` that are nearest to each
    of the points (N, F), nearest first."""
    found = [_nearest(part.double(), others, k) for part in points.split(BLOCK)]
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _nearest(points: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distances = points.new_empty(len(points), 0)
    places = torch.empty_like(distances, dtype=torch.int64)
    for start, part in _numbered(others):
        more, at = torch.cdist(points, part).topk(min(k, len(part)), largest=False)
        both, places = torch.cat([distances, more], 1), torch.cat([places, at + start], 1)
        distances, kept = both.topk(min(k, both.shape[1]), largest=False)
        places = places.gather(1, kept)
    return distances, places


def _numbered(points: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows in float64) of every block."""
    return ((start, points[start : start + BLOCK].double()) for start in range(0, len(points), BLOCK))


def variety(real: Tensor, fake: Tensor) -> float:
    """How far generated images lie from the nearest other generated one, over the same of real images: medians of at
    most 1,024 of each. 0 where all are one image, or a few are made again and again."""
    apart = [nearest(points[:BLOCK], points[:BLOCK], 2)[0][:, -1].median() for points in (real, fake)]
    return float(apart[1] / apart[0].clamp(min=1e-12))


def manifold_metrics(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each set is taken as the union of balls around its points that reach to the k-th neighbour.

    - `precision`: share of generated images inside the real set.
    - `recall`: share of real images inside the generated set.
    - `density`: how many real balls a generated image lies in, over what is expected; may exceed 1.
    - `coverage`: share of real images with a generated one in their ball.
    """
    real, fake = _some(real), _some(fake)
    around_real = nearest(real, real, max(k, k_density) + 1)[0]  # the first is the point itself
    around_fake = nearest(fake, fake, k + 1)[0]
    radii, wider = (around_real[:, min(n, len(real) - 1), None] for n in (k, k_density))
    fake_radii = around_fake[:, min(k, len(fake) - 1)]
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    inside = 0
    for i, a in _numbered(real):
        for j, b in _numbered(fake):
            across = torch.cdist(a, b)
            rows, columns = slice(i, i + len(a)), slice(j, j + len(b))
            precise[columns] |= (across < radii[rows]).any(0)
            recalled[rows] |= (across < fake_radii[columns]).any(1)
            wide = across < wider[rows]
            covered[rows] |= wide.any(1)
            inside += int(wide.sum())
    return {
        "precision": float(precise.double().mean()),
        "recall": float(recalled.double().mean()),
        "density": inside / len(fake) / k_density,
        "coverage": float(covered.double().mean()),
    }


def authenticity(train: Tensor, points: Tensor) -> float:
    """Share of `points` that are farther from their nearest training image than that one is from its own nearest
    training neighbour (Alaa et al. 2022). Near 0 when training images are being copied; compare with the value of
    real images that were held out.
    """
    train, points = _some(train), _some(points)
    own = nearest(train, train, 2)[0][:, -1]  # the first is the image itself
    distance, place = nearest(points, train, 1)
    return float((distance[:, 0] > own[place[:, 0]]).double().mean())
