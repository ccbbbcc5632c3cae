"""Directions in a generator's latent space along which its images change most, found without any labels.

Shapes: K directions, Z latent_dim, N sampled latents, F activations of the first layer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crayon.errors import BadInput
from crayon.tasks.adversarial.network import Generator, sample_latents

Method = Literal["weights", "activations"]
SAMPLED = 4096
"""Latents whose activations are analysed."""
SAMPLE_SEED = -2
"""A stream apart from the images of any seed."""


@dataclass(frozen=True)
class Directions:
    """What `find` found, the strongest first."""

    vectors: Tensor
    """float32 (K, Z), each of length 1: a latent is standard normal along each, so a step of 1 is one standard
    deviation. Its largest component is positive, since a direction and its opposite are the same."""
    shares: Tensor
    """float32 (K,): part of the analysed variance that lies along each, in [0, 1]."""
    method: str
    run: str = ""
    """The run whose generator they belong to."""
    step: int = 0

    def __len__(self) -> int:
        return len(self.vectors)

    def text(self) -> bytes:
        """The content of directions.json."""
        content = {
            "kind": "directions",
            "method": self.method,
            "run": self.run,
            "step": self.step,
            "latent_dim": self.vectors.shape[1],
            "shares": self.shares.tolist(),
            "vectors": self.vectors.tolist(),
        }
        return (json.dumps(content) + "\n").encode()


def find(generator: Generator, method: Method = "activations", count: int = 8) -> Directions:
    """The `count` strongest directions of a generator in evaluation mode, at most Z.

    - weights: eigenvectors of A^T A, A being the first dense layer with its normalisation (SeFa; Shen & Zhou 2021).
    - activations: principal components of that layer's activations, each carried back to the latents by least squares
      (GANSpace; Härkönen et al. 2020). Without the ReLU between, both would be the same.

    Raises BadInput where `count` isn't in 1..Z.
    """
    if not 1 <= count <= generator.latent_dim:
        raise BadInput(f"--directions must lie in 1..{generator.latent_dim}, and {count} doesn't.")
    vectors, shares = {"weights": _by_weights, "activations": _by_activations}[method](generator)
    vectors, shares = vectors[:count], shares[:count]
    largest = vectors.abs().argmax(1, keepdim=True)
    vectors = vectors * vectors.gather(1, largest).sign()
    return Directions(vectors.float().cpu(), shares.float().cpu(), method)


def read(content: Any, source: str, latent_dim: int) -> Directions:
    """Directions from the JSON that `text` writes. Raises BadInput where it isn't that, or of another size."""
    try:
        vectors = torch.tensor(content["vectors"], dtype=torch.float32)
        shares = torch.tensor(content["shares"], dtype=torch.float32)
        sound = vectors.dim() == 2 and shares.shape == (len(vectors),) and bool(vectors.isfinite().all())
        if content["kind"] != "directions" or not sound:
            raise ValueError
        found = Directions(vectors, shares, str(content["method"]), str(content["run"]), int(content["step"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BadInput(
            f"{source} doesn't hold directions; give the directions.json that explore wrote."
        ) from None
    if vectors.shape[1] != latent_dim:
        raise BadInput(
            f"{source} has directions of {vectors.shape[1]} numbers and this generator's latents have {latent_dim}; "
            "run explore on this run."
        )
    return found


@torch.no_grad()
def _by_weights(generator: Generator) -> tuple[Tensor, Tensor]:
    linear, norm = generator.layers[0], generator.layers[2]
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.double()
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_var is not None
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * gain.repeat_interleave(len(weight) // len(gain))[:, None]
    values, vectors = torch.linalg.eigh(weight.T @ weight)  # ascending
    return vectors.T.flip(0), values.flip(0) / values.sum()


@torch.no_grad()
def _by_activations(generator: Generator) -> tuple[Tensor, Tensor]:
    device = next(generator.parameters()).device
    latents = sample_latents(SAMPLE_SEED, torch.arange(SAMPLED, device=device), generator.latent_dim)
    with torch.autocast(device.type, enabled=False):
        active = generator.layers[:4](latents).flatten(1).double()
    active -= active.mean(0)
    # (F, F) or (N, N), whichever is smaller: both have the same eigenvalues but for zeros.
    if active.shape[1] <= len(active):
        values, components = torch.linalg.eigh(active.T @ active)
        coordinates = active @ components
    else:
        values, left = torch.linalg.eigh(active @ active.T)
        coordinates = left * values.clamp(min=0).sqrt()
    total = values.clamp(min=0).sum()
    keep = generator.latent_dim
    coordinates, values = coordinates.flip(1)[:, :keep], values.flip(0)[:keep]
    design = latents.double() - latents.double().mean(0)
    vectors = torch.linalg.lstsq(design, coordinates / coordinates.norm(dim=0).clamp(min=1e-12)).solution.T
    return nn.functional.normalize(vectors, dim=1), values / total


def edited(latents: Tensor, directions: Directions, strengths: Tensor) -> Tensor:
    """`latents` (N, Z) moved by `strengths` (N, K) standard deviations along each direction: (N, Z)."""
    return latents + strengths @ directions.vectors.to(latents.device)


def strengths(most: float, columns: int) -> Tensor:
    """`columns` evenly spaced strengths from -most to most; zero is the one in the middle. Raises BadInput."""
    if columns % 2 == 0:
        raise BadInput(f"--columns must be odd, so that the middle one is the image itself; {columns} isn't.")
    return torch.linspace(-most, most, columns)
