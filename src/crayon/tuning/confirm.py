"""The last step of a sweep: the preset and the best trials are trained with other seeds, as trials are, but for the
search, which neither learns from them nor stops them early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from crayon.config.settings import Scalar
from crayon.tuning import winner
from crayon.tuning.records import TrialRecord
from crayon.tuning.state import SweepState


@dataclass
class Confirming(SweepState):
    """The state while these runs are under way: all are entered before the first begins."""

    searches: ClassVar[bool] = False
    those: list[TrialRecord] = field(default_factory=list)
    """What is confirmed, the preset first."""

    def __post_init__(self) -> None:
        study, plan = self.study, self.study.plan
        self.those = winner.candidates(study.records(), plan)
        runs, seeds = study.confirmations(), self.sweep.confirm
        for trial, seed in winner.lacking(self.those, runs, plan, seeds):
            study.add(
                {name: trial.params[name] for name in plan.space},
                trial.epochs,
                "waiting",
                (trial.number, seed),
            )

    def unfinished(self) -> list[TrialRecord]:
        runs = winner.asked(self.those, self.study.confirmations(), self.study.plan, self.sweep.confirm)
        return [run for run in runs if run.state in ("running", "waiting")]

    def waiting(self) -> int:
        return 0 if self.stop.is_set() else sum(run.state == "waiting" for run in self.unfinished())

    def next_trial(self) -> tuple[int, Mapping[str, Scalar]] | None:
        return self.next_unfinished()

    def reached_target(self, trial: TrialRecord) -> bool:
        return False

    def ends(self, number: int) -> bool:
        return False

    def look_at_patience(self) -> None:
        """Nothing: it is the search's."""
