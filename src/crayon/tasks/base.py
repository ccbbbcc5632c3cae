"""What a task is, to the loop that trains it.

Shapes: B batch, C channels, H height, W width. Images are float32 in [0, 1] wherever they cross a module boundary.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, DataInfo, Show
from crayon.rng import Randomness
from crayon.tasks.layers import Function


class Networks(Protocol):
    """Networks by name: an nn.ModuleDict or a dict."""

    def __getitem__(self, name: str, /) -> Any: ...

    def values(self) -> Iterable[Any]: ...


@dataclass
class Statistics:
    """What evaluation adds up. Exact under any sharding: `sums` are added over batches and workers, `rows` are
    concatenated and put back in the split's order."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Counts as int64, measurements as float64."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """One row per image, (B, ...)."""


class Export(NamedTuple):
    """A part of a trained model that others can use without Crayon: one tensor in, one out, whatever the batch."""

    module: nn.Module
    """In evaluation mode, float32."""
    input_name: str
    """Name of the input, such as "images"."""
    output_name: str
    """Name of the output."""
    description: str
    """Shapes and value ranges of both, in words."""
    example: Tensor
    """Two inputs, float32 (2, ...)."""


Loss = tuple[Tensor, dict[str, Tensor]]
"""The scalar to minimise, and detached scalars to log (averaged over the epoch)."""
Monitor = tuple[str, Literal["min", "max"]]
"""A validation metric, without its `val/`, and which way it is better."""


class Seen(NamedTuple):
    """An evaluated split: its statistics, and its images by their places."""

    stats: Statistics
    show: Show


class Task(ABC):
    """A task owns the mathematics; the trainer owns freezing, zero_grad, backward, clipping, steps and averaging.

    It is built of the experiment and the data it is for, its networks initialised from torch's global generator.
    """

    abilities: tuple[str, ...] = ()
    """What trained models can do, where a job names this class itself (see crayon.Experiment.abilities)."""
    networks: nn.ModuleDict
    """One optimizer each; insertion order = update order within a step. A network's name is its phase's name."""
    monitor: Monitor
    """Decides which checkpoint is the best."""
    secondary_metrics: tuple[str, ...] = ()
    """Validation metrics, without their `val/`, without which `monitor` says too little."""
    summarizes_rows = False
    """Whether `summarize` without `train` reads rows. If not, an epoch's end doesn't gather them."""
    info: DataInfo
    """The data it is for."""
    latent_dim: int
    """Z, of tasks with codes."""
    together = 1
    """Neighbours in a step's global batch that come to the same worker: 2 for a loss that pairs 0 and 1, 2 and 3 ..."""
    even_classes = False
    """Whether an epoch shows every class equally often, instead of every image once."""
    evaluates_train = True
    """Whether the end of a run also evaluates the training split (to report it, or to fit a probe on it)."""

    @abstractmethod
    def __init__(self, experiment: Any, info: DataInfo): ...

    @classmethod
    def comparable(
        cls, experiment: Any, metric: str = "", info: Callable[[], DataInfo | None] = lambda: None
    ) -> tuple[Any, Monitor]:
        """`experiment` with a monitor that is the same on every machine, and that monitor: `metric` where that is one
        of the job's, else what it is here. info: what the data is, where that is known."""
        return experiment, cls.monitor

    def prepare(self) -> None:  # noqa: B027  most have nothing to fetch
        """Called before training: fetch what evaluation needs beyond the data. Raises BadInput where it isn't there."""

    def change(self, experiment: Any) -> None:  # noqa: B027  most have nothing that may
        """Go on with other values of what may change while a run trains: fields made by `setting(may_change=True)`."""

    @abstractmethod
    def loss(self, phase: str, nets: Networks, batch: Batch, rng: Randomness) -> Loss:
        """The loss of `phase`.

        Only `nets[phase]` has parameters that require gradients. With several workers each has its share of the batch,
        and their gradients are averaged.
        """

    @abstractmethod
    def evaluate(self, nets: Networks, batch: Batch, rng: Randomness) -> Statistics:
        """Statistics of one batch. Called without gradients, networks in eval mode with averaged weights."""

    @abstractmethod
    def summarize(self, stats: Statistics, train: Statistics | None = None) -> dict[str, float]:
        """Metrics, by names without a split prefix. `train` (the training split's statistics) is given only at the
        end of a run, for metrics that fit something on the training split, such as a linear probe."""

    def trouble(self, stats: Statistics, done: float) -> str:
        """What a person should know of an evaluated split after a share `done` of the training, in a sentence or two;
        empty where all is well. It is told once."""
        return ""

    def progress_image(self, nets: Networks, device: torch.device) -> Image | None:
        """A picture of fixed inputs that shows progress over time (a frame of the run's GIF), or None."""
        return None

    def pictures(self, nets: Networks, seen: Seen, train: Seen | None = None) -> dict[str, Image]:
        """Pictures of the final model, by file stem. `seen` is the test split, or the validation split where there is
        no test split; `train`, if given, the training split."""
        return {}

    def exports(self, nets: Networks) -> dict[str, Export]:
        """What of the trained networks is exported, by file stem: by default `classifier`, `encoder` and `decoder`, as
        far as there are such methods."""
        images, example = example_images(self.info)
        found = {}
        if type(self).classify is not Task.classify:
            about = f"{images} to probabilities float32 (batch, {len(self.info.classes)})"
            found["classifier"] = self._export(nets, self.classify, "images", "probabilities", about, example)
        codes = f"codes float32 (batch, {self.latent_dim})" if hasattr(self, "latent_dim") else ""
        if codes and type(self).encode is not Task.encode:
            found["encoder"] = self._export(
                nets, self.encode, "images", "codes", f"{images} to {codes}", example
            )
        if codes and type(self).decode is not Task.decode:
            normal = Randomness(0, "example").normal(torch.arange(2), self.latent_dim)
            found["decoder"] = self._export(
                nets, self.decode, "codes", "images", f"{codes}, to {images}", normal
            )
        return found

    @staticmethod
    def _export(
        nets: Any,
        function: Callable[[Networks, Tensor], Tensor],
        takes: str,
        gives: str,
        about: str,
        example: Tensor,
    ) -> Export:
        return Export(
            Function(nn.ModuleDict(nets), functools.partial(function, nets)), takes, gives, about, example
        )

    # What a trained model can do, as far as its experiment names it (`Experiment.abilities`). `nets` are in evaluation
    # mode, images float32 (B, C, H, W) in [0, 1].

    def classify(self, nets: Networks, images: Tensor) -> Tensor:
        """Probabilities (B, K) of the data's classes; rows sum to 1."""
        raise NotImplementedError

    def encode(self, nets: Networks, images: Tensor) -> Tensor:
        """Codes (B, Z)."""
        raise NotImplementedError

    def decode(self, nets: Networks, codes: Tensor) -> Tensor:
        """Images of codes float32 (B, Z); of standard normal ones where the task generates."""
        raise NotImplementedError

    def reconstruct(self, nets: Networks, images: Tensor) -> Tensor:
        """Images after the passage through their codes."""
        return self.decode(nets, self.encode(nets, images))


def example_images(info: DataInfo) -> tuple[str, Tensor]:
    """What a function that is exported takes or gives as images, in words, and two of them, uniform noise."""
    shape = info.shape
    noise = Randomness(0, "example").uniform(torch.arange(2), math.prod(shape))
    return f"images float32 (batch, {', '.join(map(str, shape))}) in [0, 1]", noise.view(2, *shape)
