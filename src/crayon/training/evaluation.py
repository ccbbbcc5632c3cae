"""A task's statistics of a whole split: each image once over all workers, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from crayon.config.settings import Experiment
from crayon.data import ImageSet, evaluation_batches
from crayon.data.types import Batch
from crayon.rng import Randomness
from crayon.system import devices
from crayon.tasks.base import Networks, Statistics, Task
from crayon.training.collectives import Group


def evaluate(
    task: Task, networks: Networks, images: ImageSet, config: Experiment, group: Group, *, rows: bool = True
) -> Statistics:
    """The statistics of `images` under `networks`: the sums on every worker, the rows, in the split's order, on rank 0.

    The networks are put into evaluation mode and left there. Every worker takes part. rows: whether they are wanted.
    """
    device, size = devices.exact(group.device), config.eval.batch_size
    batches = evaluation_batches(
        images,
        batch_size=size,
        rank=group.rank,
        world_size=group.world_size,
        device=device,
        channels_last=config.channels_last,
    )
    mine = torch.arange(len(images)).split(size)[group.rank :: group.world_size]
    count = sum(map(len, mine)) if rows else 0
    return reduce(partial(task, networks, batches, config, device, count), group)


@torch.no_grad()
def partial(
    task: Task,
    networks: Networks,
    batches: Iterable[Batch],
    config: Experiment,
    device: torch.device,
    count: int,
) -> Statistics:
    """The statistics of some batches of a split, with the row `positions`: for `reduce` or `combine`.

    count: how many images the batches have. 0 = rows aren't wanted.
    """
    for network in networks.values():
        network.eval()
    rng = Randomness(config.seed, "evaluate")
    sums: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    done = 0
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            stats = task.evaluate(networks, batch, rng)
        for name, value in stats.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        for name, value in (stats.rows | {"positions": batch.positions} if count else {}).items():
            if name not in rows:  # whole from the start: many small pieces would take as much memory again
                rows[name] = value.new_empty(count, *value.shape[1:])
            rows[name][done : done + len(value)] = value
        done += len(batch.images)
    return Statistics(sums, rows)


def combine(parts: Sequence[Statistics]) -> Statistics:
    """What `partial` gave for all batches of a split, in any order, as `evaluate` gives it."""
    sums = {name: torch.stack([part.sums[name] for part in parts]).sum(0) for name in parts[0].sums}
    # One name after the other: none but the one under way is there twice.
    rows = {name: torch.cat([part.rows.pop(name) for part in parts]) for name in list(parts[0].rows)}
    return reduce(Statistics(sums, rows), Group())


def reduce(mine: Statistics, group: Group) -> Statistics:
    """Every worker's sums; on rank 0 also their rows, sorted by (and without) the row `positions`."""
    # A worker may have had no batch of a small split; rank 0 always has one, and its shapes are everyone's.
    shapes = group.broadcast_object(
        {
            part: {name: (value.shape, value.dtype) for name, value in getattr(mine, part).items()}
            for part in ("sums", "rows")
        }
    )
    for name, (shape, dtype) in shapes["sums"].items():
        mine.sums.setdefault(name, torch.zeros(shape, dtype=dtype, device=group.device))
    for name, (shape, dtype) in shapes["rows"].items():
        mine.rows.setdefault(name, torch.zeros((0, *shape[1:]), dtype=dtype, device=group.device))
    sums = {name: group.all_reduce_sum(mine.sums[name]) for name in shapes["sums"]}
    rows = {name: group.gather_rows(mine.rows.pop(name)) for name in shapes["rows"]}
    if group.rank != 0 or not rows:
        return Statistics(sums)
    order = rows.pop("positions").argsort()
    if torch.equal(order, torch.arange(len(order), device=order.device)):
        return Statistics(sums, rows)
    return Statistics(sums, {name: rows.pop(name)[order] for name in list(rows)})
