"""How far a set of generated images is from a set of real ones, in the features of a named extractor.

Fidelity alone misses a generator that makes the same good picture again and again: recall and coverage fall then.

Shapes: N real, M generated, F features. Everything is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between Gaussians fitted to (N, F) and (M, F) (Heusel et al. 2017).

    Biased upwards for small N and M: compare only at equal numbers.
    """
    real, fake = real.double(), fake.double()
    c1, c2 = (torch.cov(x.T, correction=min(1, len(x) - 1)) for x in (real, fake))
    # tr (C1 C2)^(1/2) = tr (R C2 R)^(1/2) with R = C1^(1/2): symmetric, so no complex square root is needed.
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    return max(0.0, float(shift + c1.trace() + c2.trace() - 2 * cross))


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / F + 1)^3 (KID; Binkowski et al. 2018).

    Unbiased, so it may be slightly negative. All pairs are used, not subsets.
    """
    x, y = real.double(), fake.double()
    n, m = len(x), len(y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / max(1, n * (n - 1)) + (yy.sum() - yy.trace()) / max(1, m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbour among the others."""
    return torch.cdist(points, points).kthvalue(min(k + 1, len(points)), dim=1).values


def manifold_metrics(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each set is taken as the union of balls around its points that reach to the k-th neighbour.

    - `precision`: share of generated images inside the real set.
    - `recall`: share of real images inside the generated set.
    - `density`: how many real balls a generated image lies in, over what is expected; may exceed 1.
    - `coverage`: share of real images with a generated one in their ball.
    """
    real, fake = real.double(), fake.double()
    across = torch.cdist(real, fake)  # (N, M)
    wide = across < _radii(real, k_density)[:, None]
    return {
        "precision": float((across < _radii(real, k)[:, None]).any(0).double().mean()),
        "recall": float((across < _radii(fake, k)[None, :]).any(1).double().mean()),
        "density": float(wide.double().sum(0).mean() / k_density),
        "coverage": float(wide.any(1).double().mean()),
    }


def authenticity(train: Tensor, points: Tensor, chunk: int = 512) -> float:
    """Share of `points` that are farther from their nearest training image than that one is from its own nearest
    training neighbour (Alaa et al. 2022). Near 0 when training images are being copied; compare with the value of
    real images that were held out.
    """
    train = train.double()
    own = torch.cat([torch.cdist(part, train).kthvalue(2, dim=1).values for part in train.split(chunk)])
    distance, nearest = torch.cdist(points.double(), train).min(1)
    return float((distance > own[nearest]).double().mean())
