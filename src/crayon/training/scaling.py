"""What several workers are expected to gain, told before the first step: some steps are tried, and undone."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crayon.data.loader import evaluation_batches
from crayon.data.types import Batch
from crayon.fast.cuda_graph import WARM_UP_STEPS, Part, Run
from crayon.rng import Randomness
from crayon.training import train_state
from crayon.training.batchnorm import apart
from crayon.training.step import Terms

if TYPE_CHECKING:
    from crayon.training.loop import Trainer

TRY_SECONDS = 0.15
"""For how long a kind of step is tried, twice at least; the quickest counts."""
FEW = 16
"""Images of a worker below which a step of half of them says little of what an image costs."""
POOR = 0.5
"""Share of linear speed below which there is a hint."""


def expected(trainer: Trainer) -> str:
    """A sentence on how much faster than one worker these are, by an estimate; empty for one. Every worker takes part.

    What one would need for the global batch is drawn as a line through steps of two sizes. Loading and augmentation
    aren't in it. None with `compile`, which would compile for both. Weights, statistics and moments are put back, and
    what a step draws is keyed, so training has the same bits as without.
    """
    update, loader, config = trainer.update, trainer.loader, trainer.config
    group, images = update.group, loader.batch_size
    if group.alone or config.compile:
        return ""
    rng = Randomness(config.seed, "step", 0)

    def batch(size: int) -> Batch:
        layout, device = config.channels_last, group.device
        return next(
            iter(evaluation_batches(loader.images, batch_size=size, device=device, channels_last=layout))
        )

    def seconds(run: Run, batch: Batch) -> float:
        """Of the quickest step."""
        cuda, least, tries, begun = group.device.type == "cuda", math.inf, 0, time.perf_counter()
        while tries < (WARM_UP_STEPS + 3 if cuda else 2) or not group.reduce_flags(
            int(time.perf_counter() - begun > TRY_SECONDS)
        ):
            group.barrier()
            started = time.perf_counter()
            run(batch, rng)
            if cuda:
                torch.cuda.synchronize(group.device)
            least, tries = min(least, time.perf_counter() - started), tries + 1
        return least

    def own(batch: Batch, rng: Randomness, logged: Terms) -> list[Part]:
        """A step without what the workers do together."""

        def work() -> None:
            for part in update.parts(batch, rng, logged)[::2]:
                part()

        return [work]

    whole, part = batch(images), batch(images // 4 * 2 if images >= FEW else 2 * images)
    with _undone(trainer):
        together = seconds(update.runner(update.parts), whole)
        with apart(update.networks):
            alone, other = seconds(update.runner(own), whole), seconds(update.runner(own), part)
    more = len(whole.images) - len(part.images)
    each = (alone - other) / more if more else alone / images
    one = alone + max(0.0, each) * (config.global_batch_size - images)
    share = min(1.0, one / (group.world_size * together))
    size = 4e-6 * sum(p.numel() for found in update.trainable.values() for p in found)
    return (
        f"Expected: {share * group.world_size:.2g} times one worker's speed, about {100 * share:.0f} % of linear. A "
        f"step of {images} images each takes {1000 * together:.3g} ms, {1000 * max(0.0, together - alone):.2g} of "
        f"them communication, with {size:,.3g} MB of gradients."
        + " Fewer --workers, or a larger --global-batch-size, would use them better."
        * (share < POOR)
    )


@contextlib.contextmanager
def _undone(trainer: Trainer) -> Iterator[None]:
    """Steps within the block change nothing that training, or a checkpoint, knows."""
    found = train_state.capture(trainer.networks, trainer.average, trainer.optimizers)
    tensors: list[Tensor] = [tensor for group in found.values() for tensor in group.values()]
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    trainer.networks.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
            for optimizer in trainer.optimizers.values():
                optimizer.zero_grad()
