"""One spelling for flag, field, W&B column, Optuna parameter and checkpoint metadata."""

from __future__ import annotations

import json

import pytest
from helpers import JOBS, PRESETS, flags

from crayon.cli.flags import parse, parse_cache, parse_use
from crayon.config.names import flatten, identity, override
from crayon.errors import BadInput
from crayon.tasks.jobs import get
from crayon.training.worker import FEW_STEPS

EVERY = [(job, preset) for job in JOBS for preset in PRESETS]
TRAINING_IMAGES = {"mnist": 55_200, "cifar10": 46_000, "autoencoder": 55_200, "gan": 11_040}
"""Of each job's own source, without the held-out ones."""


@pytest.mark.parametrize(("job", "preset"), EVERY)
def test_flat_form_is_json_and_rebuilds_the_experiment(job, preset):
    config = get(job, preset)
    flat = json.loads(json.dumps(flatten(config)))
    assert override(get(job), flat) == config
    assert (config.job, config.preset) == (job, preset)


@pytest.mark.parametrize(("job", "preset"), EVERY)
def test_every_setting_is_a_flag_of_its_own_name(job, preset):
    config = override(get(job, preset), {"lr": 0.0123, "data.root": "/some/where", "data.val_fraction": 0.2})
    assert parse(job, flags(config), job) == config


@pytest.mark.parametrize(("job", "preset"), EVERY)
def test_no_preset_is_told_that_it_has_too_few_steps(job, preset):
    config = get(job, preset)
    images = min(TRAINING_IMAGES[job], config.data.size or TRAINING_IMAGES[job])
    assert config.epochs * (images // config.global_batch_size) >= FEW_STEPS


@pytest.mark.parametrize("name", ["lrr", "data.rooot", "lr.x", "optim.adam.lr", "", "data"])
def test_unknown_names_raise(name):
    with pytest.raises(KeyError, match=f"^'{name}'$"):
        override(get("mnist"), {"lr": 0.5, name: 1})


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--data.val_fraction=.2", "data.val_fraction", 0.2),
        ("--lr 3e-4 --lr=0.5", "lr", 0.5),
        ("--task.tta", "task.tta", True),
        ("--task.tta --task.no-tta", "task.tta", False),
        ("--data.size 20 --data.size None", "data.size", None),
        (
            "--data.source digits --data.root /x --device cpu --precision fp32 --storage s --wandb off",
            "storage",
            "s",
        ),
        ("--preset quick --epochs 3 --lr 1e-3 --beta1 0.8 --global-batch-size 64", "global_batch_size", 64),
        ("--name 3", "name", "3"),
        ("--workers 2", "workers", 2),
        ("--workers 1..4", "workers", "1..4"),
        ("--data.channels 3", "data.channels", 3),
        ("--seed -1", "seed", -1),
    ],
)
def test_other_spellings_of_flags_and_values(line, name, value):
    found = flatten(parse("mnist", line.split(), "mnist"))[name]
    assert found == value and type(found) is type(value)


def test_words_may_stand_between_flags():
    line = "runs/a --top-k 2 b.png --data.split val c.png"
    config = parse_use("mnist", "predict", line.split(), "mnist")
    assert (config.run, config.inputs, config.top_k) == ("runs/a", ("b.png", "c.png"), 2)
    assert config.data.split == "val"
    config = parse_use("mnist", "export", ["--out", "o", "--formats", "onnx", "pt2", "--", "runs/a"], "mnist")
    assert (config.run, config.formats) == ("runs/a", ("onnx", "pt2"))


def test_identity_leaves_out_where_a_run_happens():
    config = get("mnist")
    places = {"workers": 0, "device": "cpu", "storage": "x", "name": "y"}
    elsewhere = override(config, places | {"checkpoint.keep": 9, "ray.max_failures": 0})
    assert identity(config) == identity(elsewhere)
    assert identity(config) != identity(override(config, {"lr": 1.0}))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lrr", "3"], "There is no option --lrr; did you mean --lr?"),
        (["--lr", "fast"], "--lr"),
        (["--precision", "fp8"], "choose auto, fp32 or bf16"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--preset"], "--preset needs a value"),
        (["--epochs"], "--epochs needs a value"),
        (["--epochs", "1.5"], "--epochs 1.5 is not a whole number"),
        (["--threads", "x"], "not a whole number or None"),
        (["--dropout", "0.3"], "did you mean --model.dropout?"),
        (["--task.tta=yes"], "--task.tta or --task.no-tta takes no value"),
        (["--seed", "3", "4"], "'4' is a word too many"),
        (["cache", "empty"], "There is no action empty; choose list or clear"),
        (["cache", "clear", "--all"], "There is no option --all"),
        (["cache", "list", "clear"], "'clear' is a word too many"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(arguments, sentence):
    with pytest.raises(BadInput) as caught:
        parse_cache(arguments[1:]) if arguments[0] == "cache" else parse("mnist", arguments, "mnist")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
