#!/usr/bin/env python
"""What `jobs/mnist.py --preset instant` computes, in plain torch: read this to learn what the engine does.

    python examples/mnist_plain.py FOLDER

FOLDER has torchvision's MNIST in it, or gets it. The weights at the end are those of

    crayon mnist --preset instant --workers 0 --precision fp32 --threads 1 --data.root FOLDER

to the last bit. What Crayon adds: checkpoints in the middle of an epoch, several workers, bf16, GPUs, other networks
and data, sweeps, metrics, pictures. None of that is needed to train for a second.
"""

from __future__ import annotations

import hashlib
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets import MNIST

SEED = 0
EPOCHS, BATCH, IMAGES, HELD_OUT = 1, 100, 20_000, 0.08
LR, BETAS, EPS, WEIGHT_DECAY, WARMUP = 0.012, (0.8, 0.98), 1e-8, 0.05, 0.1
WIDTHS, DROPOUT = (16, 64), 0.1


def seed_of(*key: int | str) -> int:
    """Everything random is a function of a name such as (seed, "order", epoch), so a run that is resumed, or shared by
    other numbers of workers, draws what the whole run would have drawn."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True) & (2**63 - 1)


def permutation(n: int, *key: int | str) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*key)))


# Data: one image in twelve is held out to select by; 20,000 of the others are trained on.


def training_images(root: str) -> tuple[Tensor, Tensor]:
    """uint8 (N, 1, 28, 28) and int64 (N,), without the held-out ones, which depend on the labels alone."""
    data = MNIST(root, train=True, download=True)
    images, labels = data.data[:, None], data.targets
    n = len(labels)
    shuffled = permutation(n, 0, "validation")
    by_label = shuffled[torch.sort(labels[shuffled], stable=True).indices]
    count = round(n * HELD_OUT)
    train = torch.ones(n, dtype=torch.bool)
    train[by_label[(torch.arange(count) * 2 + 1) * n // (2 * count)]] = False  # every class gives its share
    rows = train.nonzero()[:, 0]
    rows = rows[permutation(len(rows), 0, "size")[:IMAGES].sort().values]
    return images[rows], labels[rows]


# The network: a fixed stem that halves the image, two stages of two convolutions, the maximum of each feature, dense.


class Stem(nn.Module):
    """2x2 patches in the Haar basis, standardised, split into positive and negative part: nothing to learn."""

    def __init__(self) -> None:
        super().__init__()
        haar = [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
        self.register_buffer("basis", torch.tensor(haar, dtype=torch.float32)[:, None] / 2, persistent=False)
        self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(F.conv2d(images, self.basis, stride=2))
        return F.relu(torch.cat([x, -x], 1))


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, beginning as the identity for its first outputs, which makes the first steps count."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.convolutions = nn.ModuleList([convolution(inputs, outputs), convolution(outputs, outputs)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](F.max_pool2d(self.convolutions[0](x), 2)))
        return F.relu(self.norms[1](self.convolutions[1](x)))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.stages = nn.Sequential(Stage(8, WIDTHS[0]), Stage(*WIDTHS))
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(WIDTHS[1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 1, 28, 28) in [0, 1] to logits (B, 10)."""
        return self.head(self.dropout(self.stages(self.stem(images)).amax((2, 3))))


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], channels last in memory, which convolutions prefer."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


# The loop.


def learning_rate(step: int, steps: int) -> float:
    """A linear rise over the first tenth of the steps, then a linear fall to 0."""
    warmup = round(WARMUP * steps)
    if step < warmup:
        return LR * (step + 1) / (warmup + 1)
    return LR * (1 - (step - warmup) / (steps - warmup))


def train(images: Tensor, labels: Tensor) -> Classifier:
    torch.manual_seed(seed_of(SEED, "weights"))
    network = Classifier().to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    # Decaying biases and the gains of normalisation does harm.
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    per_epoch = len(images) // BATCH
    for step in range(EPOCHS * per_epoch):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = permutation(len(images), SEED, "order", epoch)
        batch = order[place * BATCH : (place + 1) * BATCH]
        torch.manual_seed(seed_of(SEED, "step", step, "layers", 0))  # for dropout
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, EPOCHS * per_epoch)
        loss = F.cross_entropy(network(to_float(images[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((network(to_float(x)).argmax(1) == y).sum()) for x, y in parts) / len(labels)


def main(root: str) -> None:
    torch.set_num_threads(1)  # the last bits of sums depend on the number of threads
    network = train(*training_images(root))
    test = MNIST(root, train=False)
    print(f"test accuracy {100 * accuracy(network, test.data[:, None], test.targets):.2f} %")


if __name__ == "__main__":
    main(sys.argv[1])
