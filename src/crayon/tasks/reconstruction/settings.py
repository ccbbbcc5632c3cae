"""Settings of autoencoders. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from crayon.config.fields import setting
from crayon.config.settings import Experiment


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A convolutional encoder and decoder with a vector in between."""

    latent_dim: int = setting(32, low=1)
    """Length of the code between the two halves."""
    width: int = setting(32, low=1)
    """Channels at half resolution; each further halving doubles them, up to four times this."""
    depth: int = setting(1, low=1)
    """Convolutions in each residual block; there is one block per resolution in either half."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Mean squared error between the image and its reconstruction."""

    noise: float = setting(0.0, low=0)
    """Standard deviation of Gaussian noise added to the input, not to the target (denoising variant)."""
    mask: float = setting(0.0, low=0, high=1)
    """Share of the input's 4x4 patches blanked out (masking variant)."""
    latent_noise: float = setting(0.0, low=0)
    """Standard deviation of Gaussian noise added to the standardised code in training: close codes decode alike."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionExperiment(Experiment):
    task_class = "crayon.tasks.reconstruction.task:ReconstructionTask"
    abilities = ("encode", "reconstruct")

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    task: ReconstructionConfig = field(default_factory=ReconstructionConfig)
