"""The Inception network of published FID and KID figures ("inception-2015-12-05"), made of torchvision's layers.

The weights were ported from TensorFlow by the pytorch-fid project (github.com/mseitzer/pytorch-fid). They aren't
torchvision's own, and the pooling branches differ: padding isn't averaged in, and the last block takes the maximum.
"""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crayon.errors import BadInput
from crayon.system.files import atomic

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d"
"""How the file's SHA-256 begins, as its name says."""
TIMEOUT = 20
"""Seconds without an answer after which a download is given up."""


def weights_path() -> Path:
    """Where torch.hub keeps the weights, present or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def cached() -> bool:
    """Whether the weights are on this machine."""
    return weights_path().is_file()


def resize(images: Tensor, size: int) -> Tensor:
    """RGB at `size` x `size`: antialiased bilinear; grey is repeated. (B, C, H, W) to (B, 3, size, size)."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images.expand(-1, 3, -1, -1)


class Inception2015(nn.Module):
    """2,048 features, averaged over the last feature map."""

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


def load() -> Inception2015:
    """The network with its weights, downloaded on first use. Raises BadInput when they can't be had."""
    path = weights_path()
    if not path.is_file():
        _download(path)
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256):
        raise BadInput(f"{path} does not hold the Inception weights; delete it, and it is downloaded anew.")
    net = Inception2015()
    net.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net.requires_grad_(False).eval()
    return net.to(memory_format=torch.channels_last)


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with atomic(path) as temporary:
            with temporary.open("wb") as file, urllib.request.urlopen(URL, timeout=TIMEOUT) as answer:
                while part := answer.read(1 << 20):
                    digest.update(part)
                    file.write(part)
            if not digest.hexdigest().startswith(SHA256):
                raise OSError("the file that came is not the one expected")
    except OSError as error:
        raise BadInput(
            f"The Inception weights could not be downloaded from {URL} ({error}); "
            f"put the file at {path}, or use --task.extractor crayon64."
        ) from None
