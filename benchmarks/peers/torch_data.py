"""The images of a job as a user of torchvision gets them: PIL images through transforms, read by DataLoader workers.

The training images are those that our own run trains on, so that what is held out is the same on both sides.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms as T

from crayon import data, tasks
from crayon.cli.flags import parse
from crayon.config.settings import Experiment
from crayon.data import Splits

WORKERS = 2
"""DataLoader workers: one per core of the machine that the figures are for."""


def arguments(description: str) -> tuple[argparse.Namespace, Experiment]:
    """`JOB --told FILE [--epochs N] [--validate] [--seconds S] -- CRAYON SETTINGS`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("job", choices=["mnist", "cifar10", "autoencoder", "gan"])
    parser.add_argument("--told", required=True, help="file for JSON lines, one or more a second")
    parser.add_argument("--epochs", type=int, default=100_000)
    parser.add_argument(
        "--validate", action="store_true", help="accuracy on the held-out images at each epoch's end"
    )
    parser.add_argument("--marks", default="", help="DCGAN: measure it after so many seconds: 60,180,600")
    parser.add_argument(
        "--least", type=float, default=1.0, help="seconds of a measurement, where it isn't endless"
    )
    parser.add_argument("--compile", action="store_true", help="gpu_step: torch.compile the networks")
    parser.add_argument("--recorded", action="store_true", help="gpu_step: the step as a CUDA graph")
    parser.add_argument(
        "--distributed", action="store_true", help="gpu_step: the code of several workers, by one"
    )
    parser.add_argument("--trials", type=int, default=1, help="gpu_trials: how many at once")
    parser.add_argument("--branches", action="store_true", help="gpu_trials: in one graph, not in processes")
    parser.add_argument("--mps", action="store_true", help="gpu_trials: NVIDIA's Multi-Process Service")
    known, rest = parser.parse_known_args()
    known.settings = [word for word in rest if word != "--"]
    return known, parse(known.job, known.settings, known.job)


class Pictures(Dataset):
    """Images in memory, as torchvision's MNIST and CIFAR10 hold them: each becomes a PIL image when it is asked for."""

    def __init__(self, images: data.ImageSet, transform: Any):
        self.images = images.gather(torch.arange(len(images))).permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Flat(Dataset):
    """A folder of images without classes."""

    def __init__(self, root: Path, paths: list[str], transform: Any):
        self.root, self.paths, self.transform = root, paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.root / self.paths[index]) as image:
            return self.transform(image.convert("RGB")), 0


def transform(config: Experiment, train: bool = True) -> T.Compose:
    """The same kinds of change as our presets ask for, by torchvision."""
    steps: list[Any] = []
    _, height, width = config.data.shape
    if config.data.source == "folder":
        steps += [T.Resize(max(height, width)), T.CenterCrop((height, width))]
    if train and config.augment.rotate:
        shift = config.augment.shift
        zoom = (1 - config.augment.zoom, 1 + config.augment.zoom)
        steps.append(T.RandomAffine(config.augment.rotate, (shift / width, shift / height), zoom))
    elif train and config.augment.shift:
        steps.append(T.RandomCrop((height, width), config.augment.shift, padding_mode="reflect"))
    if train and config.augment.flip:
        steps.append(T.RandomHorizontalFlip())
    return T.Compose([*steps, T.ToTensor()])


def sets(config: Experiment) -> tuple[Splits, Dataset, Dataset]:
    """(our splits, training set, held-out set)."""
    splits = data.load(config.data, labels=config.needs_labels)
    source, root = config.data.source, config.data.root
    both = []
    for images, change in ((splits.train, transform(config)), (splits.val, transform(config, train=False))):
        if source == "mnist" and config.data.image_size == 28:
            whole: Dataset = torchvision.datasets.MNIST(root, train=True, transform=change)
        elif source == "folder" and images.classes:
            whole = torchvision.datasets.ImageFolder(str(Path(root) / "train"), change)
        elif source == "folder":
            from crayon.data.folder import walk

            base = Path(root) / "train" if (Path(root) / "train").is_dir() else Path(root)
            whole = Flat(base, [found.path for found in sorted(walk(base))], change)
        else:
            both.append(Pictures(images, change))
            continue
        rows = range(len(images)) if images.rows is None else images.rows.tolist()
        both.append(Subset(whole, rows))
    return splits, both[0], both[1]


def loaders(config: Experiment, train: Dataset, held_out: Dataset) -> tuple[DataLoader, DataLoader]:
    return (
        DataLoader(
            train,
            config.global_batch_size,
            shuffle=True,
            num_workers=WORKERS,
            drop_last=True,
            persistent_workers=True,
        ),
        DataLoader(held_out, 500, num_workers=WORKERS, persistent_workers=True),
    )


def networks(config: Experiment, splits: Splits) -> nn.ModuleDict:
    """Our networks, as they are: float32, NCHW."""
    torch.manual_seed(config.seed)
    return tasks.build(config, splits.info()).networks


def arrays(images: data.ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, H, W, C) and int64 labels (N,), as keras.datasets gives them."""
    pixels = images.gather(torch.arange(len(images)))
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()), images.labels.numpy()
