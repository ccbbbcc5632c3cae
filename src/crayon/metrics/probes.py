"""How good features are, without touching the network: fit something simple on the training split's features, score
it on another split's. Shapes: N examples, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 5, chunk: int = 1000
) -> float:
    """Share of `test` whose class is the most frequent among its `k` nearest of `train` (Euclidean, exact).

    A tie goes to the class with the nearest member, by summed rank.

    Args:
        train: float32 (N, D). test: float32 (M, D). Features are used as they are, without scaling.
        train_labels, test_labels: int64 (N,), (M,).
    """
    train, test = train.float(), test.float()
    mean = train.mean(0)  # Centred first: the expansion of the square below loses digits far from the origin.
    train, test = train - mean, test - mean
    k = min(k, len(train))
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    squares = train.square().sum(1)
    # Closer neighbours count a hair more, which breaks ties and changes nothing else.
    weights = 1.0 - 1e-3 * torch.arange(k, device=train.device, dtype=torch.float32)
    right = 0
    for rows, labels in zip(test.split(chunk), test_labels.split(chunk), strict=True):
        distances = torch.addmm(squares, rows, train.T, alpha=-2.0)
        nearest = distances.topk(k, largest=False).indices
        votes = torch.zeros(len(rows), classes, device=train.device)
        votes.scatter_add_(1, train_labels[nearest], weights.expand(len(rows), k))
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test)


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
        train: float32 (N, D). test: float32 (M, D).
        train_labels, test_labels: int64 (N,), (M,).
        l2: weight of the squared norm of the coefficients in the mean loss.
    """
    train, test = train.float(), test.float()
    std, mean = torch.std_mean(train, 0)
    varies = std > 1e-6
    train, test = (((x - mean) / std)[:, varies] for x in (train, test))
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    with torch.enable_grad():
        weight = train.new_zeros(classes, train.shape[1]).requires_grad_()
        bias = train.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(train, weight, bias), train_labels) + l2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    predicted = F.linear(test, weight.detach(), bias.detach()).argmax(1)
    return float((predicted == test_labels).double().mean())
