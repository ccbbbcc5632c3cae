"""How good features are, without touching the network: fit something simple on the training split's features, score
it on another split's. Shapes: N examples, D features.

Features may be of any type, such as uint8 pixels; they are turned into float32 a few rows at a time, so that the memory
needed beside them doesn't depend on N.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_VALUES = 2**20
"""Numbers that are float32 at a time."""


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 5, chunk: int = 1000
) -> float:
    """Share of `test` whose class is the most frequent among its `k` nearest of `train` (Euclidean, exact).

    A tie goes to the class with the nearest member, by summed rank.

    Args:
        train: (N, D). test: (M, D). Features are used as they are, without scaling.
        train_labels, test_labels: int64 (N,), (M,).
        chunk: rows of either that are compared at a time.
    """
    mean = _mean(train)  # Centred first: the expansion of the square below loses digits far from the origin.
    k = min(k, len(train))
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    # Closer neighbours count a hair more, which breaks ties and changes nothing else.
    weights = 1.0 - 1e-3 * torch.arange(k, device=train.device, dtype=torch.float32)
    right = 0
    for rows, labels in zip(test.split(chunk), test_labels.split(chunk), strict=True):
        rows = rows.float() - mean
        distances = rows.new_empty(len(rows), 0)
        found = train_labels.new_empty(len(rows), 0)
        for others, theirs in zip(train.split(chunk), train_labels.split(chunk), strict=True):
            others = others.float() - mean
            further = torch.addmm(others.square().sum(1), rows, others.T, alpha=-2.0)
            more, at = further.topk(min(k, len(others)), largest=False)
            both, found = torch.cat([distances, more], 1), torch.cat([found, theirs[at]], 1)
            distances, kept = both.topk(min(k, both.shape[1]), largest=False)
            found = found.gather(1, kept)
        votes = torch.zeros(len(rows), classes, device=train.device)
        votes.scatter_add_(1, found, weights.expand(len(rows), k))
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test)


def _blocks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, those rows in a float32 tensor of their own)."""
    size = max(1, BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        yield rows, features[rows].to(torch.float32, copy=True)


def _mean(features: Tensor) -> Tensor:
    return (sum(x.sum(0, dtype=torch.float64) for _, x in _blocks(features)) / len(features)).float()


def _deviation(features: Tensor, mean: Tensor) -> Tensor:
    squares = sum(x.sub_(mean).square_().sum(0, dtype=torch.float64) for _, x in _blocks(features))
    return (squares / max(1, len(features) - 1)).sqrt().float()


def linear_probe_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    iterations: int = 60,
    l2: float = 1e-4,
) -> float:
    """Accuracy on `test` of multinomial logistic regression fitted on `train`, features standardised.

    Full-batch L-BFGS in float32 from zero: no randomness. Constant features are dropped.

    Args:
        train: (N, D). test: (M, D).
        train_labels, test_labels: int64 (N,), (M,).
        l2: weight of the squared norm of the coefficients in the mean loss.
    """
    mean = _mean(train)
    scale = _deviation(train, mean)
    scale[scale <= 1e-6] = torch.inf  # a constant feature is zero then, and so is its coefficient
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    with torch.enable_grad():
        weight = mean.new_zeros(classes, train.shape[1]).requires_grad_()
        bias = mean.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = l2 * weight.square().sum()
            loss.backward()
            loss = loss.detach()
            for rows, x in _blocks(train):
                scores = F.linear(x.sub_(mean).div_(scale), weight, bias)
                part = F.cross_entropy(scores, train_labels[rows], reduction="sum") / len(train)
                part.backward()
                loss += part.detach()
            return loss

        optimizer.step(closure)
    right = 0
    with torch.no_grad():
        for rows, x in _blocks(test):
            predicted = F.linear(x.sub_(mean).div_(scale), weight, bias).argmax(1)
            right += int((predicted == test_labels[rows]).sum())
    return right / len(test)
