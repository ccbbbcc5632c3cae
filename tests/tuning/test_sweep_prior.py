"""A warm start: what was tried elsewhere leads the search and is never chosen."""

from __future__ import annotations

import json

import optuna
import pytest
from test_sweep_outside import ASKED, objective, state, theirs
from test_sweep_study import CONFIG, SPACE, plan, search

from crayon.config.names import flatten
from crayon.data.types import DataInfo
from crayon.errors import BadInput
from crayon.tuning import prior, start
from crayon.tuning.records import SweepRecord
from crayon.tuning.settings import SweepConfig
from crayon.tuning.space import clipped, points
from crayon.tuning.study import Study


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of a sweep of ten trials."""
    folder = tmp_path_factory.mktemp("runs") / "s"
    folder.mkdir()
    made = search(folder / "study.db", 10)
    made.close()
    content = {"job": "mnist", "preset": "quick", "study": None} | made.plan.as_json()
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def test_another_sweep_leads_the_search_and_is_never_chosen(old, study):
    alone = study.suggest()
    # Their best is the preset, which is run anyway.
    assert study.begin_with(str(old)) == f"The search begins with 10 trials of {old}."
    assert study.begin_with(str(old)) == ""
    led = study.suggest()
    assert led != alone and study.add(led, 8) == 1
    record = SweepRecord(name="s", job="mnist", plan=study.plan, trials=study.records(), planned=20)
    assert len(record.trials) == 2 and record.best is None
    again = Study(study.url, "s", plan())
    assert again.begin_with(str(old)) == "" and again.suggest() == study.suggest()


def test_where_data_differ_one_trial_in_four_counts_with_its_rank_only(old, tmp_path):
    other = plan(settings=dict(plan().settings) | {"data.size": 100})
    study = Study(f"sqlite:///{tmp_path / 'b.db'}", "s", other)
    told = study.begin_with(str(old))
    assert "10 of them with other data or settings" in told and "Trial 0 has the settings of the best" in told
    assert study._evidence() == list(study.records())  # with what could they be compared?
    for value in (0.3, 0.1, 0.2):
        number = study.add(clipped(CONFIG, SPACE), 8) if study.record(0).value else 0
        study.report(number, 1, value, 1.0, {})
        study.finish(number, "complete")
    assert [trial.value for trial in study._evidence()] == pytest.approx([0.3, 0.2, 0.1, 0.3, 0.1, 0.2])
    best = study._evidence()[0].params
    assert best == study._priors[str(old)][0]["params"] == study.record(0).params
    assert study.records()[0].value == 0.3


def test_any_study_and_any_run(study, tmp_path):
    url = f"sqlite:///{tmp_path / 'theirs.db'}"
    made = optuna.create_study(study_name="x", storage=url, direction="maximize")
    made.optimize(objective, 3)
    made.add_trial(optuna.create_trial(value=1.0))  # no point of the space
    assert "3 trials" in study.begin_with(url)
    optuna.create_study(study_name="y", storage=url)
    assert "3 trials" in study.begin_with(f"{url}#x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(flatten(CONFIG)))
    (run / "metrics.jsonl").write_text(
        '{"epoch": 1, "val/accuracy": 0.7}\n{"epoch": 2, "val/accuracy": 0.6}\n'
    )
    assert study.begin_with(str(run)) == f"The search begins with 1 trial of {run}."
    for source, words in {
        url: r"several studies, or none; write URL#NAME, of x, y",
        f"{url}#z": "has no study 'z'",
        f"{url}#y": "sought the other end than val/accuracy",
        f"sqlite:///{tmp_path}/none.db": "there is no file",
        "s3://bucket/runs/old": "is in an object store",
        str(tmp_path): "neither a sweep's folder nor a run's",
    }.items():
        with pytest.raises(BadInput, match=words):
            prior.read(source, study.plan)
    assert not (tmp_path / "none.db").exists()
    (run / "sweep.json").write_text('["metric"]')
    with pytest.raises(BadInput, match="holds what crayon can't have written"):
        prior.read(str(run), study.plan)
    (run / "sweep.json").unlink()
    (run / "config.json").write_text(json.dumps(flatten(CONFIG) | {"job": "cifar10"}))
    with pytest.raises(BadInput, match="is of the job cifar10, and this sweep of mnist"):
        prior.read(str(run), study.plan)


def test_what_is_to_be_tried_is_the_preset_but_for_it():
    found = points(["lr=3e-3,beta1=.8", "width=8"], CONFIG, SPACE)
    preset = clipped(CONFIG, SPACE)
    assert found == [preset | {"lr": 3e-3, "beta1": 0.8}, preset | {"model.width": 8}]
    for text, words in {
        "lr": "write settings with their values",
        "lrr=1": "no setting 'lrr'; did you mean lr",
        "dropout=0.1": "isn't searched; add its range with --space.model.dropout",
        "lr=3e-3,lr=2e-3": "lr stands there twice",
        "lr=1": "lr isn't in 0.0005..0.02:log",
        "lr=x": "'x' is not a number",
    }.items():
        with pytest.raises(BadInput, match=words):
            points([text], CONFIG, SPACE)


def test_a_sweep_begins_with_the_preset_and_what_is_to_be_tried(tmp_path):
    study = Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan())
    sweep = SweepConfig(try_=("lr=3e-3", "lr=2e-3,width=8"), require=("parameters<1e6",))
    info = DataInfo(size=16, channels=1, classes=tuple("0123456789"), train_size=100)
    assert start.begin(study, CONFIG, sweep, SPACE, info, "/a") == []
    theirs(study).enqueue_trial(ASKED)
    elsewhere, enqueued = start.begin(study, CONFIG, sweep, SPACE, info, "/b")
    assert elsewhere.startswith("This sweep has trials in /a too") and enqueued.startswith(
        "Trial 3 was enqueued"
    )
    here = state(study)
    assert [here.next_trial()[1]["lr"] for _ in range(4)] == [0.004, 3e-3, 2e-3, ASKED["lr"]]
    for changes, words in (
        ({"target": 98.0}, "val/accuracy is at most 1; write it as in 0.98"),
        ({"from_": "/a"}, "is this sweep itself"),
        ({"require": ("parameters<2",)}, "The preset, which is the first trial, can't be trained: it has"),
        ({"require": ("parameters<60_000",), "try_": ("width=32",)}, "What --try asks for can't be trained"),
    ):
        with pytest.raises(BadInput, match=words):
            start.begin(study, CONFIG, SweepConfig(**changes), SPACE, info, "/a")
