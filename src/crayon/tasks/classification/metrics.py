"""Figures for classifiers, from sums that add over batches and workers.

Shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from crayon.data.types import unbalanced

BINS = 15
"""Equal-width confidence bins of the calibration error, as in Guo et al. 2017."""


def classification_sums(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What one batch adds, by probabilities float32 (B, K), rows of which sum to 1, and labels int64 (B,) in 0..K-1:
    `confusion` int64 (K, K), rows true, columns predicted; `loss` float64, summed negative log likelihood in nats;
    `bin_count`, `bin_correct` int64 (15,) and `bin_confidence` float64 (15,)."""
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    likelihood = probabilities.gather(1, labels[:, None])[:, 0].double()
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    # Bins are (0, 1/15], (1/15, 2/15], ...
    bins = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
    return {
        "confusion": confusion.view(classes, classes),
        "loss": -likelihood.clamp_min(1e-12).log().sum(),
        "bin_count": torch.bincount(bins, minlength=BINS),
        "bin_correct": torch.bincount(bins[predicted == labels], minlength=BINS),
        "bin_confidence": torch.zeros(BINS, dtype=torch.float64, device=bins.device).index_add(
            0, bins, confidence.double()
        ),
    }


def classification_metrics(
    sums: Mapping[str, Tensor], classes: Sequence[str], balanced: bool = False
) -> dict[str, float]:
    """Metrics from added-up `classification_sums`.

    `accuracy`, `loss` (mean negative log likelihood), `ece` (expected calibration error, 15 equal-width bins), macro
    means `precision`, `recall`, `f1`, and `precision/<class>`, `recall/<class>`, `f1/<class>`. A class that is never
    predicted has precision 0; a class without images has no figures and no part in the means. `n` and
    `n/<class>` count the images. Where these differ much, or with `balanced`, there is `balanced_accuracy`: the
    mean of the classes' recalls.
    """
    confusion = sums["confusion"].cpu().numpy()
    images = int(confusion.sum())
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    confidence, accuracy, count = calibration(sums)
    metrics = {
        "accuracy": float(hits.sum() / max(images, 1)),
        "loss": float(sums["loss"]) / max(images, 1),
        "ece": float((np.abs(confidence - accuracy) * count).sum() / max(images, 1)),
    }
    present = true > 0
    if balanced or unbalanced(true.tolist()):
        metrics["balanced_accuracy"] = float(recall[present].mean()) if present.any() else 0.0
    metrics["n"] = float(images)
    metrics |= {f"n/{label}": float(count) for label, count in zip(classes, true, strict=True)}
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[name] = float(values[present].mean()) if present.any() else 0.0
        metrics |= {
            f"{name}/{label}": float(v) for label, v, p in zip(classes, values, present, strict=True) if p
        }
    return metrics


def calibration(sums: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share right and number of images per bin, each (15,); zeros in empty bins."""
    count = sums["bin_count"].cpu().numpy()
    some = np.maximum(count, 1)
    return sums["bin_confidence"].cpu().numpy() / some, sums["bin_correct"].cpu().numpy() / some, count
