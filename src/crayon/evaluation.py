"""A task's statistics of a whole split: each image once over all workers, whatever their number."""

from __future__ import annotations

import torch
from torch import Tensor

from crayon.config import Experiment
from crayon.data import ImageSet, evaluation_batches
from crayon.distributed import Group
from crayon.rng import Randomness
from crayon.tasks.base import Networks, Statistics, Task


@torch.no_grad()
def evaluate(
    task: Task, networks: Networks, images: ImageSet, config: Experiment, group: Group
) -> Statistics:
    """The statistics of `images` under `networks`, the same on every worker, rows in the split's order.

    The networks are put into evaluation mode and left there. Every worker takes part.
    """
    networks.eval()
    rng = Randomness(config.seed, "evaluate")
    sums: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    batches = evaluation_batches(
        images,
        batch_size=config.eval.batch_size,
        rank=group.rank,
        world_size=group.world_size,
        device=group.device,
        channels_last=config.channels_last,
    )
    for batch in batches:
        with torch.autocast(group.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            stats = task.evaluate(networks, batch, rng)
        for name, value in stats.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        for name, value in (stats.rows | {"positions": batch.positions}).items():
            rows.setdefault(name, []).append(value)
    return reduce(Statistics(sums, {name: torch.cat(parts) for name, parts in rows.items()}), group)


def reduce(mine: Statistics, group: Group) -> Statistics:
    """Every worker's statistics together, sorted by (and without) the row `positions`."""
    # A worker may have had no batch of a small split; rank 0 always has one, and its shapes are everyone's.
    shapes = group.from_first(
        {
            part: {name: (value.shape, value.dtype) for name, value in getattr(mine, part).items()}
            for part in ("sums", "rows")
        }
    )
    for name, (shape, dtype) in shapes["sums"].items():
        mine.sums.setdefault(name, torch.zeros(shape, dtype=dtype, device=group.device))
    for name, (shape, dtype) in shapes["rows"].items():
        mine.rows.setdefault(name, torch.zeros((0, *shape[1:]), dtype=dtype, device=group.device))
    sums = {name: group.sum(mine.sums[name]) for name in shapes["sums"]}
    rows = {name: group.concatenate(mine.rows[name]) for name in shapes["rows"]}
    order = rows.pop("positions").argsort()
    return Statistics(sums, {name: value[order] for name, value in rows.items()})
