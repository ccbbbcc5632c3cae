"""A small convolutional classifier, shaped for speed on CPU cores as well as GPUs.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crayon.config.pairs import Size, sides
from crayon.data.types import DataInfo
from crayon.tasks.classification.settings import ClassifierConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class WhiteningStem(nn.Module):
    """A fixed first layer: 2x2 patches in a decorrelated basis, standardised, split into positive and negative part.

    airbench (Jordan 2024) computes a whitening layer from the training patches and freezes it. The principal
    components of small patches of natural images are, nearly, the 2x2 Haar wavelets times brightness and two colour
    differences, so that basis is used as it is, and BatchNorm's running statistics supply the scales. That needs no
    pass over the data and no gradient at the largest resolution.
    """

    basis: Tensor

    def __init__(self, channels: int, stride: int = 1, activation: str = "relu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        haar = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1.0]]])
        colour = torch.eye(channels)
        if channels == 3:
            colour = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]), dim=1)
        basis = torch.einsum("pc,qhw->pqchw", colour, haar / 2).flatten(0, 1)
        self.stride = stride
        self.register_buffer("basis", basis, persistent=False)
        self.norm = nn.BatchNorm2d(len(basis), affine=False)
        self.out_channels = 2 * len(basis)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] -> (B, 8 C, (H - 2) // stride + 1, ...)."""
        x = self.norm(F.conv2d(images, self.basis, stride=self.stride))
        return self.activation(torch.cat([x, -x], 1))


class Stage(nn.Module):
    """convolution, max pooling, BatchNorm, activation, then `depth - 1` times convolution, BatchNorm, activation.

    With three or more convolutions the later ones are residual, as in airbench96. Convolutions start as partial
    identities (Zagoruyko & Komodakis 2017), which makes the first epochs faster.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, activation: str = "relu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        inputs = [in_channels, *[out_channels] * (depth - 1)]
        convolutions = [nn.Conv2d(i, out_channels, 3, padding=1, bias=False) for i in inputs]
        for conv in convolutions:
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = skip = self.activation(self.norms[0](F.max_pool2d(self.convolutions[0](x), 2)))
        last = len(self.convolutions) - 1
        for i in range(1, last + 1):
            x = self.norms[i](self.convolutions[i](x))
            x = self.activation(x + skip if i == last and last >= 2 else x)
        return x


class Classifier(nn.Module):
    """Images to class logits. Any size from 8 pixels; each stage halves it until the shorter side is about 3."""

    def __init__(self, config: ClassifierConfig, *, image_size: Size, channels: int, classes: int):
        super().__init__()
        self.stem = WhiteningStem(channels, config.stem_stride, config.activation)
        side = (min(sides(image_size)) - 2) // config.stem_stride + 1
        widths: list[int] = []
        while not widths or side >= 6:
            widths.append(config.width * (config.growth if widths else 1))
            side //= 2
        before = [self.stem.out_channels, *widths[:-1]]
        self.stages = nn.Sequential(
            *(Stage(i, o, config.depth, config.activation) for i, o in zip(before, widths, strict=True))
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], classes)

    @classmethod
    def build(cls, config: ClassifierConfig, info: DataInfo) -> Classifier:
        """For images as `info` describes them."""
        return cls(config, image_size=info.size, channels=info.channels, classes=len(info.classes))

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] -> float32 logits (B, K)."""
        features = self.stages(self.stem(images)).amax((2, 3))
        return self.head(self.dropout(features)).float()
