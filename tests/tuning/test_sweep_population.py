"""Population based training: who copies whom, what it is told of, and that the winner's schedule repeats it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shlex
from types import SimpleNamespace

import pytest
import torch
from helpers import crayon, kill_with_family, rows, tiny, trainer
from sweep_records import plan as any_plan
from sweep_records import sweep as record_of
from test_launch import start
from test_sweep import BASE, rows_of, wait_for
from test_sweep_study import quality
from test_trainer import final, same, without_clocks

from crayon.config.names import identity, override
from crayon.errors import BadInput
from crayon.system.runfolder import RunFolder
from crayon.tasks import jobs
from crayon.training import checkpoint
from crayon.tuning import driver, plots, population
from crayon.tuning.records import OVER
from crayon.tuning.settings import SweepConfig
from crayon.tuning.space import Dimension, of_job
from crayon.tuning.study import Study

ASKED = {"augment.shift": "0..3", "augment.cutout": "0,4,8"}
CONFIG, SPACE = of_job(tiny("mnist", epochs=5), ASKED, "pbt")
SWEEP = population.sized(CONFIG, SweepConfig(objective="pbt", population=4, round_epochs=2))


def opened(path, **changes) -> tuple[Study, population.Population]:
    """A study of a population in a file, and the state of a driver that has just opened it."""
    about = {"settings": identity(CONFIG), "space": SPACE, "objective": "pbt", "sampler": "random"}
    about |= {"early_stopping": False, "population": 4, "round_epochs": 2}
    study = Study(f"sqlite:///{path}", "s", any_plan(**about))
    sweep = dataclasses.replace(SWEEP, **changes)
    return study, population.Population(CONFIG, sweep, study, SimpleNamespace(count=2, most=2), print, None)


def train(state, number: int, params) -> None:
    """As a trial would report, whose run has its ancestors' epochs, too."""
    turn = state.study.record(number).turn
    for epoch in range(turn.after, turn.until + 1):
        row = {"epoch": epoch, "images": 9 * epoch, "train_seconds": 10.0 * epoch}
        if epoch:  # of the epoch before its own it is told where it was opened again
            state.report(number, row | {"val/accuracy": quality(params, epoch)})
    state.end(number, {}, False)


def outcome(study: Study) -> list:
    return [(t.params, t.turn, t.state, t.curve) for t in study.records()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Study:
    study, state = opened(tmp_path_factory.mktemp("population") / "a.db", try_=("lr=0.0005",))
    while found := state.next_trial():
        train(state, *found)
    return study


def test_the_worst_copy_the_best_and_change_their_settings(whole):
    trials = whole.records()
    assert len(trials) == SWEEP.trials == 12 and all(t.state == "complete" for t in trials)
    assert [t.turn.member for t in trials] == 3 * [0, 1, 2, 3]
    assert [(t.turn.after, t.turn.until) for t in trials[::4]] == [(0, 2), (2, 4), (4, 5)]
    assert trials[1].params == trials[0].params | {"lr": 0.0005} and trials[1].turn.parent is None
    assert all(t.settings == trials[0].params for t in trials[::4])  # the preset stays what it is
    for before, after in ((trials[:4], trials[4:8]), (trials[4:8], trials[8:])):
        best, worst = (f(before, key=lambda t: t.reached) for f in (max, min))
        for old, new in zip(before, after, strict=True):
            copied = old is worst and old.turn.member > 0
            assert new.turn.parent == (best if copied else old).number
            assert (new.params == old.params) is not copied
            assert new.seconds == 10.0 * (new.turn.until - new.turn.after) and min(new.curve) > new.turn.after
    line = dataclasses.replace(record_of(*trials), plan=whole.plan)
    assert line.best.number >= 8 and line.line[-1] is line.best and line.line[0].number < 4
    assert line.preset in trials[::4] and line.preset.reached == max(t.reached for t in trials[::4])
    assert plots.schedules(line).width > 500


def test_its_settings_now_are_its_schedule_now(whole):
    """Of every trial, by the setting that a run of its own would have."""
    from crayon.config import changes

    changed = 0
    for trial in whole.records():
        run = override(CONFIG, dict(trial.settings))
        changes.check(run)
        now = changes.at(run, trial.turn.after)
        assert {"lr": now.lr, "beta1": now.beta1}.items() <= trial.params.items()
        assert now.augment.shift == trial.params["augment.shift"]
        changed += bool(run.changes)
    assert changed


def test_a_killed_driver_goes_on_with_the_same_population(whole, tmp_path):
    study, state = opened(tmp_path / "a.db", try_=("lr=0.0005",))
    rng, killed = random.Random(0), 0
    while found := state.next_trial():
        if rng.random() < 0.4:  # killed while it trained
            study, state = opened(tmp_path / "a.db", try_=("lr=0.0005",))
            killed += 1
        else:
            train(state, *found)
    assert killed > 2 and outcome(study) == outcome(whole)


def test_what_fails_copies_and_without_any_left_it_ends(tmp_path):
    study, state = opened(tmp_path / "a.db")
    for _ in range(4):
        number, params = state.next_trial()
        assert state.next_unfinished() or number == 3
        for trial in study.records():  # one after the other
            if trial.state == "running" and trial.number != number:
                study.set_state(trial.number, "waiting")
        state.end(number, {"failed": "diverged"}, False) if number < 3 else train(state, number, params)
    found = [state.next_trial() for _ in range(4)]
    assert [study.record(n).turn.parent for n, _ in found] == 4 * [3]
    assert found[3][1] == study.record(3).params != found[0][1]
    for number, _ in found:
        state.end(number, {"failed": "diverged"}, False)
    assert state.next_trial() is None and all(t.state in OVER for t in study.records())


def test_changed_values_stay_in_their_dimensions():
    rng = random.Random(0)
    whole = Dimension(name="a", kind="int", low=0, high=3)
    listed = Dimension(name="a", kind="choice", choices=(0, 4, 8))
    real = Dimension(name="a", kind="float", low=0.1, high=0.5)
    assert {population.moved(whole, 1, rng) for _ in range(20)} == {0, 2}
    assert {population.moved(whole, 3, rng) for _ in range(20)} == {2, 3}
    assert {population.moved(listed, 4, rng) for _ in range(20)} == {0, 8}
    assert {population.moved(real, 0.45, rng) for _ in range(20)} == {0.36, 0.5}


@pytest.mark.parametrize(
    ("sweep", "settings", "asked", "said"),
    [
        ({}, {}, {"model.width": "8,16"}, "model.width can't change while a run trains"),
        ({}, {}, {"epochs": "2..8"}, "epochs can't change while a run trains"),
        ({"sampler": "gp"}, {}, {}, "--sampler isn't for --objective pbt"),
        ({"pruner": "median"}, {}, {}, "--pruner isn't"),
        ({"confirm": 5}, {}, {}, "--confirm isn't"),
        ({"trials": 9}, {}, {}, "--trials isn't"),
        ({"from_": "runs/a"}, {}, {}, "--from isn't"),
        ({"early_stopping": False}, {}, {}, "--no-early-stopping isn't"),
        ({"population": 1}, {}, {}, "--population 1 is out of range; it must be at least 2"),
        ({"population": 2, "try_": ("lr=0.003", "lr=0.002")}, {}, {}, "a population of 2 has 1"),
        ({"round_epochs": 5}, {}, {}, "leaves one round of --round-epochs 5"),
        ({}, {"epochs": 1}, {}, "--epochs 1 leaves one round"),
        ({"round_epochs": 1}, {"eval__every_epochs": 2}, {}, "measured every 2 epochs"),
        ({"objective": "quality", "population": 4}, {}, {}, "--population is for --objective pbt"),
        ({}, {"workers": 2}, {}, "--workers 2: a member"),
        ({}, {"changes": "1:lr=0.1"}, {}, "--changes is what"),
    ],
)
def test_what_can_not_be_is_one_sentence(sweep, settings, asked, said):
    config, space = of_job(tiny("mnist", **{"epochs": 5, "workers": 1} | settings), asked, "pbt")
    with pytest.raises(BadInput) as end:
        driver.check(config, SweepConfig(**{"objective": "pbt"} | sweep), space)
    assert said in str(end.value)


def test_a_penalty_that_begins_at_0_is_not_searched():
    config, space = of_job(tiny("gan", workers=1), {"task.gamma": "0..10"}, "pbt")
    with pytest.raises(BadInput, match=r"^--space\.task\.gamma 0\.\.10: task\.gamma begins at 0"):
        driver.check(config, SweepConfig(objective="pbt"), space)


def test_the_sizes_fit_the_epochs():
    config = jobs.get("gan")
    assert population.sizes(config, SweepConfig()) == (8, 4)  # it is measured every 2 of 18 epochs
    assert population.sized(config, SweepConfig(population=6)).trials == 30


def test_a_copy_with_changes_is_the_run_whose_settings_change(tmp_path):
    """Bit for bit, averaged weights and Adam's among them; also without what it was copied from."""
    settings = {"task__gamma": 0.5, "data__size": 48, "epochs": 2, "model__width": 4}
    asked = "1:lr=0.004 1:beta1=0.2 1:augment.shift=2 1:task.gamma=2 1:augment.cutout=4"
    whole = trainer(tmp_path / "whole", "gan", changes=asked, **settings)
    whole.fit()
    first = trainer(tmp_path / "first", "gan", **settings)
    first.train_epoch()
    first.save()
    run = RunFolder(str(tmp_path / "copy"), "gan")
    run.create()
    checkpoint.fork(first.run, run)
    copy = trainer(tmp_path / "copy", "gan", changes=asked, **settings)
    copy.restore()
    assert copy.epoch == 1
    copy.train_epoch()
    ends = (final(tmp_path / name, "gan") for name in ("whole", "copy"))
    assert same(*ends)
    first.train_epoch()
    assert not torch.equal(*(next(iter(made.networks.parameters())) for made in (first, copy)))
    assert copy.now.task.gamma == copy.task.config.gamma == 2 and copy.loader.augment.config.cutout == 4
    found, plain = (rows(tmp_path / name / "gan") for name in ("copy", "first"))
    assert found[1]["lr"] == pytest.approx(plain[1]["lr"] * 0.004 / first.config.lr)
    assert without_clocks(found) == without_clocks(rows(tmp_path / "whole" / "gan"))


PBT = ["--objective", "pbt", "--population", "4", "--round-epochs", "2", "--space.augment.shift", "0..3"]


@pytest.mark.faults
def test_killed_or_not_it_ends_alike_and_its_schedule_repeats_it(tmp_path):
    def sweep(folder) -> list[str]:
        return ["mnist", *BASE, *PBT, "--storage", str(tmp_path / folder), "--name", "s", "--epochs", "6"]

    def result(folder) -> dict:
        return json.loads((tmp_path / folder / "s" / "result.json").read_text())

    end = crayon(*sweep("whole"))
    assert end.returncode == 0, end.stdout + end.stderr
    found = result("whole")
    assert found["trials"]["complete"] == 12 and found["epochs"] == 24
    assert found["best"]["value"] >= found["preset_value"]
    process = start(sweep("killed"))
    wait_for(tmp_path / "killed", lambda: rows_of(tmp_path / "killed", 5) > 0, process)
    kill_with_family(process)
    end = crayon(*sweep("killed"))
    assert end.returncode == 0, end.stdout + end.stderr
    again = result("killed")
    assert "Going on with" in end.stdout and again["best"] == found["best"]
    assert again["lineage"] == found["lineage"] and again["test/accuracy"] == found["test/accuracy"]
    command = shlex.split(found["commands"]["retrain the best"])[2:]
    words = [*command, "--storage", str(tmp_path), "--name", "run", "--workers", "0"]
    end = crayon("mnist", *words)
    assert end.returncode == 0, end.stderr
    number = found["best"]["trial"]
    trial = tmp_path / "whole" / "s" / "trials" / f"{number:04d}"
    mine = without_clocks(rows(trial))
    assert without_clocks(rows(tmp_path / "run"))[: len(mine)] == mine
    if mine[-1]["epoch"] == 6:
        assert same(final(tmp_path), final(trial.parent, trial.name))
    with contextlib.suppress(FileNotFoundError):
        assert json.loads((tmp_path / "whole/s/best/config.json").read_text())["changes"]
