"""What a task is, to the loop that trains it.

Shapes: B batch, C channels, H height, W width. Images are float32 in [0, 1] wherever they cross a module boundary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, Show
from crayon.rng import Randomness


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


class Task(Protocol):
    """A task owns the mathematics; the trainer owns freezing, zero_grad, backward, clipping, steps and averaging."""

    networks: nn.ModuleDict
    """One optimizer each; insertion order = update order within a step. A network's name is its phase's name."""
    monitor: tuple[str, Literal["min", "max"]]
    """Validation metric that decides which checkpoint is the best, without the `val/` prefix."""
    summarizes_rows: bool
    """Whether `summarize` without `train` reads rows. If not, an epoch's end doesn't gather them."""
    evaluates_train: bool
    """Whether the end of a run also evaluates the training split (to report it, or to fit a probe on it)."""

    def prepare(self) -> None:
        """Called before training: fetch what evaluation needs beyond the data. Raises BadInput where it isn't there."""
        ...

    def loss(
        self, phase: str, nets: Networks, batch: Batch, rng: Randomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise in `phase`, and detached scalars to log (averaged over the epoch).

        Only `nets[phase]` has parameters that require gradients, and it must be called at most once, since under
        data parallelism it may be a DistributedDataParallel module (several inputs: concatenate them).
        """
        ...

    def evaluate(self, nets: Networks, batch: Batch, rng: Randomness) -> Statistics:
        """Statistics of one batch. Called without gradients, networks in eval mode with averaged weights."""
        ...

    def summarize(self, stats: Statistics, train: Statistics | None = None) -> dict[str, float]:
        """Metrics, by names without a split prefix. `train` (the training split's statistics) is given only at the
        end of a run, for metrics that fit something on the training split, such as a linear probe."""
        ...

    def progress_image(self, nets: Networks, device: torch.device) -> Image | None:
        """A picture of fixed inputs that shows progress over time (a frame of the run's GIF), or None."""
        ...

    def pictures(
        self,
        nets: Networks,
        stats: Statistics,
        show: Show,
        train: Statistics | None = None,
        show_train: Show | None = None,
    ) -> dict[str, Image]:
        """Pictures of the final model, by file stem. `stats` and `show` are the test split's, or the validation
        split's where there is no test split; `train` and `show_train`, if given, the training split's."""
        ...

    def exports(self, nets: Networks) -> dict[str, Export]:
        """What of the trained networks is exported, by file stem."""
        ...
