"""One spelling for flag, field, W&B column, Optuna parameter and checkpoint metadata."""

from __future__ import annotations

import json

import pytest
from helpers import flags

from crayon.cli.main import parse
from crayon.config.names import flatten, identity, override
from crayon.errors import BadInput
from crayon.tasks.jobs import JOBS, PRESETS, get
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
    with pytest.raises((KeyError, TypeError)):
        override(get("mnist"), {name: 1}) and flatten(override(get("mnist"), {name: 1}))["data.source"]


def test_common_flags_have_the_documented_spelling():
    line = (
        "--preset quick --data.source digits --data.root /x --epochs 3 --lr 1e-3 --beta1 0.8 --global-batch-size 64 "
        "--workers 2 --device cpu --precision fp32 --seed 7 --name n --storage s --wandb off"
    )
    config = parse("mnist", line.split(), "mnist")
    assert (config.data.source, config.lr, config.beta1, config.seed) == ("digits", 1e-3, 0.8, 7)
    assert (config.global_batch_size, config.workers, config.storage, config.name) == (64, 2, "s", "n")


def test_identity_leaves_out_where_a_run_happens():
    config = get("mnist")
    elsewhere = override(
        config,
        {
            "workers": 0,
            "device": "cpu",
            "storage": "x",
            "name": "y",
            "checkpoint.keep": 9,
            "ray.max_failures": 0,
        },
    )
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
        (["--epochs"], "--epochs"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(arguments, sentence):
    with pytest.raises(BadInput) as caught:
        parse("mnist", arguments, "mnist")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
