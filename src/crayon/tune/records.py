"""What is known of a sweep at one moment, as plain values: what tables, pictures and reports are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crayon.config.settings import Scalar
from crayon.tune.space import Dimension

State = Literal["waiting", "running", "complete", "pruned", "failed"]
"""waiting = interrupted, goes on with the next command; pruned = stopped early because others did better."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial."""

    number: int
    """From 0; trial 0 is the preset."""
    state: State
    params: Mapping[str, Scalar]
    """By dotted name, in the order of the space."""
    value: float | None = None
    """The best validation value it has had, of the sweep's metric."""
    seconds: float | None = None
    """Seconds spent training, evaluation not counted."""
    epoch: int = 0
    """Finished epochs."""
    epochs: int = 0
    """How many its schedule has."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation figures of the evaluation that gave `value`, by their names in metrics.jsonl."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """The sweep's metric by epoch."""

    @property
    def reached(self) -> float:
        """`value`, of a trial that has one, as all of `SweepRecord.finished` do."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep and all its trials so far."""

    name: str
    job: str
    metric: str
    """What trials are compared by, such as val/accuracy."""
    direction: Literal["max", "min"]
    objective: Literal["quality", "pareto"]
    """pareto = quality against training time."""
    space: Mapping[str, Dimension]
    trials: tuple[TrialRecord, ...]
    planned: int
    """How many trials there are to be."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Share of the variation of the value that each dimension explains; empty while that can't be told."""
    beside: tuple[str, ...] = ()
    """Metrics to show beside the value."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the search itself: sampler, early stopping, seed."""

    @property
    def finished(self) -> tuple[TrialRecord, ...]:
        """Trials that are over and have a value, a finite one."""
        over = [t for t in self.trials if t.state in ("complete", "pruned")]
        return tuple(t for t in over if t.value is not None and math.isfinite(t.value))

    def better(self, a: float, b: float) -> bool:
        """Whether the value `a` is better than `b`."""
        return a > b if self.direction == "max" else a < b

    @property
    def best(self) -> TrialRecord | None:
        """The trial with the best value; the first of equals."""
        best = None
        for trial in self.finished:
            if best is None or self.better(trial.reached, best.reached):
                best = trial
        return best

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front of value and seconds, by rising seconds: no trial is both better and faster than these."""
        front: list[TrialRecord] = []
        timed = [t for t in self.finished if t.seconds is not None]
        for trial in sorted(
            timed, key=lambda t: (t.seconds, -t.reached if self.direction == "max" else t.reached, t.number)
        ):
            if not front or self.better(trial.reached, front[-1].reached):
                front.append(trial)
        return tuple(front)
