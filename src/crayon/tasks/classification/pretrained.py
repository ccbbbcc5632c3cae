"""torchvision's classifiers, begun with weights that were trained on ImageNet, as the network of a job of one's own.

job = crayon.Job(
    name="flowers", about="...", network=crayon.PretrainedClassifier,
    presets={"quick": crayon.ClassificationExperiment(model=crayon.Pretrained(), lr=1e-3, epochs=5)},
)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from crayon.config.fields import setting
from crayon.config.pairs import size_text
from crayon.data.types import DataInfo
from crayon.errors import BadInput, one_line

HEADS = {"resnet18": "fc", "convnext_tiny": "classifier.2", "vit_b_16": "heads.head"}
"""The last layer of each network, which is made anew for the classes."""
PATCH = 16
"""Pixels of a side of what a transformer takes as one token."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images in [0, 1], by which all of these networks' inputs are normalised."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A torchvision network, begun with weights from ImageNet."""

    name: Literal["resnet18", "convnext_tiny", "vit_b_16"] = "resnet18"
    """resnet18 = 11 million parameters; convnext_tiny = 28, for images of at least 32 pixels; vit_b_16 = 86, for images
    in multiples of 16 pixels."""
    weights: str = "imagenet"
    """imagenet = torchvision's, downloaded once into its cache; none = random ones; or a file of theirs (.pth,
    .safetensors)."""
    freeze: bool = False
    """Train the last layer alone."""
    lr_factor: float = setting(0.1, low=0)
    """Learning rate of all layers but the last, in multiples of `lr`."""


class PretrainedClassifier(nn.Module):
    """Normalisation, and a torchvision network whose last layer is new.

    Raises BadInput where the weights can't be had, or don't fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Pretrained, data: DataInfo):
        super().__init__()
        self.body, head = _body(settings, data), HEADS[settings.name]
        inputs: Any = self.body.get_submodule(head).in_features
        self.body.set_submodule(head, nn.Linear(inputs, len(data.classes)))
        self.lr_factors = {"body.": settings.lr_factor, f"body.{head}.": 1.0}
        self.frozen = settings.freeze
        if self.frozen:
            self.body.requires_grad_(False)
            self.body.get_submodule(head).requires_grad_(True)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] to float32 logits (B, K). Grey images are given to all three channels."""
        return self.body((images.expand(-1, 3, -1, -1) - self.mean) / self.std).float()

    def train(self, mode: bool = True) -> PretrainedClassifier:
        """Frozen layers keep the statistics of their normalisation."""
        return super().train(mode and not self.frozen)


def _body(settings: Pretrained, data: DataInfo) -> nn.Module:
    transformer = settings.name.startswith("vit")
    _, height, width = data.shape
    if transformer and (height != width or height % PATCH):
        low = max(PATCH, min(height, width) // PATCH * PATCH)
        raise BadInput(
            f"--data.image-size is {size_text(height, width)}; {settings.name} needs squares in multiples of {PATCH}, "
            f"such as {low} or {low + PATCH}."
        )
    if settings.name == "convnext_tiny" and min(height, width) < 32:
        raise BadInput(f"--data.image-size is {size_text(height, width)}; convnext_tiny needs at least 32.")
    network = models.get_model(settings.name, **({"image_size": height} if transformer else {}))
    if settings.weights == "none":
        return network
    state = _weights(settings)
    if transformer:
        state = interpolate_embeddings(height, PATCH, state)  # type: ignore[arg-type]
    for name in [name for name in state if name.startswith(HEADS[settings.name] + ".")]:
        del state[name]  # may be of other classes
    try:
        missing, unknown = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BadInput(
            f"--model.weights {settings.weights} aren't {settings.name}'s ({one_line(error)})."
        ) from None
    wrong = [name for name in missing if not name.startswith(HEADS[settings.name])] + unknown
    if wrong:
        raise BadInput(f"--model.weights {settings.weights} aren't {settings.name}'s (see {wrong[0]}).")
    return network


def _weights(settings: Pretrained) -> dict[str, Any]:
    """By the names of torchvision's parameters; no code in the file is executed."""
    if settings.weights == "imagenet":
        try:
            return dict(models.get_model_weights(settings.name).DEFAULT.get_state_dict(check_hash=True))  # type: ignore[attr-defined]
        except OSError as error:
            raise BadInput(
                f"{settings.name}'s weights can't be downloaded ({one_line(error)}); get them elsewhere and give the "
                "file: --model.weights FILE."
            ) from None
    path = Path(os.path.expanduser(settings.weights))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is in the file
        raise BadInput(f"--model.weights {path} can't be read ({one_line(error)}).") from None
