"""The tensors that decide a run's next steps: put into checkpoints, and back from one, exact to the bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.training.checkpoint import Checkpoint
from crayon.training.collectives import Group
from crayon.training.optimizer import Adam, Average


def capture(
    networks: nn.ModuleDict, average: Average, optimizers: Mapping[str, Adam]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by group: the live ones, not copies."""
    tensors = {"weights": dict(networks.state_dict()), "optimizer": _moments(networks, optimizers)}
    if average.on:
        tensors["ema"] = dict(average.networks.state_dict())
    return tensors


@torch.no_grad()
def restore(
    networks: nn.ModuleDict,
    average: Average,
    optimizers: Mapping[str, Adam],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Put back what `capture` returned, in place. Raises BadInput where it belongs to other networks."""
    checkpoint.restore_network(networks, tensors["weights"])
    if average.on:
        checkpoint.restore_network(average.networks, tensors["ema"])
    for name, tensor in _moments(networks, optimizers).items():
        tensor.copy_(tensors["optimizer"][name])


def _moments(networks: nn.ModuleDict, optimizers: Mapping[str, Adam]) -> dict[str, Tensor]:
    """What Adam knows of each parameter, as `<network>.<parameter>/<exp_avg, exp_avg_sq or step>`."""
    return {
        f"{network}.{name}/{key}": tensor
        for network, optimizer in optimizers.items()
        for name, parameter in networks[network].named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()  # none where it is frozen
    }


def newest(run: RunFolder, group: Group) -> Checkpoint | None:
    """The newest checkpoint, which rank 0 reads, on every worker; the rows of metrics that came after it are dropped,
    also where a run was killed before its first checkpoint was there."""
    found = None
    if group.rank == 0:
        entry = checkpoint.latest(run)
        found = None if entry is None else checkpoint.load(entry)
        step = 0 if found is None else found.step
        run.truncate_rows("metrics.jsonl", lambda row: row["step"] <= step)
    return group.broadcast_object(found)
