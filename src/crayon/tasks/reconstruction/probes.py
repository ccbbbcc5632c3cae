"""How good features are, without touching the network: scikit-learn's nearest neighbours and logistic regression,
fitted on one split's features and scored on another's.

Shapes: `train` (N, D) and `test` (M, D) of any real type, their labels int64 (N,) and (M,). Nothing is random. Memory:
one float32 copy of the features of each split.
"""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 5) -> float:
    """Share of `test` whose class is the most frequent among its `k` nearest of `train` (Euclidean, unscaled)."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(k, len(train)), algorithm="brute")
    model.fit(_array(train), train_labels.cpu().numpy())
    return float(model.score(_array(test), test_labels.cpu().numpy()))


def linear_probe_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    iterations: int = 60,
    l2: float = 1e-4,
) -> float:
    """Accuracy on `test` of multinomial logistic regression on standardised features, by at most `iterations` of
    L-BFGS from zero. `l2`: weight of the squared norm of the coefficients in the mean loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, targets = train_labels.cpu().numpy(), test_labels.cpu().numpy()
    if (labels == labels[0]).all():  # scikit-learn refuses to fit a single class
        return float((targets == labels[0]).mean())
    regression = LogisticRegression(C=1 / (2 * l2 * len(labels)), max_iter=iterations)
    model = make_pipeline(StandardScaler(copy=False), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Stopped early on purpose.
        model.fit(_array(train), labels)
    return float(model.score(_array(test), targets))


def _array(features: Tensor) -> np.ndarray:
    """A float32 copy on the CPU."""
    return features.cpu().numpy().astype(np.float32)
