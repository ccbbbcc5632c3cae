"""Which epoch's weights are a run's best, by one metric of its validation split. The test split is not looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.training.collectives import Group
from crayon.training.optimizer import Average


class Selection:
    """The best so far. metric, direction: as `Task.monitor` has them; latest: of equals the latest, not the first."""

    def __init__(self, metric: str, direction: str, latest: bool = False):
        self.metric, self.direction, self.latest = f"val/{metric}", direction, latest
        self.best: dict[str, Any] | None = None
        """`metric`, `value`, `epoch` and `step`; None until something was measured."""

    def improves(self, row: Mapping[str, float], epoch: int, step: int) -> bool:
        """Whether an epoch's metrics are better than any before, and so the best from now on. NaN never is."""
        value = row.get(self.metric, math.nan)
        sign = 1 if self.direction == "max" else -1
        if math.isnan(value):
            return False
        if self.best is not None:
            new, old = sign * value, sign * self.best["value"]
            if new < old or (new == old and not self.latest):
                return False
        self.best = {"metric": self.metric, "value": value, "epoch": epoch, "step": step}
        return True

    def restore(
        self, best: dict[str, Any] | None, run: RunFolder, tell: Callable[[str], None], others: bool = False
    ) -> None:
        """Go on with the best that a checkpoint knows of. Where it can't be compared with, or used, here, all is
        selected anew, and why is told. For rank 0, which alone selects. others: the validation images have changed."""
        self.best = best
        if best is None:
            return
        if best["metric"] != self.metric:
            why = f"{best['metric']}, by which it was chosen, can't be compared with {self.metric}"
        elif others:
            why = "it was chosen by other validation images"
        elif not any(entry.best and entry.step == best["step"] for entry in checkpoint.entries(run)):
            why = "it isn't there any more"
        else:
            return
        self.best = None
        tell(f"The best checkpoint so far, of step {best['step']:,}, doesn't count from here on: {why}.")

    def load_best(self, run: RunFolder, average: Average, group: Group) -> int | None:
        """Put the best checkpoint's weights into the averaged networks; returns its step, or None where nothing was
        selected and they stay as they are. Every worker takes part."""
        found = None
        if group.rank == 0 and self.best and (entry := checkpoint.best(run)):
            part = "ema" if average.on else "weights"
            found = entry.step, checkpoint.load(entry, groups=[part]).tensors[part]
        found = group.broadcast_object(found)
        if found is None:
            return None
        checkpoint.restore_network(average.networks, found[1])
        return found[0]
