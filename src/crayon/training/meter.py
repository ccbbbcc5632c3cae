"""Running means of what the loss functions report, without a device synchronisation per step."""

from __future__ import annotations

import torch
from torch import Tensor

from crayon.system import devices
from crayon.training.collectives import Group

NEVER = 2**62
KEPT = 32
"""Steps whose terms are kept as they came before they are summed: a few operations for all, not for each."""


class Meter:
    """Sums every term over the steps of an epoch and remembers the first step at which it was not finite."""

    def __init__(self, device: torch.device):
        self.device = devices.exact(device)
        self.names: list[str] = []
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self._kept: list[tuple[int, dict[str, Tensor]]] = []
        self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self._first_bad = torch.full((len(self.names),), NEVER, dtype=torch.int64, device=self.device)

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """`terms`: detached scalars, the same names in every step; `step` grows by one from call to call."""
        if self.names != list(terms):
            self.names = list(terms)
            self.reset()
        self._kept.append((step, terms))
        self.count += 1
        if len(self._kept) == KEPT:
            self._sum_up()

    def _sum_up(self) -> None:
        """Bring the sums up to date, step after step: when it is done must not show in the last bit."""
        if not self._kept:
            return
        flat = [term.to(self.device, torch.float64) for _, terms in self._kept for term in terms.values()]
        values = torch.stack(flat).view(len(self._kept), -1)
        for row in values:
            self._sums += row
        steps = self._kept[0][0] + torch.arange(len(values), device=self.device)
        bad = torch.where(torch.isfinite(values), NEVER, steps[:, None]).amin(0)
        self._first_bad = torch.minimum(self._first_bad, bad)
        self._kept = []

    @property
    def sums(self) -> Tensor:
        """float64, one per term: this worker's sums over the epoch so far."""
        self._sum_up()
        return self._sums

    def last(self) -> float:
        """Mean of the first term so far."""
        return float(self.sums[0]) / max(1, self.count) if self.names else float("nan")

    def finite(self) -> bool:
        """Whether every value of this worker's since the epoch began was finite."""
        return bool(torch.isfinite(self.sums).all())

    def means(self, group: Group) -> dict[str, float]:
        """Means over the epoch and all workers."""
        total = group.all_reduce_sum(self.sums) / max(1, self.count * group.world_size)
        return dict(zip(self.names, total.tolist(), strict=True))

    def first_nonfinite(self, group: Group) -> tuple[int, str] | None:
        """(step, term) of the earliest value that was NaN or infinite on any worker, or None."""
        if not self.names:
            return None
        self._sum_up()
        first = group.all_reduce_min(self._first_bad)
        step, index = (int(x) for x in first.min(0))
        return None if step == NEVER else (step, self.names[index])

    def state(self, group: Group) -> tuple[dict[str, Tensor], dict]:
        """Every worker's sums, so that a run resumed in mid-epoch reports what the uninterrupted one would have."""
        sums = torch.stack(group.all_gather(self.sums)).cpu()
        return {"sums": sums}, {"names": self.names, "count": self.count}

    def load(self, tensors: dict[str, Tensor], state: dict, group: Group) -> None:
        self.names = state["names"]
        self.reset()
        self.count = state["count"]
        sums = tensors["sums"].to(self.device, torch.float64)
        # With another number of workers than before, all go on from the mean: the epoch's figures stay right.
        self._sums = sums[group.rank].clone() if len(sums) == group.world_size else sums.mean(0)
