"""Population based training (PBT; Jaderberg et al. 2017): settings that change while models train.

The members of a population train in rounds of equally many epochs, each with settings of its own. After a round the
worst quarter go on from copies of models of the best quarter, with their settings changed. All have the same seed, so
the settings of a member's ancestors are a schedule (`Experiment.changes`) that a run of its own repeats bit for bit.

A member's part of a round is a trial of the study, in a folder of its own that begins as a copy of the one before: what
comes next follows from the study alone, so a sweep that was killed goes on as one left in peace. The first member is
the preset: others may copy it, and it copies none unless it fails, so that a sweep can't end worse than the preset.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crayon.config import changes
from crayon.config.names import as_flag, override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput
from crayon.tuning import samplers
from crayon.tuning.records import OVER, Plan, TrialRecord, Turn, lineage, ranked
from crayon.tuning.settings import SweepConfig
from crayon.tuning.space import Dimension, clipped, points, settled
from crayon.tuning.state import SweepState

MEMBERS, ROUNDS = 8, 6
"""Of a population, where it isn't said otherwise."""
SHARE = 4
"""One member of so many copies, and as many are copied."""
FACTORS = (0.8, 1.2)
RESAMPLED = 0.25
"""How often a setting of a copy is drawn anew instead of multiplied by one of `FACTORS`."""
NOT_HERE = ("trials", "sampler", "pruner", "early_stopping", "patience", "confirm", "from_")


def check(config: Experiment, sweep: SweepConfig, space: Mapping[str, Dimension]) -> None:
    """Raise BadInput for what can't be of such a sweep."""
    known = changes.may_change(config)
    for name in NOT_HERE:
        if (value := getattr(sweep, name)) != getattr(SweepConfig, name):
            raise BadInput(f"{as_flag(name, value)[0]} isn't for --objective pbt; leave it out.")
    if config.changes:
        raise BadInput("--changes is what --objective pbt finds; leave it out.")
    if config.max_workers > 1:
        raise BadInput(
            f"--workers {config.workers}: a member of a population trains on one worker; leave it out."
        )
    for name, dimension in space.items():
        if name not in known:
            raise BadInput(
                f"--space.{name}: {name} can't change while a run trains, as --objective pbt wants it; there are "
                f"{', '.join(known)}."
            )
        for low in dimension.choices or dimension.ends:
            try:
                override(config, {name: low, "changes": f"1:{name}={low}"}).check()
            except BadInput as error:
                raise BadInput(
                    f"--space.{name} {dimension}: {str(error).removeprefix('--changes: ')}"
                ) from None
    members, length, every = *sizes(config, sweep), config.eval.every_epochs
    if length % every:
        raise BadInput(
            f"--round-epochs {length}: members are compared after each round, and measured every {every} epochs; give "
            f"a multiple of that, or --eval.every-epochs 1."
        )
    if length >= config.epochs:
        raise BadInput(
            f"--epochs {config.epochs} leaves one round of --round-epochs {length}, after which nobody copies; give "
            "more epochs, or shorter rounds."
        )
    if len(points(sweep.try_, config, space)) >= members:
        raise BadInput(f"--try: beside the preset, a population of {members} has {members - 1} members.")


def sizes(config: Experiment, sweep: SweepConfig) -> tuple[int, int]:
    """(members, epochs of a round)"""
    every = config.eval.every_epochs
    length = sweep.round_epochs or every * math.ceil(config.epochs / (ROUNDS * every))
    return sweep.population or MEMBERS, length


def sized(config: Experiment, sweep: SweepConfig) -> SweepConfig:
    """`sweep` with how many trials such a population has, and drawn as it draws."""
    members, length = sizes(config, sweep)
    trials = members * math.ceil(config.epochs / length)
    asked: dict[str, Any] = {"population": members, "round_epochs": length, "trials": trials}
    return dataclasses.replace(sweep, sampler="random", early_stopping=False, **asked)


def due(
    records: Sequence[TrialRecord], plan: Plan, first: Sequence[Mapping[str, Scalar]], epochs: int
) -> Iterator[tuple[Mapping[str, Scalar], Turn]]:
    """The (settings, part) of the members that the study doesn't have yet of its newest round or, once that is over, of
    the next one. first: the settings of the first members; the others' are drawn."""
    rounds: dict[int, dict[int, TrialRecord]] = {0: {}}
    for trial in records:
        if trial.turn is not None:
            rounds.setdefault(trial.turn.after, {})[trial.turn.member] = trial
    after = max(rounds)
    if len(rounds[after]) == plan.population:
        if any(t.state not in OVER for t in rounds[after].values()):
            return
        after += plan.round_epochs
    before = rounds.get(after - plan.round_epochs, {})
    if after >= epochs or (before and all(t.state == "failed" for t in before.values())):
        return
    until = min(epochs, after + plan.round_epochs)
    warm = after >= float(plan.settings.get("optim.warmup") or 0) * epochs
    for member in (m for m in range(plan.population) if m not in rounds.get(after, ())):
        number = after // plan.round_epochs * plan.population + member
        drawn = samplers.suggest(plan, [], number)
        mine, turn = before.get(member), {"member": member, "after": after, "until": until}
        if mine is None:
            params = first[member] if member < len(first) else drawn
            yield params, Turn(parent=None, settings=params, **turn)
            continue
        parent, params = mine, mine.params
        if mine.state == "failed" or (warm and _falls_behind(mine, before, plan)):
            parent, params = _copied(before, drawn, plan, random.Random(f"{plan.seed}/{number}"))
        yield params, Turn(parent=parent.number, settings=_settings(parent, params, after), **turn)


def _ranked(before: Mapping[int, TrialRecord], plan: Plan) -> tuple[list[TrialRecord], int]:
    """A round's members that are left, the best first, of equals the earlier; and how many copy, or are copied."""
    return ranked(before.values(), plan), max(1, len(before) // SHARE)


def _falls_behind(mine: TrialRecord, before: Mapping[int, TrialRecord], plan: Plan) -> bool:
    order, count = _ranked(before, plan)
    return mine not in order[:count] and mine in [t for t in order if t is not before[0]][-count:]


def _copied(
    before: Mapping[int, TrialRecord], drawn: Mapping[str, Scalar], plan: Plan, rng: random.Random
) -> tuple[TrialRecord, Mapping[str, Scalar]]:
    """One of the best of the round before, and settings near its own."""
    order, count = _ranked(before, plan)
    parent = rng.choice(order[:count])
    params = {
        name: drawn[name] if rng.random() < RESAMPLED else moved(dimension, parent.params[name], rng)
        for name, dimension in plan.space.items()
    }
    return parent, settled(params, plan.space, plan.settings)


def moved(dimension: Dimension, value: Any, rng: random.Random) -> Any:
    """A value near `value`: multiplied by a factor; of whole numbers and lists at least the next one. None beyond the
    dimension's ends."""
    factor = rng.choice(FACTORS)
    way = 1 if factor > 1 else -1
    if dimension.kind == "choice":
        place = dimension.choices.index(value) + way
        return dimension.choices[min(max(place, 0), len(dimension.choices) - 1)]
    new = float(f"{value * factor:.6g}")  # short, as it will be copied
    if dimension.kind == "int":
        new = round(new) if round(new) != value else value + way
    low, high = dimension.ends
    return min(max(new, low), high)


def _settings(parent: TrialRecord, params: Mapping[str, Scalar], after: int) -> dict[str, Scalar]:
    """The settings of a run whose schedule is the parent's until `after` epochs, and `params` from then on."""
    known = dict(parent.settings)
    new = [f"{after}:{name}={value}" for name, value in params.items() if value != parent.params[name]]
    words = [*str(known.pop("changes", "")).split(), *new]
    return known | ({"changes": " ".join(words)} if words else {})


class Population(SweepState):
    """The state while a population trains: a round is entered whole when all of the one before are over."""

    def next_trial(self) -> tuple[int, Mapping[str, Scalar]] | None:
        if found := self.next_unfinished():
            return found
        study, epochs, space = self.study, self.config.epochs, self.study.plan.space
        first = [clipped(self.config, space), *points(self.sweep.try_, self.config, space)]
        for params, turn in [*due(study.records(), study.plan, first, epochs)]:
            study.add(params, epochs, "waiting", turn=turn)
        return self.next_unfinished()

    def report(self, number: int, row: Mapping[str, Any]) -> None:
        """Enter an epoch of a member's own; its run has those of its ancestors, too."""
        *before, trial = lineage(self.study.record(number), self.study.record)
        assert trial.turn is not None
        if row["epoch"] > trial.turn.after:
            own = row["train_seconds"] - sum(t.seconds for t in before)
            super().report(number, {**row, "train_seconds": own})
