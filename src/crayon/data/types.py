"""What the data package hands to training: a batch, and facts about the data set.

Shapes: B batch, C channels, H height, W width. Images are float32 in [0, 1] wherever they cross a module boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from crayon.config.pairs import Size, sides, size_text
from crayon.errors import BadInput


class Batch(NamedTuple):
    """One worker's share of a step."""

    images: Tensor
    """float32 (B, C, H, W) in [0, 1], on the device."""
    labels: Tensor
    """int64 (B,); zeros where the source has no labels. Of a source without classes, whatever it has beside the images:
    int64 or float32 (B, ...)."""
    positions: Tensor
    """int64 (B,). Training: place in the global batch. Evaluation: index in the split. Keys `rng` draws."""


UNBALANCED = 3
"""The largest class has more than so many times the images of the smallest: then the share of images that are right
says little of small classes."""


def unbalanced(counts: Iterable[float]) -> bool:
    """Whether the classes with so many images each differ too much. Those without images have no part in it."""
    some = [count for count in counts if count > 0]
    return bool(some) and max(some) > UNBALANCED * min(some)


Show = Callable[[Tensor], Batch]
"""The images at these places of a split, int64 (B,), a few dozen of them."""


class DataInfo(NamedTuple):
    """What a task needs to know of its data before it builds its networks."""

    size: Size
    """Of its images: the side of squares, else (height, width)."""
    channels: int
    classes: tuple[str, ...]
    """Class names; empty where the source has no labels."""
    train_size: int
    source: str = ""
    counts: tuple[int, ...] = ()
    """Training images by class."""
    unbalanced: bool = False
    """Whether classes of the training or the validation split differ by more than UNBALANCED in their images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return (self.channels, *sides(self.size))

    @property
    def image_size(self) -> int:
        """The side of square images. Raises BadInput for others: what asks for one number is made for squares."""
        if isinstance(self.size, int):
            return self.size
        height, width = self.size
        raise BadInput(
            f"--data.image-size is {size_text(height, width)}, and this job's network is made for squares; give one "
            "number, or let the network ask for data.shape (channels, height, width)."
        )
