"""Feature extractors by name: what a distance between sets of images is measured in.

A distance depends on the features it is measured in, so the extractor's name is part of every metric's name
(`fd_crayon64`, `fd_inception2015`), and figures under different names are not comparable.

Shapes: B images, C channels, H height, W width, F features.
"""

from __future__ import annotations

from importlib import resources
from typing import Protocol

import torch
from safetensors.torch import load
from torch import Tensor, nn

from crayon.errors import BadInput
from crayon.tasks.adversarial import inception
from crayon.tasks.adversarial.inception import resize

EXTRACTORS = ("auto", "crayon64", "inception2015")
PREFERRED = ("inception2015", "crayon64")
"""What `auto` means: the first if its weights are on this machine, else the second."""
HAIR, BEARD, GLASSES = 5, 3, 3
"""The modes of the procedural faces: `label = 9 * hair + 3 * beard + glasses`."""


class Extractor(Protocol):
    """Maps images to features. A frozen network in evaluation mode, in float32."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 (B, 1 or 3, H, W) in [0, 1], any size. Returns float32 (B, F)."""
        ...

    def to(self, device: torch.device) -> Extractor: ...


class Crayon64(nn.Module):
    """A small convolutional network with 64 features, shipped with the package.

    It was trained on procedural faces (their modes and factors), on CIFAR-10's classes, and to tell by how much an
    image was blurred or made noisy (benchmarks/train_feature_net.py; crayon64.json says from what and how well).
    It ranks generators of small images. It is no substitute for Inception where published figures are compared.
    """

    name = "crayon64"
    size = 64
    width = 24
    features = 64

    def __init__(self) -> None:
        super().__init__()
        w = self.width
        plan = [
            (3, w, 2),
            (w, 2 * w, 2),
            (2 * w, 2 * w, 1),
            (2 * w, 4 * w, 2),
            (4 * w, 4 * w, 1),
            (4 * w, 5 * w, 2),
        ]
        layers: list[nn.Module] = []
        for i, o, stride in plan:
            layers += [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(5 * w, self.features)
        self.mode_heads = nn.Linear(self.features, HAIR + BEARD + GLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, 1 or 3, H, W) in [0, 1]. Returns float32 (B, 64)."""
        with torch.autocast(images.device.type, enabled=False):
            return self.project(self.body(resize(images.float(), self.size) * 2 - 1).mean((2, 3)))

    def modes(self, features: Tensor) -> Tensor:
        """The procedural-face mode of each image by its features: (B, 64) to int64 (B,) in 0..44."""
        hair, beard, glasses = (
            part.argmax(1) for part in self.mode_heads(features).split([HAIR, BEARD, GLASSES], 1)
        )
        return 9 * hair + 3 * beard + glasses


def crayon64() -> Crayon64:
    """The shipped network."""
    net = Crayon64()
    weights = load(resources.files("crayon.tasks.adversarial").joinpath("crayon64.safetensors").read_bytes())
    # How many batches BatchNorm has seen isn't among them, and decides nothing in evaluation mode.
    counts = {name: b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")}
    net.load_state_dict({name: w.float() for name, w in weights.items()} | counts)
    net.requires_grad_(False).eval()
    return net.to(memory_format=torch.channels_last)


def chosen(name: str) -> str:
    """The extractor that `name` means here, `auto` resolved."""
    if name == "auto":
        return PREFERRED[0] if inception.cached() else PREFERRED[1]
    return name


def extractor(name: str = "auto") -> Extractor:
    """The extractor called `name`. `auto` = Inception if its weights are on this machine, else `crayon64`.

    Raises BadInput for an unknown name, and for `inception2015` when its weights can't be had.
    """
    name = chosen(name)
    if name == "crayon64":
        return crayon64()
    if name == "inception2015":
        return inception.load()
    raise BadInput(
        f"There is no feature extractor {name!r}; choose task.extractor from {', '.join(EXTRACTORS)}."
    )
