"""What is said of a set's values before anything is trained on them."""

from __future__ import annotations

import dataclasses

import torch

from crayon.config.pairs import range_text
from crayon.config.settings import DataConfig
from crayon.data.images import ImageSet
from crayon.report.events import Emit, Message

LOOKED_AT = 256
"""Images of a set that are looked at, evenly spaced, and ..."""
POINTS = 32
"""... at most so many points along each of their sides."""
FLAT = 8
"""A standard deviation, of 0..255, below which a set is nearly flat."""
GREY = 8
"""The channels of a grey image differ by at most this: JPEG files of grey images aren't quite grey."""
NEARLY_ALL = 0.9


def scaled_as(train: ImageSet, config: DataConfig) -> DataConfig:
    """`config` for images that are to be scaled as the training images were."""
    return config if train.limits is None else dataclasses.replace(config, range=range_text(*train.limits))


def remarks(train: ImageSet, config: DataConfig, emit: Emit) -> None:
    """Say how values were scaled, and of what looks like a mistake, by a sample of the images if they are decoded."""
    if not isinstance(train.storage, torch.Tensor):
        return
    if train.limits is not None:
        text = range_text(*train.limits)
        emit(
            Message(
                f"{train.name}: values of more than 8 bits are scaled to 0..255 from {text} (--data.range)."
            )
        )
    elif config.limits is not None:
        text = (
            f"{train.name} has no images of more than 8 bits, so --data.range {config.range} changes nothing."
        )
        emit(Message(text, warning=True))
    sample = _sample(train, train.storage)
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in sample.unbind(1)]).double()
    below = counts.sum(0).cumsum(0) / counts.sum()
    low, high = int((below < 0.01).sum()), int((below < 0.99).sum())
    # A single hot pixel makes a range of more than 8 bits too wide; among 8 bits it may be all that there is to see.
    values = torch.arange(256.0).clamp(*((low, high) if train.limits else (0, 255)))
    shares = counts / counts.sum(1, keepdim=True)
    means = (shares * values).sum(1, keepdim=True)
    if (shares * (values - means).square()).sum(1).max() < FLAT**2:
        text = f"{train.name} is nearly flat: 98 % of its values lie within {low}..{high} of 0..255"
        if train.limits is not None:
            bottom, top = train.limits
            ends = (bottom + x * (top - bottom) / 255 for x in (low, high + 1))
            text += (
                f"; a narrower range, such as --data.range {'..'.join(f'{x:.4g}' for x in ends)}, shows more"
            )
        emit(Message(f"{text}.", warning=True))
    elif train.shape[0] == 3:
        apart = (sample.amax(1).int() - sample.amin(1)).amax((1, 2))
        share = float((apart <= GREY).float().mean())
        if share >= NEARLY_ALL:
            text = f"{100 * share:.0f} % of {train.name} are grey; --data.channels 1 learns from them faster."
            emit(Message(text, warning=True))


def _sample(images: ImageSet, storage: torch.Tensor) -> torch.Tensor:
    """uint8 (N, C, h, w): evenly spaced points of evenly spaced images. Reads no more of a mapped file."""
    count = min(len(images), LOOKED_AT)
    places = torch.arange(count) * len(images) // count
    rows = places if images.rows is None else images.rows[places]
    _, height, width = images.shape
    down, right = -(-height // POINTS), -(-width // POINTS)
    return torch.stack([storage[row, :, ::down, ::right] for row in rows.tolist()])
