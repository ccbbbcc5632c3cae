"""Feature extractors by name: what a distance between sets of images is measured in.

A distance depends on the features it is measured in, so the extractor's name is part of every metric's name
(`fd_crayon64`, `fd_inception2015`), and figures under different names are not comparable.

Shapes: B images, C channels, H height, W width, F features.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from crayon.data.download import patience
from crayon.errors import BadInput

PREFERRED = ("inception2015", "crayon64")
"""What `auto` means: the first if its weights are on this machine, else the second."""
FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d"
"""How the file's SHA-256 begins, as its name says."""
HAIR, BEARD, GLASSES = 5, 3, 3
"""The modes of the procedural faces: `label = 9 * hair + 3 * beard + glasses`."""


def weights_path() -> Path:
    """Where torch.hub keeps the weights, present or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def resize(images: Tensor, size: int) -> Tensor:
    """RGB at `size` x `size`: antialiased bilinear; grey is repeated. (B, C, H, W) to (B, 3, size, size)."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images.expand(-1, 3, -1, -1)


class Inception2015(nn.Module):
    """The Inception network of published FID and KID figures ("inception-2015-12-05"), made of torchvision's layers:
    2,048 features, averaged over the last feature map.

    The weights were ported from TensorFlow by the pytorch-fid project (github.com/mseitzer/pytorch-fid). They aren't
    torchvision's own, and the pooling branches differ: padding isn't averaged in, and the last block takes the maximum.
    """

    name = "inception2015"

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        self.net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, 1 or 3, H, W) in [0, 1]. Returns float32 (B, 2048)."""
        with torch.autocast(images.device.type, enabled=False):
            x = resize(images.float(), 299) * 2 - 1
            for name, layer in self.net.named_children():
                if name in ("avgpool", "dropout", "fc"):
                    break
                x = _pooled(layer, x, last=name == "Mixed_7c") if hasattr(layer, "branch_pool") else layer(x)
            return x.mean((2, 3))


def _pooled(block: Any, x: Tensor, last: bool) -> Tensor:
    """An Inception block with its pooling branch, the last one, computed anew."""
    pooled = F.max_pool2d(x, 3, 1, 1) if last else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return torch.cat([*block._forward(x)[:-1], block.branch_pool(pooled)], 1)


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
        layers: list[nn.Module] = []
        widths = (3, w, 2 * w, 2 * w, 4 * w, 4 * w, 5 * w)
        for (i, o), stride in zip(pairwise(widths), (2, 2, 1, 2, 1, 2), strict=True):
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


def load_crayon64() -> Crayon64:
    """The shipped network."""
    net = Crayon64()
    weights = load(resources.files("crayon.tasks.adversarial").joinpath("crayon64.safetensors").read_bytes())
    # How many batches BatchNorm has seen isn't among them, and decides nothing in evaluation mode.
    counts = {name: b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")}
    net.load_state_dict({name: w.float() for name, w in weights.items()} | counts)
    return net


def load_inception() -> Inception2015:
    """The network with its weights, downloaded on first use. Raises BadInput when they can't be had."""
    path = weights_path()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with patience():
                torch.hub.download_url_to_file(URL, str(path), SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise BadInput(
                f"The Inception weights could not be downloaded from {URL} ({error}); "
                f"put the file at {path}, or use --task.extractor crayon64."
            ) from None
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256):
        raise BadInput(f"{path} does not hold the Inception weights; delete it, and it is downloaded anew.")
    net = Inception2015()
    net.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net


Extractor = Crayon64 | Inception2015
"""Maps images to features: a frozen network in evaluation mode, in float32."""


def chosen(name: str) -> str:
    """The extractor that `name` means here, `auto` resolved."""
    if name != "auto":
        return name
    return PREFERRED[0] if weights_path().is_file() else PREFERRED[1]


def extractor(name: str = "auto") -> Extractor:
    """The extractor called `name`: crayon64, inception2015, or `auto` = Inception if its weights are on this machine.

    Raises BadInput for `inception2015` when its weights can't be had.
    """
    net = load_crayon64() if chosen(name) == "crayon64" else load_inception()
    return net.requires_grad_(False).eval().to(memory_format=torch.channels_last)
