"""What a sweep searches, and what is known of its trials at one moment, as plain values: what the study keeps, and what
tables, pictures and reports are made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crayon.config.names import ROOT, differences
from crayon.config.settings import Scalar
from crayon.errors import BadInput
from crayon.tuning.settings import Pruner, Sampler
from crayon.tuning.space import Dimension

State = Literal["waiting", "running", "complete", "pruned", "failed"]
"""waiting = interrupted, goes on with the next command; pruned = stopped early because others did better."""
OVER: tuple[State, ...] = ("complete", "pruned", "failed")
STATES: tuple[State, ...] = (*OVER, "running", "waiting")
ABSENT = {"pruner": "asha", "population": 0, "round_epochs": 0}
"""What a plan was before there were these."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study is a study of. A study is gone on with only by a command that agrees."""

    settings: Mapping[str, Scalar]
    """Of all trials, by dotted name, but for those searched (crayon.config.names.identity)."""
    before: Mapping[str, Scalar] = field(default_factory=dict)
    """What settings were that a study of an earlier version doesn't have yet (crayon.config.names.with_defaults)."""
    space: Mapping[str, Dimension]
    metric: str
    """What trials are compared by, such as val/accuracy."""
    direction: Literal["max", "min"]
    objective: Literal["quality", "pareto", "pbt"]
    """pareto = quality against training time; pbt = population based training."""
    sampler: Sampler
    early_stopping: bool
    pruner: Pruner = "asha"
    seed: int
    population: int = 0
    """Members of a population (crayon.tuning.population); 0 = there is none, nor `round_epochs`."""
    round_epochs: int = 0
    """After how many epochs its members are compared."""

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Of the objectives, as Optuna calls them."""
        of_value: Literal["maximize", "minimize"] = "maximize" if self.direction == "max" else "minimize"
        return [of_value, "minimize"] if self.objective == "pareto" else [of_value]

    def better(self, a: float, b: float) -> bool:
        """Whether the value `a` is better than `b`."""
        return a > b if self.direction == "max" else a < b

    def best(self, values: Iterable[float]) -> float | None:
        """The best of `values`; None where there are none."""
        return (max if self.direction == "max" else min)([*values], default=None)

    def as_json(self) -> dict[str, Any]:
        """What the study keeps of it."""
        content = dataclasses.asdict(self)
        del content["before"]
        own = {k: v for k, v in self.settings.items() if k not in {*self.space, "seed"}}
        return json.loads(json.dumps({**content, "settings": own}))

    def check(self, known: Mapping[str, Any], name: str) -> None:
        """Raise BadInput unless `known`, the plan that the study called `name` has (`as_json`), is this one."""
        wanted = self.as_json()
        there_now = {key: value for key, value in self.before.items() if key in wanted["settings"]}
        settings = {key: value for key, value in known["settings"].items() if key != ROOT}
        before, now = _flat({**ABSENT, **known, "settings": there_now | settings}), _flat(wanted)
        absent = "not there"
        different = differences(before, now, absent)
        if not different:
            return
        different.sort(key=lambda key: (key not in ("job", "preset"), not key.startswith("space."), key))
        words = [f"{key} was {before.get(key, absent)}, now {now.get(key, absent)}" for key in different[:3]]
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise BadInput(
            f"The sweep {name!r} was started otherwise ({'; '.join(words)}{more}); give the same settings to go on "
            "with it, or choose another --name."
        )


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    space = {f"space.{name}": str(Dimension(**dimension)) for name, dimension in plan["space"].items()}
    return {k: v for k, v in plan.items() if k not in ("settings", "space")} | plan["settings"] | space


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A member's part of a round of population based training."""

    member: int
    """From 0; member 0 is the preset."""
    parent: int | None
    """The trial that it goes on from, of the round before."""
    after: int
    """Epochs that were trained before: its ancestors'."""
    until: int
    """Epochs after which it ends."""
    settings: Mapping[str, Scalar]
    """Of a run that repeats it from the first epoch on: its first ancestor's and, as `changes`, all later ones."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial."""

    number: int
    """From 0; trial 0 is the preset."""
    state: State
    params: Mapping[str, Scalar]
    """By dotted name, in the order of the space."""
    value: float | None = None
    """The best validation value it has had, of the sweep's metric; always finite."""
    seconds: float = 0.0
    """Spent training, evaluation not counted."""
    epoch: int = 0
    """Finished epochs."""
    epochs: int = 0
    """How many its schedule has."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation figures of the evaluation that gave `value`, by their names in metrics.jsonl."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """The sweep's metric by epoch."""
    outside: bool = False
    """Finished by another program, whose word its figures are: the search learns from it, but there is no model."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What something is required of (crayon.tuning.requirements), as it was found before the trial."""
    refused: tuple[Mapping[str, Any], ...] = ()
    """`params` and `figures` of settings that were drawn for this trial before, and don't keep to what is required."""
    turn: Turn | None = None
    """Of a trial that is a part of population based training: its `curve`, `value` and `seconds` are of this part
    alone, `params` what holds in it."""
    confirms: int | None = None
    """Of a run that isn't the search's, but confirms one of its trials with another seed, which is among `params`: that
    trial's number."""

    @property
    def whole(self) -> bool:
        """Whether it ran to the end of its schedule, neither stopped early nor at the sweep's target."""
        return self.state == "complete" and self.epoch >= self.epochs

    @property
    def reached(self) -> float:
        """`value`, of a trial that has one, as all of `SweepRecord.ranked` do."""
        assert self.value is not None
        return self.value

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """What repeats it from the first epoch on."""
        return self.turn.settings if self.turn else self.params

    @property
    def part(self) -> tuple[int, int]:
        """(finished epochs, all epochs) of the trial's own."""
        before, until = (self.turn.after, self.turn.until) if self.turn else (0, self.epochs)
        return max(0, self.epoch - before), until - before


def lineage(trial: TrialRecord, known: Callable[[int], TrialRecord]) -> list[TrialRecord]:
    """A trial after those that it goes on from, the first of them first. known: trials by their numbers."""
    found = [trial]
    while (turn := found[0].turn) and turn.parent is not None:
        found.insert(0, known(turn.parent))
    return found


def ranked(trials: Iterable[TrialRecord], plan: Plan) -> list[TrialRecord]:
    """The sweep's own trials that ended, without failing, with a value: the best first, of equals the earlier."""
    sign = -1 if plan.direction == "max" else 1
    ended = [t for t in trials if t.state in ("complete", "pruned") and not t.outside]
    compared = [t for t in ended if t.value is not None]
    return sorted(compared, key=lambda t: (sign * t.reached, t.number))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A trial against the preset, by runs of both with other seeds (crayon.tuning.winner)."""

    trial: int
    seeds: int
    """With which both ended."""
    failed: int
    """Runs of the trial that failed: it can't win."""
    value: float | None
    """The mean of the trial's values with these seeds."""
    preset: float | None
    """The mean of the preset's."""
    difference: float | None
    """Of these means, positive where the trial is better."""
    margin: float | None
    """Half of the interval of `difference`; None where its values don't tell it."""

    @property
    def better(self) -> bool:
        """Whether the trial is told apart from the preset, to the better side."""
        if self.difference is None or self.margin is None:
            return False
        return not self.failed and self.difference > self.margin


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which trial a sweep ends with, by runs with other seeds."""

    winner: int
    """The preset's number where no trial is told apart from it."""
    seeds: int
    """As asked for."""
    missing: int
    """Runs that are still to end."""
    comparisons: tuple[Comparison, ...]
    """The trials with the best values first."""


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep and all its trials so far."""

    name: str
    job: str
    about: Mapping[str, str] = field(default_factory=dict)
    """What is searched: preset and data."""
    plan: Plan
    trials: tuple[TrialRecord, ...]
    """By number, so the preset is the first."""
    planned: int
    """How many trials there are to be."""
    ends: Mapping[int, float] = field(default_factory=dict)
    """By the numbers of trials, the value at the end of their schedules; foretold, of those that were stopped early."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Share of the variation of `ends` that each dimension explains, the largest first; empty while that can't be told
    (crayon.tuning.effects)."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Half of the 95 % interval of each of `importances`."""
    basis: str = ""
    """Which trials `importances` are of."""
    beside: tuple[str, ...] = ()
    """Metrics to show beside the value."""
    notes: tuple[str, ...] = ()
    """Sentences that a person should know."""
    confirming: tuple[TrialRecord, ...] = ()
    """Runs of the preset and of good trials with other seeds, by number; none of `trials`."""
    verdict: Verdict | None = None
    """Once the search is over, what `confirming` says so far."""

    @property
    def settings(self) -> dict[str, Any]:
        """How the search was asked for."""
        if self.plan.population:
            sizes = {"population": self.plan.population, "epochs of a round": self.plan.round_epochs}
            return {**self.about, **sizes, "seed": self.plan.seed}
        early = "on" if self.plan.early_stopping else "off"
        return {**self.about, "sampler": self.plan.sampler, "early stopping": early, "seed": self.plan.seed}

    @property
    def ranked(self) -> list[TrialRecord]:
        """As `ranked` has them."""
        return ranked(self.trials, self.plan)

    def end(self, trial: TrialRecord) -> float | None:
        """The value at the end of a trial's schedule; None where it can't be told."""
        return self.ends.get(trial.number, trial.value if trial.whole else None)

    @property
    def best(self) -> TrialRecord | None:
        """The trial with the best value; the one that the verdict names, where there is one."""
        if self.verdict is not None:
            return next(t for t in self.trials if t.number == self.verdict.winner)
        return self.ranked[0] if self.ranked else None

    @property
    def preset(self) -> TrialRecord | None:
        """The first trial; of a population the best that is the preset to its end."""
        same = [t for t in self.ranked if t.turn and t.settings == self.trials[0].settings]
        return next(iter([*same, *self.trials]), None)

    @property
    def line(self) -> list[TrialRecord]:
        """The best trial after those that it goes on from."""
        return (
            lineage(self.best, lambda n: next(t for t in self.trials if t.number == n)) if self.best else []
        )

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front of value and seconds, by rising seconds: no trial is both better and faster than these.
        Of trials that ran to their end: nobody gets a whole schedule for the seconds of a trial that was stopped."""
        front: list[TrialRecord] = []
        for trial in sorted((t for t in self.ranked if t.state == "complete"), key=lambda t: t.seconds):
            if not front or self.plan.better(trial.reached, front[-1].reached):
                front.append(trial)
        return front
