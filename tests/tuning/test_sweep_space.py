"""Dimensions: how they are written, what they may be, and where the preset lies in them."""

from __future__ import annotations

import shlex

import pytest
from helpers import JOBS, PRESETS
from sweep_records import plan

from crayon.cli import main as cli
from crayon.cli.flags import parse as parse_flags
from crayon.config.names import flatten, identity, override
from crayon.errors import BadInput
from crayon.tasks import jobs
from crayon.tasks.jobs import get
from crayon.tuning.command import retrain
from crayon.tuning.space import Dimension, build, clipped, parse, resolve
from crayon.tuning.study import Study


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_job_searches_epochs_lr_and_beta1_around_its_preset(job, preset):
    default = get(job, preset)
    config, space = build(default, jobs.space(default), {})
    assert config == default
    assert list(space) == ["epochs", "lr", "beta1"]
    assert space["epochs"].kind == "int" and space["lr"].log
    assert clipped(config, space) == {name: flatten(default)[name] for name in space}
    if job == "gan":
        assert space["beta1"].low == 0.0 and space["beta1"].high == 0.9


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_that_retrains_asks_for_the_same_experiment(job, preset):
    config = override(get(job, preset), {"data.root": "/some where", "epochs": 3})
    params = {"lr": 0.0123, "beta1": flatten(config)["beta1"]}
    words = shlex.split(retrain(config, params, "crayon", "again"))
    assert words[0] == "crayon"
    assert parse_flags(job, words[1:], job) == override(config, {**params, "name": "again"})


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("epochs", "4..12", Dimension(name="epochs", kind="int", low=4, high=12)),
        ("lr", "1e-4..1e-2:log", Dimension(name="lr", kind="float", low=1e-4, high=1e-2, log=True)),
        ("optim.eps", "1e-8..1e-6", Dimension(name="optim.eps", kind="float", low=1e-8, high=1e-6)),
        ("model.width", "8,16,32", Dimension(name="model.width", kind="choice", choices=(8, 16, 32))),
        ("task.tta", "true,false", Dimension(name="task.tta", kind="choice", choices=(True, False))),
        ("beta1", "0.9", 0.9),
        ("epochs", "5", 5),
    ],
)
def test_ranges_choices_and_fixed_values(name, text, wanted):
    found = parse(name, text, get("mnist"))
    assert found == wanted and type(found) is type(wanted)
    if isinstance(found, Dimension):
        assert parse(name, str(found), get("mnist")) == found


def test_names_may_be_the_end_of_a_dotted_name():
    default = get("mnist")
    assert resolve("dropout", default) == "model.dropout" == resolve("model.dropout", default)
    assert resolve("global-batch-size", default) == "global_batch_size"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space.lrr", "1..2"], ["'lrr'", "did you mean lr"]),
        (["--space.seed", "1..2"], ["seed", "same for all trials"]),
        (["--space.data.size", "100,200"], ["data.size", "same for all trials"]),
        (["--space.lr", "0.1..0.01"], ["smaller number first"]),
        (["--space.lr", "0.1..0.1"], ["smaller number first"]),
        (["--space.lr", "0.1.."], ["'nothing' is not a number"]),
        (["--space.lr", "a..b"], ["'a' is not a number"]),
        (["--space.lr", "0..0.1:log"], ["above 0"]),
        (["--space.lr", "1e-3..1e-1:cubic"], ["'cubic'"]),
        (["--space.epochs", "1.5..9"], ["1.5", "whole number"]),
        (["--space.epochs", "0..9"], ["--epochs 0"]),
        (["--space.epochs", "10..12"], ["leaves out 8", "preset"]),
        (["--space.beta1", "0.5..1.0"], ["--beta1 1"]),
        (["--space.optim.schedule", "1..2"], ["not a number"]),
        (["--space.model.width", "16,16"], ["twice"]),
        (["--space.model.width", "8,wide"], ["'wide' is not a number"]),
        (["--space.lr"], ["needs a range"]),
        (["--space.optim.schedule", "linear,cubic"], ["--optim.schedule cubic", "cosine"]),
        (["--space.lr", "0.004", "--space.epochs", "8", "--space.beta1", "0.9"], ["nothing to search"]),
        (["--space.dropout", "0.1 if epochs<9"], ["one value", "can't have a condition"]),
        (["--space.dropout", "0..0.5 if epochs"], ["one comparison"]),
        (["--space.dropout", "0..0.5 if width=16"], ["model.width isn't searched"]),
        (["--space.dropout", "0..0.5 if widht=16"], ["'widht'", "did you mean model.width"]),
        (["--space.dropout", "0..0.5 if epochs=99"], ["epochs is never 99"]),
        (["--space.dropout", "0..0.5 if epochs<3"], ["epochs is never <3 in 3..12"]),
        (["--space.dropout", "0..0.5 if optim.schedule<3"], ["optim.schedule is not a number"]),
        (["--space.dropout", "0..0.5 if epochs=x"], ["'x' is not a number"]),
        (["--sampler", "grid"], ["is a range"]),
        (["--pruner", "median", "--objective", "pareto"], ["--pruner median compares one value"]),
        (["--patience", "3", "--objective", "pareto"], ["--patience compares one value"]),
        (["--try", "lr=7"], ["lr isn't in"]),
        (["--changes", "3:lr=1e-3"], ["after 3 epochs", "--space.epochs 3..12", "begin that above 3"]),
        (["--require", "params<3"], ["'params' isn't known before training"]),
        (["--trials", "0"], ["--trials 0"]),
        (["--minutes", "-1"], ["--minutes -1"]),
        (["--concurrent", "0"], ["--concurrent 0"]),
        (["--objective", "speed"], ["--objective"]),
        (["--data.val-fraction", "0"], ["nothing to compare"]),
        (["--study", "nonsense"], ["nonsense", "no database URL"]),
        (["--study", "postgresql://me:secret@host/db"], ["--study holds a password", "~/.pgpass"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_mistakes_are_one_sentence_before_anything_starts(capsys, tmp_path, arguments, words):
    fixed = f"--data.source digits --global-batch-size 32 --name s --storage {tmp_path}".split()
    with pytest.raises(SystemExit) as end:
        cli.main("mnist", ["tune", *fixed, *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert "secret" not in err
    assert not (tmp_path / "s" / "trials").exists()


def test_help_shows_the_ranges(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main("gan", ["tune", "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    for text in ("--space.epochs", "--space.lr", ":log", "--space.beta1", "0..0.9", "--trials", "--target"):
        assert text in out


def test_a_dimension_with_a_condition_is_searched_only_where_it_holds(tmp_path):
    asked = {"optim.schedule": "linear,cosine", "dropout": "0..0.5 if optim.schedule=cosine"}
    config, space = build(get("mnist"), {"epochs": "4..12"}, asked)
    assert str(space["model.dropout"]) == "0..0.5 if optim.schedule=cosine"
    assert parse("model.dropout", str(space["model.dropout"]), get("mnist")) == space["model.dropout"]
    wanted, preset = plan(space=space, settings=identity(config)), config.model.dropout
    study = Study(f"sqlite:///{tmp_path / 'a.db'}", "s", wanted)
    for _ in range(14):
        params = study.suggest()
        study.report(study.add(params, 4), 1, 0.5 + params["model.dropout"], 1.0, {})
        study.finish(len(study.records()) - 1, "complete")
    drawn = {
        kind: [r.params["model.dropout"] for r in study.records() if r.params["optim.schedule"] == kind]
        for kind in ("linear", "cosine")
    }
    assert set(drawn["linear"]) == {preset} and len(set(drawn["cosine"])) == len(drawn["cosine"]) > 2
    Study(study.url, "s", wanted)
    space["model.dropout"] = parse("model.dropout", "0..0.5", get("mnist"))
    with pytest.raises(
        BadInput, match=r"space.model.dropout was 0..0.5 if optim.schedule=cosine, now 0..0.5"
    ):
        Study(study.url, "s", plan(space=space, settings=identity(config)))


@pytest.mark.parametrize(
    ("condition", "holds"),
    [("epochs<8", False), ("epochs<=9", True), ("epochs>=10", False), ("epochs=9", True)],
)
def test_conditions_compare(condition, holds):
    found = parse("lr", f"1e-3..1e-2:log if {condition}", get("mnist"))
    assert found.active({"epochs": 9}) is holds
