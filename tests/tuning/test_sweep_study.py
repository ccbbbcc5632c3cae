"""The study decides what comes next, and forgets nothing; what ends a trial early."""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import time
from threading import Event

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from sweep_records import plan as any_plan
from test_data_history import draw

from crayon.config.names import identity, override, with_defaults
from crayon.errors import BadInput
from crayon.system import secrets
from crayon.tasks import jobs
from crayon.tasks.jobs import get
from crayon.tuning import database
from crayon.tuning.images import checked, look
from crayon.tuning.samplers import STARTUP
from crayon.tuning.seat import DRIVER
from crayon.tuning.space import build, clipped
from crayon.tuning.stopping import should_stop
from crayon.tuning.study import Study

CONFIG, SPACE = build(get("mnist"), jobs.space(get("mnist")), {"model.width": "8,16,32"})


def plan(**changes):
    return any_plan(**{"settings": identity(CONFIG), "space": SPACE} | changes)


def quality(params, epoch: int) -> float:
    """As good as it gets near lr 4e-3 and beta1 0.9, and better with every epoch."""
    return (
        0.99
        - 0.02 * (math.log10(params["lr"]) + 2.4) ** 2
        - 0.1 * (params["beta1"] - 0.9) ** 2
        - 0.02 / (epoch + 1)
    )


def search(path, until: int, objective: str = "quality", die_in_epoch: int | None = None, **changes) -> Study:
    """A sweep of simulated trials, one at a time; with `die_in_epoch`, left in the middle of the next trial."""
    study = Study(f"sqlite:///{path}", "s", plan(objective=objective, **changes))
    while study.unfinished() or len(study.records()) < until or die_in_epoch:
        if study.unfinished():
            number, params = study.unfinished()[0].number, study.unfinished()[0].params
            study.set_state(number, "running")
        else:
            params = study.suggest() if study.records() else clipped(CONFIG, SPACE)
            number = study.add(params, int(params["epochs"]))
        state = "complete"
        for epoch in range(1, int(params["epochs"]) + 1):
            if epoch == die_in_epoch:
                return study
            study.report(number, epoch, quality(params, epoch), 1.5 * epoch, {"val/recall": 0.5})
            record = study.records()[number]
            others = [r for r in study.records() if r.number != number]
            if should_stop(record, others, study.plan):
                state = "pruned"
                break
        study.finish(number, state)
    return study


@pytest.mark.parametrize("objective", ["quality", "pareto"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_killed_and_continued_is_the_same_search(tmp_path, objective, sampler):
    """10 trials, a kill in the middle of the 11th, and the rest: the trials of 20 in one go."""
    whole = search(tmp_path / "whole.db", 20, objective, sampler=sampler)
    search(tmp_path / "broken.db", 10, objective, die_in_epoch=2, sampler=sampler)
    search(tmp_path / "broken.db", 14, objective, sampler=sampler)
    broken = search(tmp_path / "broken.db", 20, objective, sampler=sampler)
    assert broken.records() == whole.records()
    assert len({tuple(r.params.values()) for r in whole.records()}) == 20
    assert {r.state for r in whole.records()} == {"complete", "pruned"}
    if objective == "quality":
        assert {t.state for t in whole.study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_the_search_learns(tmp_path):
    """Its later trials are better than its first ones, by more than random draws are."""
    found = search(tmp_path / "a.db", 30).records()
    error = [abs(math.log10(r.params["lr"]) + 2.4) for r in found]
    assert sum(error[-10:]) / 10 < 0.7 * sum(error[1:7]) / 6


def test_trials_under_way_count_and_one_at_a_time_is_searched_as_ever(tmp_path):
    study = search(tmp_path / "a.db", 12)

    def without_those_under_way() -> dict:
        past = study.study.get_trials()
        seed = int.from_bytes(hashlib.sha256(f"0/{len(past)}".encode()).digest()[:4], "little")
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=False)
        copy = optuna.create_study(directions=study.study.directions, sampler=sampler)
        copy.add_trials(past)
        return copy.ask(study._distributions).params

    assert study.suggest() == without_those_under_way()
    for _ in range(4):
        study.add(without_those_under_way(), 8)
    assert study.suggest() != without_those_under_way()


def test_another_seed_searches_elsewhere(tmp_path):
    a, b = (search(tmp_path / f"{seed}.db", 3, seed=seed).records() for seed in (0, 1))
    assert a[0].params == b[0].params == clipped(CONFIG, SPACE)
    assert a[1].params != b[1].params


def test_optuna_itself_reads_the_study(tmp_path):
    ours = search(tmp_path / "a.db", 12)
    theirs = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'a.db'}")
    assert [t.params for t in theirs.trials] == [dict(r.params) for r in ours.records()]
    complete = [r for r in ours.records() if r.state == "complete"]
    assert theirs.best_value == max(r.value for r in complete)


def test_interrupted_trials_wait_and_none_stays_running(tmp_path):
    study = search(tmp_path / "a.db", 2, die_in_epoch=2)
    (left,) = study.unfinished()
    assert left.state == "running" and left.epoch == 1
    study.set_state(left.number, "waiting")
    again = Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan())
    assert [r.state for r in again.unfinished()] == ["waiting"]
    assert not [t for t in again.study.trials if t.state == TrialState.RUNNING]
    search(tmp_path / "a.db", 3)
    assert not Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan()).unfinished()


def test_metrics_are_those_of_the_best_value(tmp_path):
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    number = study.add(clipped(CONFIG, SPACE), 4)
    for epoch, value in enumerate((0.5, 0.9, 0.8, 0.9), start=1):
        study.report(number, epoch, value, float(epoch), {"val/recall": value / 2, "val/loss": float(epoch)})
    reopened = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    for record in (study.records()[0], reopened.records()[0]):
        assert (record.value, record.epoch, record.seconds) == (0.9, 4, 4.0)
        assert record.metrics == {"val/recall": 0.45, "val/loss": 2.0}


def test_a_trial_without_a_value_has_failed(tmp_path):
    study = Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan())
    number = study.add(clipped(CONFIG, SPACE), 8)
    study.report(number, 1, float("nan"), 1.0, {})
    study.finish(number, "complete")
    assert study.records()[0].state == "failed"
    study.suggest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "pareto"}, "objective was quality, now pareto"),
        ({"seed": 7}, "seed was 0, now 7"),
        (
            {"space": {k: SPACE[k] for k in ("epochs", "lr", "beta1")}},
            r"space.model.width was 8,16,32, now not there",
        ),
        ({"settings": identity(CONFIG) | {"data.source": "shapes"}}, "data.source was mnist, now shapes"),
    ],
)
def test_a_study_of_another_sweep_is_refused(tmp_path, changes, words):
    search(tmp_path / "a.db", 1)
    with pytest.raises(BadInput, match=words):
        Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan(**changes))


def test_a_study_from_before_a_setting_goes_on_with_its_default(tmp_path):
    now = identity(CONFIG)
    search(tmp_path / "a.db", 1, settings={k: v for k, v in now.items() if k != "model.activation"})
    before = with_defaults({}, CONFIG)
    assert len(Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan(before=before)).records()) == 1
    with pytest.raises(BadInput, match=r"\(model.activation was relu, now gelu\)"):
        other = plan(before=before, settings=now | {"model.activation": "gelu"})
        Study(f"sqlite:///{tmp_path / 'a.db'}", "s", other)


def test_a_study_from_before_there_were_pruners_goes_on_with_asha():
    known = plan().as_json()
    assert known.pop("pruner") == "asha"
    plan().check(known, "s")
    with pytest.raises(BadInput, match="pruner was asha, now median"):
        plan(pruner="median").check(known, "s")


def test_a_study_that_is_not_ours_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    optuna.create_study(study_name="s", storage=url).ask()
    with pytest.raises(BadInput, match="was not made by crayon"):
        Study(url, "s", plan())


def test_one_driver_at_a_time(tmp_path):
    """Two machines with one database: the second waits until the first has ended, or hasn't been heard of."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    study = Study(url, "s", plan())
    mine = study.study.user_attrs[DRIVER]

    def told(**changes) -> None:
        study.study.set_user_attr(DRIVER, mine | changes)

    parent = psutil.Process(os.getppid())
    for pid in (1, os.getpid()):  # two machines, above all two containers, may well give the same number
        told(host="elsewhere", pid=pid)
        with pytest.raises(BadInput, match=f"is being run by process {pid} on elsewhere"):
            Study(url, "s", plan())
    told(pid=parent.pid, began=parent.create_time())
    with pytest.raises(BadInput, match="is being run by"):
        Study(url, "s", plan())
    # Another process has that number by now, or the last word is old, or was that it has ended.
    told(pid=parent.pid, began=parent.create_time() - 100)
    Study(url, "s", plan())
    told(host="elsewhere", pid=1, at=time.time() - 100)
    Study(url, "s", plan())
    told()
    study.close()
    assert study.study.user_attrs[DRIVER] is None
    Study(url, "s", plan())


def test_damaged_and_locked_files(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.2)
    path = tmp_path / "a.db"
    search(path, 2)
    holder = sqlite3.connect(path)
    holder.execute("begin exclusive")
    with pytest.raises(BadInput, match="locked by another process"):
        Study(f"sqlite:///{path}", "s", plan())
    holder.rollback()
    holder.close()
    content = path.read_bytes()
    path.write_bytes(b"x" * 5000)
    with pytest.raises(BadInput, match="damaged"):
        Study(f"sqlite:///{path}", "s", plan())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="damaged"):
        search(path, 4)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_database_without_its_driver_names_the_extra_that_brings_it(scheme):
    match = rf"named 'x'\); pip install 'crayon-ray\[{scheme}\]', or uv sync --extra {scheme}\."
    with pytest.raises(BadInput, match=match), database.errors(f"{scheme}://host/studies"):
        raise ImportError("Install one.") from ModuleNotFoundError("No module named 'x'")


def test_passwords_are_not_shown():
    for url in ("postgresql://me:secret@host/db", "postgresql://me:s@c:ret@host/db", "redis://:secret@host"):
        assert secrets.shown(url) == url.replace(":secret", "").replace(":s@c:ret", "")
    assert secrets.shown("mysql://me@host/db?passwd=secret&x=1") == "mysql://me@host/db?passwd=...&x=1"
    with pytest.raises(BadInput) as error:
        Study("mysql://me:secret@host/db", "s", plan())
    assert "secret" not in str(error.value)


def test_a_study_that_was_begun_in_bf16_goes_on_with_auto():
    """Presets of earlier versions said bf16."""
    settings = identity(CONFIG)
    plan(settings=settings).check(plan(settings=settings | {"precision": "bf16"}).as_json(), "s")
    with pytest.raises(BadInput, match="precision was bf16, now fp32"):
        fixed = plan(settings=settings | {"precision": "fp32"})
        fixed.check(plan(settings=settings | {"precision": "bf16"}).as_json(), "s")


def test_a_sweep_knows_the_images_that_its_trials_have_learned_from(tmp_path):
    for split, n in (("train", 12), ("test", 4)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(n):
                draw(tmp_path / "a" / split / name / f"{i:02}.bmp", 100 * k + i)
    changes = {"data.source": "folder", "data.image_size": 8, "data.val_fraction": 0.2}
    changes |= {"name": "s", "global_batch_size": 4}
    said = []

    def notes(root: str) -> tuple[str, ...]:
        said.clear()

        def emit(event):
            said.append(getattr(event, "text", ""))

        config = override(get("mnist"), changes | {"data.root": str(tmp_path / root)})
        study = search(tmp_path / "a.db", len(said) + 2)
        try:
            return checked(config, study, look(config, emit, Event()), emit)
        finally:
            study.close()

    assert notes("a") == () and study_images(tmp_path) == 1
    (tmp_path / "a").rename(tmp_path / "b")
    assert (
        notes("b") == () and study_images(tmp_path) == 1 and not [text for text in said if "changed" in text]
    )
    (tmp_path / "b/train/cat/03.bmp").unlink()
    text = "The images changed at trial 2: 1 training image fewer (cat 12, now 11) than before."
    assert notes("b") == (text,)
    assert "(cat 12, now 11) than at trial 2; it goes on" in said[-1] and "can't be compared" in said[-1]
    assert notes("b") == (text,) and study_images(tmp_path) == 2
    for split in ("train", "test"):
        (tmp_path / "b" / split / "dog").rename(tmp_path / "b" / split / "aardvark")
    with pytest.raises(
        BadInput, match="Sweep 's' was trained with classes cat, dog; now there are aardvark, cat"
    ):
        notes("b")
    changes["data.val_fraction"] = 0
    with pytest.raises(BadInput, match=r"--data\.val-fraction 0 leaves nothing to compare trials by"):
        notes("b")
    (tmp_path / "b/test").rename(tmp_path / "b/val")  # which is what they are compared by
    config = override(get("mnist"), changes | {"data.root": str(tmp_path / "b")})
    looked = look(config, said.append, Event())
    assert looked.about["splits"]["val"]["images"] == 8 and looked.info.train_size == 23


def study_images(folder) -> int:
    study = search(folder / "a.db", 0)
    study.close()
    return len(study.images)
