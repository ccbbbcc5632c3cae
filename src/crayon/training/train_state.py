"""What decides a run's next steps: put into checkpoints, and back from one, exact to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crayon.errors import CrayonError, Diverged
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.training.checkpoint import Checkpoint
from crayon.training.collectives import Group
from crayon.training.meter import Meter
from crayon.training.optimizer import Adam, Average
from crayon.training.saver import Saver
from crayon.training.threads import Threads


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
    moments = _moments(networks, optimizers)
    checkpoint.check_same(moments, tensors["optimizer"])
    for name, tensor in moments.items():
        tensor.copy_(tensors["optimizer"][name])


def _moments(networks: nn.ModuleDict, optimizers: Mapping[str, Adam]) -> dict[str, Tensor]:
    """What Adam knows of each parameter, as `<network>.<parameter>/<exp_avg, exp_avg_sq or step>`."""
    return {
        f"{network}.{name}/{key}": tensor
        for network, optimizer in optimizers.items()
        for name, parameter in networks[network].named_parameters()
        for key, tensor in optimizer.state[parameter].items()
    }


@dataclass
class TrainState:
    """The parts of a run that its checkpoints hold. Rank 0 reads and writes, every rank takes part."""

    run: RunFolder
    saver: Saver
    group: Group
    networks: nn.ModuleDict
    average: Average
    optimizers: Mapping[str, Adam]
    meter: Meter
    threads: Threads

    def save(
        self,
        step: int,
        progress: dict[str, Any],
        config: dict[str, Any],
        *,
        best: bool,
        metrics: dict[str, float],
        wait: bool,
    ) -> None:
        """Write a checkpoint with `progress` (JSON) in its state. Without `wait` it is written while training goes on,
        and what goes wrong is raised by a later one."""
        loop, meter = self.meter.state(self.group)
        if self.group.rank == 0:
            tensors = capture(self.networks, self.average, self.optimizers) | {"loop": loop}
            state = progress | {"meter": meter, "threads": self.threads.state()}
            self.saver.save_async(Checkpoint(step, tensors, state, config, metrics), best=best)
            if wait:
                self.saver.wait()

    def restore(self) -> Checkpoint | None:
        """Put back the newest checkpoint, and drop the rows of metrics that came after it; None where there is none.
        Returns it on every rank."""
        found = None
        if self.group.rank == 0:
            entry = checkpoint.latest(self.run)
            found = None if entry is None else checkpoint.load(entry)
        found = self.group.broadcast_object(found)
        if self.group.rank == 0:
            # Also where a run was killed before its first checkpoint was there.
            newest = 0 if found is None else found.step
            self.run.truncate_rows("metrics.jsonl", lambda row: row["step"] <= newest)
        if found is not None:
            restore(self.networks, self.average, self.optimizers, found.tensors)
            self.meter.load(found.tensors["loop"], found.state["meter"], self.group)
            self.threads.load(found.state["threads"])
        return found

    def check_finite(self, step: int, lr: float) -> None:
        """Raise Diverged, on every worker, if a loss term has been NaN or infinite since the epoch began, or a weight
        is now, after `step`."""
        bad = self.meter.first_nonfinite(self.group)
        if bad is None:
            finite = torch.stack([torch.isfinite(p).all() for p in self.networks.parameters()]).all()
            bad = (step, "a weight") if self.group.reduce_flags(int(not finite)) else None
        if bad is not None:
            step, term = bad
            newest = self.group.broadcast_object(self._newest())
            kept = f"the checkpoint of step {newest:,} is kept" if newest else "no checkpoint was written yet"
            raise Diverged(
                f"{term} became NaN or infinite at step {step:,}; training stopped and {kept}. "
                f"Try a lower --lr (now {lr:g}) or --precision fp32 under another --name."
            )

    def _newest(self) -> int:
        with contextlib.suppress(CrayonError):
            self.saver.wait()
        entry = checkpoint.latest(self.run) if self.group.rank == 0 else None
        return 0 if entry is None else entry.step

    def load_best(self, wanted: bool) -> int | None:
        """Put the best checkpoint's weights into the averaged networks, if rank 0 wants that; returns its step, or
        None where they stay as they are."""
        found = None
        if self.group.rank == 0 and wanted:
            entry = checkpoint.best(self.run)
            if entry is not None:
                group = "ema" if self.average.on else "weights"
                found = (entry.step, checkpoint.load(entry, groups=[group]).tensors[group])
        found = self.group.broadcast_object(found)
        if found is None:
            return None
        checkpoint.restore_network(self.average.networks, found[1])
        return found[0]
