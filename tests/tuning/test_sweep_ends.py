"""How a sweep ends: at its target, by a fault of the machine, for another driver."""

from __future__ import annotations

import dataclasses
import errno
import time

import optuna
import pytest
import ray
from sqlalchemy.exc import SQLAlchemyError
from sweep_records import sweep
from sweep_records import trial as trial_record
from test_sweep_outside import ASKED, state, theirs
from test_sweep_study import SPACE, plan

from crayon.errors import BadInput, Diverged, RunFailed
from crayon.launch import memory
from crayon.system.runfolder import RunFolder
from crayon.tuning import best, database, seat
from crayon.tuning.actor import TrialActor
from crayon.tuning.command import go_on
from crayon.tuning.samplers import distribution
from crayon.tuning.seat import DRIVER
from crayon.tuning.study import Study
from crayon.tuning.trials import Memory, StudySearcher, SweepStopper


def row(epoch: int, value: float) -> dict:
    return {
        "row": {"epoch": epoch, "images": 64 * epoch, "val/accuracy": value, "train_seconds": float(epoch)}
    }


def test_the_trial_that_reaches_the_target_is_over_and_the_best(study):
    here = state(study, target=0.8)
    searcher, stopper = StudySearcher(here), SweepStopper(here)
    assert searcher.suggest("a") == {"number": 0, "params": study.record(0).params, "cpus": here.slots.cpus}
    assert not stopper("a", row(1, 0.5))
    assert stopper("a", row(2, 0.81)) and here.stop.is_set()
    searcher.on_trial_complete("a", row(2, 0.81))
    assert (study.record(0).state, study.record(0).value) == ("complete", 0.81)
    assert searcher.suggest("b") == "FINISHED"
    assert "Trial 0 has reached" in state(Study(study.url, "s", plan()), target=0.8).reason
    assert state(study, target=0.9).reason == ""


def test_a_study_past_its_target_starts_nothing(study):
    """Also where the driver was killed before it could note that the trial is over; another program's word is none."""
    study.set_state(0, "running")
    study.report(0, 2, 0.85, 2.0, {})
    theirs(study).enqueue_trial(ASKED)
    study.welcome()
    here = state(study, target=0.85)
    assert here.stop.is_set() and study.record(0).state == "complete"
    assert study.record(1).state == "waiting"
    given = {name: distribution(dimension) for name, dimension in SPACE.items()}
    theirs(study).add_trial(optuna.create_trial(params=ASKED, distributions=given, value=0.99))
    assert not state(study, target=0.9).stop.is_set()


def test_faults_of_the_machine_suspend_trials_and_the_second_in_a_row_the_sweep(study):
    here = state(study, trials=3)
    searcher = StudySearcher(here)
    full = {"done": True, "fault": "checkpoints can't be written: the disk is full"}

    def run(result: dict) -> int:
        number = searcher.suggest("t")["number"]
        if "row" in result:
            SweepStopper(here)("t", result)
        searcher.on_trial_complete("t", result)
        return number

    assert run(full) == 0 and study.record(0).state == "waiting" and not here.stop.is_set()
    assert run(row(8, 0.9)) == 0, "the preset is tried again"
    assert run(full) == 1 and not here.stop.is_set()
    assert run(full) == 1 and here.stop.is_set()
    assert study.record(1).state == "waiting" and len(study.records()) == 2
    assert "the disk is full" in here.fault and "the same command goes on" in here.fault
    again = state(Study(study.url, "s", plan()), trials=3)
    assert StudySearcher(again).suggest("t")["number"] == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RunFailed("The disk is full."), "fault"),
        (OSError(errno.EIO, "I/O"), "fault"),
        (Diverged("The loss is NaN."), "failed"),
        (BadInput("The batch is larger than the data."), "failed"),
        (ValueError("shapes"), "failed"),
    ],
)
def test_only_faults_of_the_configuration_fail_a_trial(tmp_path, error, kind):
    class Broken:
        def train_epoch(self):
            raise error

    actor = object.__new__(TrialActor)
    actor.training, actor.run = Broken(), RunFolder(tmp_path, "0000")
    actor.run.create()
    assert kind in actor.step()


def test_the_driver_s_place_is_kept_whatever_it_does_and_left_only_by_its_own(study, monkeypatch):
    """Another machine, which has taken over, isn't put out by the first one's end."""
    monkeypatch.setattr(seat, "BEAT_SECONDS", 0.01)
    note = study.study.user_attrs[DRIVER]
    study.seat.keep()
    until = time.monotonic() + 20
    while study.study.user_attrs[DRIVER]["at"] == note["at"] and time.monotonic() < until:
        time.sleep(0.01)
    assert study.study.user_attrs[DRIVER]["at"] > note["at"]
    other = note | {"host": "elsewhere", "pid": 1, "at": time.time()}
    while study.seat._thread.is_alive() and time.monotonic() < until:  # two may write at the same moment
        theirs(study).set_user_attr(DRIVER, other)
        study.seat._thread.join(0.2)
    with pytest.raises(BadInput, match="is being run by process 1 on elsewhere"):
        study.seat.check()
    study.close()
    assert study.study.user_attrs[DRIVER] == other


def test_a_full_disk_of_the_study_is_no_bad_input():
    for text in ("database or disk is full", "could not extend file: No space left on device"):
        with (
            pytest.raises(RunFailed, match="the disk is full; the same command goes on"),
            database.errors("sqlite:///a"),
        ):
            raise SQLAlchemyError(text)


def test_the_looks_at_the_test_split_and_the_places_of_trials_are_counted(study):
    assert study.look(3) == [3] == study.look(3)
    assert study.look(5) == [3, 5]
    again = Study(study.url, "s", plan())
    assert again.look(5) == [3, 5]
    assert again.beside("/a") == [] == again.beside("/a") and again.beside("/b") == ["/a"]


def test_a_sweep_ends_when_much_was_spent_since_its_best_trial(study):
    """Of a preset of eight epochs: one that was stopped after four costs half."""
    here = state(study, patience=1.5)
    searcher = StudySearcher(here)
    for trial, (epoch, value) in enumerate(((8, 0.5), (4, 0.6), (4, 0.55), (0, None), (8, 0.6))):
        assert searcher.suggest("t")["number"] == trial
        if value:
            study.report(trial, epoch, value, 1.0, {})
        assert not here.stop.is_set()
        searcher.on_trial_complete("t", {})
    text = "The 12 epochs since trial 1, as many as 1.5 presets have, brought nothing better."
    assert here.reason == text == state(Study(study.url, "s", plan()), patience=1.5).reason
    assert not state(study, patience=1.6).stop.is_set()
    assert here.limit == "patience"


def test_what_is_told_to_go_on_with_is_what_has_stopped_the_sweep():
    """Not more trials, where there are some left."""
    few = sweep(trial_record(0))
    lowest = dataclasses.replace(few.plan, direction="min")
    assert go_on(few) == "go on" and go_on(few, "patience") == "go on, raising --patience"
    assert go_on(dataclasses.replace(few, planned=1)) == "go on, raising --trials"
    assert go_on(few, "target") == "go on, raising --target"
    assert go_on(dataclasses.replace(few, plan=lowest), "target") == "go on, lowering --target"


@pytest.mark.parametrize("key", ["crayon:places", "crayon:looks", "crayon:priors"])
def test_what_crayon_cant_have_written_is_told(study, key):
    study.study.set_user_attr(key, {"a": [{"b": 1}]} if key == "crayon:priors" else 5)
    with pytest.raises(BadInput, match="holds what crayon can't have written"):
        Study(study.url, "s", plan())


def test_a_trial_that_is_lost_for_want_of_memory_says_what_needs_less(study, monkeypatch):
    """By the kernel's count of processes that it has killed, and by Ray's word."""
    said = []
    here = state(study)
    here.emit = said.append
    StudySearcher(here).suggest("t")
    here.end(0, {}, error=True)
    assert "memory" not in said[0]
    monkeypatch.setattr(memory, "memory_kills", lambda: 1 << 40)
    here.end(0, {}, error=True)
    assert "want of memory" in said[1] and "--concurrent" in said[1]

    class Lost:
        def __init__(self, why):
            self.get_error = lambda: why

    for why in ("The actor died: SIGKILL by OOM killer.", None, "the node running low on memory"):
        Memory(said.append).on_trial_error(0, [], Lost(why))
    assert len(said) == 3 and "--concurrent" in said[2]


def test_a_measurement_whose_process_dies_is_a_sentence():
    text = best._lost(3, ray.exceptions.WorkerCrashedError())
    assert text.startswith("The model of trial 3 was not measured: its process died. ")
    assert "ran out of memory" in best._lost(
        3, ray.exceptions.OutOfMemoryError("the node running low on memory")
    )
