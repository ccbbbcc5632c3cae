"""Trials that other programs have entered in a study."""

from __future__ import annotations

from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from test_sweep_study import CONFIG, SPACE, plan

from crayon.errors import BadInput
from crayon.tuning.records import SweepRecord
from crayon.tuning.settings import SweepConfig
from crayon.tuning.state import SweepState
from crayon.tuning.study import Study

ASKED = {"epochs": 6, "lr": 0.0111, "beta1": 0.75, "model.width": 8}


def state(study: Study, trials: int = 20, **settings) -> SweepState:
    slots = SimpleNamespace(count=1, cpus=1)
    told: list[str] = []
    made = SweepState(CONFIG, SweepConfig(trials=trials, **settings), study, slots, told.append, None)
    made.told = told
    return made


def theirs(study: Study) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.load_study(study_name="s", storage=study.url, sampler=sampler)


def objective(trial: optuna.Trial) -> float:
    trial.suggest_int("epochs", 5, 9)
    trial.suggest_float("beta1", 0.8, 0.9)
    trial.suggest_categorical("model.width", (8, 16, 32))
    return 0.9 + trial.suggest_float("lr", 1e-3, 1e-2, log=True)


def test_enqueued_trials_are_run_as_asked_also_beyond_the_sweep_s_end(study):
    theirs(study).enqueue_trial(ASKED)
    theirs(study).enqueue_trial({"lr": 0.006})
    here = state(study, trials=1)
    assert here.next_trial()[0] == 0
    assert here.next_trial() == (1, ASKED)
    number, params = here.next_trial()
    assert number == 2 and params["lr"] == 0.006 and params.keys() == SPACE.keys()
    assert here.next_trial() is None
    study.report(1, 1, 0.9, 1.0, {})
    study.finish(1, "complete")
    assert [r.epochs for r in study.records()] == [8, 6, params["epochs"]]
    again = Study(study.url, "s", plan())
    assert again.welcome() == [] and again.records() == study.records()
    assert theirs(study).trials[1].params == ASKED


def test_the_search_learns_from_finished_trials_and_never_chooses_them(study):
    study.set_state(0, "running")
    study.report(0, 1, 0.5, 1.0, {})
    study.finish(0, "complete")
    theirs(study).optimize(objective, 8)
    theirs(study).add_trial(optuna.create_trial(state=TrialState.RUNNING))  # still under way
    assert len(study.welcome()) == 8 and study.welcome() == []
    assert [r.outside for r in study.records()] == [False] + 8 * [True]
    record = SweepRecord(name="s", job="mnist", plan=study.plan, trials=study.records(), planned=20)
    assert record.best.number == 0 and record.front == [record.trials[0]]
    again = Study(study.url, "s", plan())
    before = again.suggest()
    again.welcome()
    assert again.suggest() != before and again.suggest() == study.suggest()
    assert study.add(again.suggest(), 8) == 10
    assert Study(study.url, "s", plan()).unfinished()


def test_odd_trials_are_told_and_left_out(study):
    odd = {
        "dropout isn't searched": {"dropout": 0.5},
        "lr 5.0 isn't in 0.0005..0.02:log": {"lr": 5.0},
        "lr fast isn't in": {"lr": "fast"},
        "epochs 6.5 isn't in 3..12": {"epochs": 6.5},
        "model.width 9 isn't in 8,16,32": {"model.width": 9},
    }
    other = theirs(study)
    for params in odd.values():
        other.enqueue_trial(params)
    told = study.welcome()
    for number, (text, why) in enumerate(zip(told, odd, strict=True), 1):
        assert text.startswith(f"Trial {number}, of another program, is left out: ") and why in text
    assert study.welcome() == [] and len(study.records()) == 1
    assert study.add(study.suggest(), 8) == 6


def test_finished_trials_without_a_use_are_left_out(study):
    full = dict(zip(SPACE, (6, 0.004, 0.9, 8), strict=True))
    for params, value in (({"lr": 0.004}, 0.5), (full, float("inf"))):
        given = {name: study._distributions[name] for name in params}
        theirs(study).add_trial(optuna.create_trial(params=params, distributions=given, value=value))
    theirs(study).add_trial(optuna.create_trial(state=TrialState.FAIL))
    first, second, third = study.welcome()
    assert "it has no epochs and no beta1 and no model.width" in first
    assert "isn't a finite number" in second and "it has no" in third
    assert len(study.records()) == 1


def test_a_waiting_trial_that_another_program_runs_is_over(study):
    """`optimize` takes what waits, ours too."""
    here = state(study)
    other = theirs(study)
    other.tell(other.ask(), 0.9)
    number, _ = here.next_trial()
    assert number == 1 and "Trial 0 was ended by another program." in here.told
    for record in (study.record(0), Study(study.url, "s", plan()).record(0)):
        assert (record.state, record.value, record.outside) == ("complete", 0.9, True)


def test_a_waiting_trial_that_another_program_ends_without_a_value_has_failed(study):
    other, here = theirs(study), state(study)
    other.tell(other.ask(), state=TrialState.PRUNED)
    other.enqueue_trial(ASKED)
    study.welcome()
    other.tell(other.ask(), float("inf"))
    number, _ = here.next_trial()
    assert number == 2 and study.suggest()
    for again in (study, Study(study.url, "s", plan())):
        ended = [again.record(0), again.record(1)]
        assert [(r.state, r.value) for r in ended] == 2 * [("failed", None)] and again.suggest()


def test_a_running_trial_that_another_program_ends_is_told(study):
    here = state(study)
    here.next_trial()
    theirs(study).tell(0, 0.7)
    with pytest.raises(BadInput, match="Another program ended a trial that this one runs"):
        here.report(0, {"epoch": 1, "images": 64, "val/accuracy": 0.8, "train_seconds": 1.0})
    assert Study(study.url, "s", plan()).record(0).outside
