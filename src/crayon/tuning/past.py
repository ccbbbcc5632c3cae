"""A study in memory that begins with trials which are only read: Optuna copies each one that is added, and a suggestion
would take the longer the more trials there are."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


class Past(InMemoryStorage):
    """For one study, which begins with `trials`, numbered from 0."""

    def __init__(self, trials: Sequence[FrozenTrial]):
        super().__init__()
        self.trials = [_numbered(trial, number) for number, trial in enumerate(trials)]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One that was added."""
        trial = super().get_trial(trial_id)
        return _numbered(trial, trial.number + len(self.trials))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those of the past, never copied, and those that were added."""
        before = [trial for trial in self.trials if states is None or trial.state in states]
        added = super().get_all_trials(study_id, deepcopy, states)
        return before + [_numbered(trial, trial.number + len(self.trials)) for trial in added]


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    trial = copy.copy(trial)
    trial.number = number
    return trial
