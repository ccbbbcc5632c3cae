"""How close an image is to its original, and how good codes are as features.

Shapes: B batch, C channels, H height, W width; N images and D features of a split.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1] from their mean squared error; at most 100 dB."""
    return -10.0 * mse.clamp_min(1e-10).log10()


def ssim(a: Tensor, b: Tensor, sigma: float = 1.5, size: int = 11) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images in [0, 1], 1 = equal.

    The paper's Gaussian window (11x11, sigma 1.5; smaller for images smaller than that), K1 = 0.01, K2 = 0.03, means
    over the positions where the window fits and over channels. Equals scikit-image's `structural_similarity` with
    `gaussian_weights=True, use_sample_covariance=False, data_range=1`.

    a, b: float32 (B, C, H, W). Returns float32 (B,), at most 1.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        channels, height, width = a.shape[1:]
        size = min(size, height - 1 + height % 2, width - 1 + width % 2)
        at = torch.arange(size, device=a.device, dtype=torch.float32) - size // 2
        window = torch.exp(-0.5 * (at / sigma) ** 2)
        window = window / window.sum()

        def blur(x: Tensor) -> Tensor:
            x = F.conv2d(x, window.view(1, 1, size, 1).expand(x.shape[1], 1, size, 1), groups=x.shape[1])
            return F.conv2d(x, window.view(1, 1, 1, size).expand(x.shape[1], 1, 1, size), groups=x.shape[1])

        mean_a, mean_b, aa, bb, ab = blur(torch.cat([a, b, a * a, b * b, a * b], 1)).split(channels, 1)
        c1, c2 = 0.01**2, 0.03**2
        covariance = ab - mean_a * mean_b
        variances = (aa - mean_a**2) + (bb - mean_b**2)
        score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        score = score / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
        return score.mean((1, 2, 3))


Split = tuple[Tensor, Tensor]
"""Features (N, D) of any real type and labels int64 (N,)."""


def knn_accuracy(train: Split, test: Split) -> float:
    """Share of `test` whose class is the most frequent among its 5 nearest of `train` (Euclidean, unscaled)."""
    from sklearn.neighbors import KNeighborsClassifier

    x, y = _arrays(train)
    model = KNeighborsClassifier(min(5, len(x)), algorithm="brute").fit(x, y)
    return float(model.score(*_arrays(test)))


def linear_probe_accuracy(train: Split, test: Split, iterations: int = 60) -> float:
    """Accuracy on `test` of multinomial logistic regression on standardised features, by at most `iterations` of
    L-BFGS from zero. The squared norm of the coefficients weighs 1e-4 in the mean loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _arrays(train)
    if (y == y[0]).all():  # scikit-learn refuses to fit a single class
        return float((test[1].cpu().numpy() == y[0]).mean())
    regression = LogisticRegression(C=1 / (2 * 1e-4 * len(y)), max_iter=iterations)
    model = make_pipeline(StandardScaler(copy=False), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early on purpose
        model.fit(x, y)
    return float(model.score(*_arrays(test)))


def _arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """A float32 copy of the features, and the labels, on the CPU."""
    return split[0].cpu().numpy().astype(np.float32), split[1].cpu().numpy()
