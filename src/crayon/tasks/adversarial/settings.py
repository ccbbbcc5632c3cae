"""Settings of GANs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crayon.config.fields import setting
from crayon.config.settings import Experiment


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """Generator and discriminator."""

    latent_dim: int = setting(64, low=1)
    """Length of the generator's seed vector."""
    width: int = setting(32, low=1)
    """Channels at half the image's resolution; each further halving doubles them, up to 512."""
    discriminator_width: int = setting(0, low=0)
    """The same for the discriminator. 0 = `width`."""
    discriminator_norm: Literal["auto", "none", "batch"] = "auto"
    """batch = normalise the discriminator's features over the batch. auto = batch for the classic loss without a
    gradient penalty, else none."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The game between generator and discriminator."""

    loss: Literal["classic", "relativistic"] = "classic"
    """classic = non-saturating BCE (Goodfellow et al. 2014); relativistic = R3GAN (Huang et al. 2024)."""
    gamma: float = setting(0.0, low=0)
    """Weight of the gradient penalties R1 and R2; they are computed as gamma / 2 * |grad|^2."""
    diffaugment: Literal["auto", "on", "off"] = "auto"
    """Augment real and generated images alike (Zhao et al. 2020). auto = on under 30,000 images that are each seen
    50 times or more."""
    extractor: Literal["auto", "crayon64", "inception2015"] = "auto"
    """Network whose features distances are measured in. auto = inception2015 if its weights are on this machine;
    decided once, when a run first starts."""


@dataclass(frozen=True, kw_only=True)
class AdversarialExperiment(Experiment):
    task_class = "crayon.tasks.adversarial.task:AdversarialTask"
    abilities = ("generate", "edit")

    model: GanConfig = field(default_factory=GanConfig)
    task: AdversarialConfig = field(default_factory=AdversarialConfig)
