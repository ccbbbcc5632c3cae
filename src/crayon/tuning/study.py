"""The record of a sweep: an Optuna study, in a file of its own or in a database that a team shares.

Everything that decides what comes next is in the study, so a sweep goes on after a kill as if nothing had happened: a
trial enters the study in one transaction, with all its parameters, and what to try next follows from those before it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from crayon.config.settings import Scalar
from crayon.errors import BadInput
from crayon.system.secrets import shown
from crayon.tuning import outside, prior, samplers
from crayon.tuning.database import errors, open_storage
from crayon.tuning.records import OVER, Plan, TrialRecord, Turn
from crayon.tuning.requirements import Requirements
from crayon.tuning.samplers import OPTUNA_STATES
from crayon.tuning.seat import Seat

IDENTITY = "crayon:sweep"
IMAGES = "crayon:images"
PLACES = "crayon:places"
LOOKS = "crayon:looks"
PRIORS = "crayon:priors"


class Study:
    """The trials of a sweep. One driver at a time runs it; other programs may read, and enter trials (`welcome`).

    Raises BadInput where the storage can't be reached, is locked, is no study, or is the study of another sweep.
    """

    def __init__(self, url: str, name: str, plan: Plan):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.url, self.plan = url, plan
        self._distributions = {n: samplers.distribution(d) for n, d in plan.space.items()}
        try:
            self._open(url, name, plan)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise BadInput(
                f"The study {name!r} in {shown(url)} holds what crayon can't have written ({type(error).__name__}); "
                "put a copy in its place, or choose another --name."
            ) from None

    def _open(self, url: str, name: str, plan: Plan) -> None:
        with errors(self.url):
            self.storage = open_storage(url)
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, directions=plan.directions, load_if_exists=True
            )
            trials, known = self.study.get_trials(deepcopy=False), self.study.user_attrs.get(IDENTITY)
            if known is not None:
                plan.check(known, name)
            elif trials:
                raise BadInput(
                    f"The study {name!r} in {shown(url)} was not made by crayon; choose another --name."
                )
            else:
                self.study.set_user_attr(IDENTITY, plan.as_json())
            self.seat = Seat(self.study, url)
        own = [t for t in trials if outside.EPOCHS in t.user_attrs]
        self._ids = {t.number: t._trial_id for t in own}
        # No other driver writes, so what is read once of these needn't be read again.
        self._records = {t.number: outside.record(t, plan) for t in own}
        kept = self.study.user_attrs
        self._places, self._looks = (
            [str(v) for v in kept.get(PLACES, ())],
            [int(v) for v in kept.get(LOOKS, ())],
        )
        self._priors: dict[str, list[dict[str, Any]]] = kept.get(PRIORS, {})
        self._evidence()
        self.required = Requirements(())
        self.refused: list[tuple[dict[str, Scalar], str]] = []
        """What `suggest` has drawn in vain for the trial that is added next, and why."""
        self._odd: set[int] = set()
        """Numbers of other programs' trials that were left out."""
        self._entered = len(trials)
        """How many trials there are, those left out among them."""

    @property
    def images(self) -> list[Mapping[str, Any]]:
        """The images that trials have learned from (crayon.training.data_history); empty until it is set."""
        with errors(self.url):
            return list(self.study.user_attrs.get(IMAGES, ()))

    @images.setter
    def images(self, history: list[Mapping[str, Any]]) -> None:
        with errors(self.url):
            self.study.set_user_attr(IMAGES, history)

    def beside(self, place: str) -> list[str]:
        """The other places where the sweep's trials may lie; `place`, this machine's or a store's, is noted."""
        if place not in self._places:
            self._places.append(place)
            with errors(self.url):
                self.study.set_user_attr(PLACES, self._places)
        return [other for other in self._places if other != place]

    def look(self, number: int) -> list[int]:
        """Note that the test split is looked at for trial `number`. Returns all that it was looked at for."""
        if number not in self._looks:
            self._looks.append(number)
            with errors(self.url):
                self.study.set_user_attr(LOOKS, self._looks)
        return self._looks

    def close(self) -> None:
        """This process no longer runs the sweep."""
        self.seat.leave()

    # Reading

    def records(self) -> tuple[TrialRecord, ...]:
        """The search's trials, by number."""
        return tuple(r for _, r in sorted(self._records.items()) if r.confirms is None)

    def confirmations(self) -> tuple[TrialRecord, ...]:
        """The runs that confirm trials, by number: the search doesn't learn from them, nor count them."""
        return tuple(r for _, r in sorted(self._records.items()) if r.confirms is not None)

    def record(self, number: int) -> TrialRecord:
        """Of one trial."""
        return self._records[number]

    def unfinished(self) -> list[TrialRecord]:
        """Trials that a sweep which was interrupted or killed has left: they go on from their checkpoints."""
        return [r for r in self.records() if r.state in ("running", "waiting")]

    # Writing

    def add(
        self,
        params: Mapping[str, Scalar],
        epochs: int,
        state: Literal["running", "waiting"] = "running",
        confirms: tuple[int, int] | None = None,
        turn: Turn | None = None,
    ) -> int:
        """Enter a trial with these parameters, where it has a `turn` as a member's part of a round; or, of `confirms` =
        (trial, seed), a run that confirms that trial. Returns its number."""
        given: dict[str, Any] = {"params": dict(params), "distributions": self._distributions}
        refused = [{"params": p, "figures": self.required.figures(p)} for p, _ in self.refused]
        notes = {
            outside.CONFIRMS: confirms,
            outside.TURN: turn and dataclasses.asdict(turn),
            outside.FIGURES: self.required.figures(params),
            outside.REFUSED: refused,
        }
        attributes = {outside.EPOCHS: epochs} | {name: note for name, note in notes.items() if note}
        self.refused = []
        trial = create_trial(state=OPTUNA_STATES[state], user_attrs=attributes, **given)
        with errors(self.url):
            made = self.storage.create_new_trial(self.study._study_id, template_trial=trial)
            trial = self.storage.get_trial(made)
        self._ids[trial.number] = made
        self._records[trial.number] = outside.record(trial, self.plan)
        self._entered = trial.number + 1
        return trial.number

    def suggest(self) -> dict[str, Scalar]:
        """Parameters for the next trial; empty where there is none."""
        self.refused = []

        def objection(params: Mapping[str, Scalar]) -> str:
            if why := self.required.objection(params):
                self.refused.append((dict(params), why))
            return why

        # A search made longer goes on as if they weren't there.
        entered = self._entered - len(self.confirmations())
        return samplers.suggest(self.plan, self._evidence(), entered, objection=objection)

    def _evidence(self) -> list[TrialRecord]:
        own = self.records()
        kept = [trial for trials in self._priors.values() for trial in trials]
        refused = [samplers.refused(point["params"]) for trial in own for point in trial.refused]
        return [*prior.evidence(kept, own, self.plan), *refused, *own]

    def require(self, required: Requirements) -> None:
        """Have trials keep to this from now on; what was found before stays."""
        self.required = required
        for trial in self.records():
            for point in ({"params": trial.params, "figures": trial.figures}, *trial.refused):
                required.know(point["params"], point["figures"])

    def begin_with(self, source: str) -> str:
        """Have the search learn from what `source` has (crayon.tuning.prior), from now on. Returns a sentence on what
        that is, "" where it is known."""
        if source in self._priors:
            return ""
        found = prior.read(source, self.plan)
        # It runs here, too: what is known may count too little to lead the first suggestions, and its model isn't here.
        best = next((t["params"] for t in found if not self.required.objection(t["params"])), None)
        first = ""
        if best and best not in [dict(trial.params) for trial in self.records()]:
            epochs = int(best.get("epochs") or self.plan.settings.get("epochs") or 0)
            first = f" Trial {self.add(best, epochs, 'waiting')} has the settings of the best."
        self._priors[source] = found
        with errors(self.url):
            self.study.set_user_attr(PRIORS, self._priors)
        differ = sum(not trial["same"] for trial in found)
        more = f", {differ} of them with other data or settings" if differ else ""
        more += f": one in {prior.SHARE} of these counts" if differ else ""
        count = f"{len(found)} trial{'s' if len(found) > 1 else ''}"
        return f"The search begins with {count} of {shown(source)}{more}.{first}"

    def welcome(self) -> list[str]:
        """Take in what other programs have entered: trials that they enqueued wait to be run, and the search learns
        from those that they finished. Returns sentences on what is new, and on what is left out and why."""
        with errors(self.url):
            trials = self.study.get_trials(deepcopy=False)
        self._entered = len(trials)
        told = []
        for trial in trials:
            known = self._records.get(trial.number)
            if known is not None and known.state not in OVER and trial.state.is_finished():
                told.append(f"Trial {trial.number} was ended by another program.")
                self._records[trial.number] = outside.record(trial, self.plan)
            if known is not None or trial.state == TrialState.RUNNING or trial.number in self._odd:
                continue
            why = outside.objection(trial, self.plan)
            if not why and trial.state == TrialState.WAITING:
                why = self._claim(trial)
            if why:
                self._odd.add(trial.number)
                told.append(f"Trial {trial.number}, of another program, is left out: {why}.")
            elif trial.state == TrialState.WAITING:
                told.append(f"Trial {trial.number} was enqueued by another program, and is run as asked.")
            else:
                self._records[trial.number] = outside.finished(trial, self.plan)
                told.append(
                    f"Trial {trial.number} was finished by another program: the search learns from it, but can't "
                    "choose it, as there is no model."
                )
        return told

    def _claim(self, trial: FrozenTrial) -> str:
        """Make an enqueued trial one of the sweep's own, the sampler adding what it leaves open, or say why not."""
        asked = outside.taken(outside.asked(trial), self.plan)
        params = samplers.suggest(self.plan, self._evidence(), trial.number, asked)
        if why := self.required.objection(params):
            return why
        number = self._ids[trial.number] = trial._trial_id
        with errors(self.url):
            for name in params.keys() - trial.params.keys():
                given = self._distributions[name]
                self.storage.set_trial_param(number, name, given.to_internal_repr(params[name]), given)
            epochs = int(params.get("epochs") or self.plan.settings.get("epochs") or 0)
            self.storage.set_trial_user_attr(number, outside.FIGURES, self.required.figures(params))
            self.storage.set_trial_user_attr(number, outside.EPOCHS, epochs)
            trial = self.storage.get_trial(number)
        self._records[trial.number] = outside.record(trial, self.plan)
        return ""

    def report(
        self, number: int, epoch: int, value: float | None, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """What trial `number` has reached after `epoch` epochs, `seconds` of them spent training."""
        before, curve = self._records[number], dict(self._records[number].curve)
        with errors(self.url):
            if value is not None and math.isfinite(value):
                self.storage.set_trial_intermediate_value(self._ids[number], epoch, value)
                curve[epoch] = value
            best = self.plan.best(curve.values())
            kept = dict(before.metrics if best == before.value else metrics)
            progress = {"epoch": epoch, "seconds": seconds, "metrics": kept}
            self.storage.set_trial_user_attr(self._ids[number], "progress", progress)
        self._change(number, **progress, curve=curve, value=best)

    def finish(self, number: int, state: Literal["complete", "pruned", "failed"], why: str = "") -> None:
        """End trial `number`. Its value is the best it reported; without any it has failed."""
        record = self._records[number]
        state = "failed" if record.value is None else state
        # Optuna's convention is one value for a pruned trial of one objective, and none for one of several.
        single, values = self.plan.objective != "pareto", None
        if state == "complete" or (state == "pruned" and single):
            values = [record.reached] if single else [record.reached, record.seconds]
        with errors(self.url):
            if why:
                self.storage.set_trial_user_attr(self._ids[number], "why", why)
            self.storage.set_trial_state_values(self._ids[number], OPTUNA_STATES[state], values)
        self._change(number, state=state)

    def set_state(self, number: int, state: Literal["running", "waiting"]) -> None:
        """Trial `number` goes on, or was interrupted and waits: none stays "running" when nothing runs."""
        with errors(self.url):
            self.storage.set_trial_state_values(self._ids[number], OPTUNA_STATES[state])
        self._change(number, state=state)

    def _change(self, number: int, **changes: Any) -> None:
        self._records[number] = dataclasses.replace(self._records[number], **changes)


def open_study(url: str, name: str) -> optuna.Study:
    """Optuna's study of a sweep, to look at. Raises BadInput where it can't be reached."""
    with errors(url):
        return optuna.load_study(study_name=name, storage=open_storage(url))
