"""A task's statistics of a whole split: each image once over all workers, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from crayon.config import Experiment
from crayon.data import ImageSet, evaluation_batches
from crayon.distributed import Group
from crayon.rng import Randomness
from crayon.tasks.base import Batch, Networks, Statistics, Task


def evaluate(
    task: Task, networks: Networks, images: ImageSet, config: Experiment, group: Group, *, rows: bool = True
) -> Statistics:
    """The statistics of `images` under `networks`: the sums on every worker, the rows, in the split's order, on rank 0.

    The networks are put into evaluation mode and left there. Every worker takes part. rows: whether they are wanted.
    """
    batches = evaluation_batches(
        images,
        batch_size=config.eval.batch_size,
        rank=group.rank,
        world_size=group.world_size,
        device=group.device,
        channels_last=config.channels_last,
    )
    return reduce(partial(task, networks, batches, config, group.device, rows=rows), group)


@torch.no_grad()
def partial(
    task: Task,
    networks: Networks,
    batches: Iterable[Batch],
    config: Experiment,
    device: torch.device,
    *,
    rows: bool = True,
) -> Statistics:
    """The statistics of some batches of a split, with the row `positions`: for `reduce` or `combine`."""
    networks.eval()
    rng = Randomness(config.seed, "evaluate")
    sums: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {}
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            stats = task.evaluate(networks, batch, rng)
        for name, value in stats.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        for name, value in (stats.rows | {"positions": batch.positions} if rows else {}).items():
            kept.setdefault(name, []).append(value)
    return Statistics(sums, _joined(kept))


def _joined(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Each name's rows as one tensor. `parts` is emptied, so that no more than one name's are there twice."""
    return {name: torch.cat(parts.pop(name)) for name in list(parts)}


def combine(parts: Sequence[Statistics]) -> Statistics:
    """What `partial` gave for all batches of a split, in any order, as `evaluate` gives it."""
    sums = {name: torch.stack([part.sums[name] for part in parts]).sum(0) for name in parts[0].sums}
    rows = {name: [part.rows.pop(name) for part in parts] for name in list(parts[0].rows)}
    return reduce(Statistics(sums, _joined(rows)), Group())


def reduce(mine: Statistics, group: Group) -> Statistics:
    """Every worker's sums; on rank 0 also their rows, sorted by (and without) the row `positions`."""
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
    rows = {name: group.to_first(mine.rows.pop(name)) for name in shapes["rows"]}
    if group.rank != 0 or not rows:
        return Statistics(sums)
    order = rows.pop("positions").argsort()
    # One name after the other: none but the one under way is there twice.
    return Statistics(sums, {name: rows.pop(name)[order] for name in list(rows)})
