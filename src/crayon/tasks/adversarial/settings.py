"""Settings of GANs. Torch-free."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

from crayon.config import changes
from crayon.config.fields import setting
from crayon.config.pairs import Size, sides, size_text
from crayon.config.settings import Experiment
from crayon.errors import BadInput

SMALLEST, LARGEST = 16, 128
"""Pixels of a side of what the networks can make."""


def stages(image_size: Size | str) -> tuple[tuple[int, int], int]:
    """((height, width) of the innermost feature map, the shorter side 4 to 7; number of halvings that lead there).

    Raises BadInput for sizes that no number of doublings reaches, and outside 16..128.

    >>> stages(64), stages(48), stages((96, 64)), stages((64, 128))
    (((4, 4), 4), ((6, 6), 3), ((6, 4), 4), ((4, 8), 4))
    """
    height, width = sides(image_size)
    if found := _halvings(height, width):
        return (height >> found, width >> found), found
    possible = [
        (h, w)
        for h, w in itertools.product(range(SMALLEST, LARGEST + 1, 2), repeat=2)
        if _halvings(h, w) and (h == w or height != width)
    ]
    possible.sort(key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size))
    near = " or ".join(size_text(*size) for size in sorted(possible[:2]))
    raise BadInput(
        f"The GAN can't work at data.image_size {size_text(height, width)}; the nearest that work are {near} "
        f"({SMALLEST} to {LARGEST} pixels, the shorter side 4 to 7 times a power of 2 that divides both)."
    )


def _halvings(height: int, width: int) -> int:
    """How many halvings of both sides leave 4 to 7 pixels of the shorter one; 0 if none does."""
    count = max(0, min(height, width).bit_length() - 3)
    whole = height % 2**count == width % 2**count == 0
    return count if whole and SMALLEST <= min(height, width) <= max(height, width) <= LARGEST else 0


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
    gamma: float = setting(0.0, low=0, may_change=True)
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

    def check(self) -> None:
        stages(self.data.image_size)
        if not self.task.gamma and any(name == "task.gamma" for _, name, _ in changes.parsed(self)):
            raise BadInput(
                "--changes: task.gamma begins at 0, and networks are built otherwise where there is no penalty; begin "
                "with a small one, such as 0.01."
            )
