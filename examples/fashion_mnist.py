#!/usr/bin/env python
"""A data set of one's own: Fashion-MNIST, which torchvision downloads into --data.root (./data by default).

python examples/fashion_mnist.py [tune | evaluate RUN | predict RUN ...] [--help]
"""

from torchvision.datasets import FashionMNIST

import crayon


def load(split, root):
    """The images of a split, uint8 (N, 28, 28), and their labels."""
    data = FashionMNIST(root or "data", train=split == "train", download=True)
    return data.data.numpy(), data.targets.numpy()


source = crayon.Source("fashion", load, classes=tuple(FashionMNIST.classes))
job = crayon.Job(
    name="fashion",
    about="Clothes, 28x28 grey, 10 classes.",
    source=source,
    presets={
        "quick": crayon.ClassificationExperiment(
            epochs=12,
            lr=4e-3,
            global_batch_size=256,
            data=crayon.DataConfig(source="fashion", image_size=28, channels=1),
            augment=crayon.AugmentConfig(flip=True, shift=1),
            optim=crayon.OptimConfig(schedule="linear", weight_decay=0.05, ema_images=5_000),
            model=crayon.ClassifierConfig(width=32),
        ),
        "instant": {"epochs": 1, "lr": 0.012, "model.stem_stride": 2},
    },
)

if __name__ == "__main__":
    crayon.main(job)
