"""Presets that are fitted to a user's own images."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from helpers import JOBS, PRESETS
from PIL import Image

import crayon
from crayon.cli import flags
from crayon.config.names import flatten, override
from crayon.tasks import recipe
from crayon.tasks.jobs import find, get


def pictures(root, n=12, classes=("ash", "oak")):
    """A folder of `n` images of each class in train, and three in test: of one colour each, and noise."""
    draw = np.random.default_rng(0)
    for split, count in (("train", n), ("test", 3)):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 60, (12, 12, 3)) + np.array([90 * c, 60, 180 - 90 * c])
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def asked(tmp_path):
    """A preset of cifar10 on a folder of 24 images, 2 of which are held out."""
    return override(
        get("cifar10"),
        {"data.source": "folder", "data.root": str(pictures(tmp_path / "trees")), "workers": 0},
    )


def test_few_images_are_seen_more_often_and_many_change_nothing():
    for job in JOBS:
        for preset in PRESETS:
            config, made_for = get(job, preset), find(job).images
            assert recipe.changes(config, made_for, made_for) == {}
            found = [recipe.changes(config, made_for, n) for n in (8, 50, 400, 3_000, 9_000)]
            for n, new in zip((8, 50, 400, 3_000, 9_000), found, strict=True):
                assert new["global_batch_size"] <= min(config.global_batch_size, n // 2)
                assert config.epochs <= new["epochs"] and new["lr"] <= config.lr
                assert override(config, new).optim.ema_images > 0
            assert [new["epochs"] for new in found] == sorted((new["epochs"] for new in found), reverse=True)
            seen = [n * new["epochs"] for n, new in zip((50, 400, 3_000, 9_000), found[1:], strict=True)]
            assert seen == sorted(seen)


def test_a_folder_decides_what_was_not_asked_for(asked, tmp_path):
    said = []
    fitted = recipe.fitted(asked, emit=said.append)
    assert flatten(fitted) == flatten(asked) | recipe.changes(get("cifar10"), 46_000, 22)
    (told,) = [event.text for event in said]
    assert "--epochs" in told and "22 images" in told and told == recipe.told(fitted, 22)
    assert flatten(recipe.fitted(fitted)) == flatten(fitted)
    mine = recipe.fitted(
        override(asked, {"epochs": 14, "optim.ema_statistics": False})
    )  # as the preset has it
    assert (
        mine.epochs == 14
        and mine.eval.every_epochs == 1
        and not mine.optim.ema_statistics
        and mine.global_batch_size == 8
    )
    assert "--epochs" not in recipe.told(mine, 22)
    assert recipe.fitted(dataclasses.replace(asked, epochs=5)).epochs == 5
    batch = recipe.fitted(override(asked, {"global_batch_size": 16}))
    assert (batch.global_batch_size, batch.lr) == (16, get("cifar10").lr)


def test_built_in_sets_and_jobs_of_ones_own_stay_as_they_are(asked):
    for job in JOBS:
        assert recipe.fitted(get(job)) == get(job) and recipe.told(get(job), 1) == ""
    elsewhere = override(asked, {"data.root": "/nowhere"})
    assert recipe.fitted(elsewhere) == elsewhere


def test_images_that_are_elsewhere_are_counted_there_and_those_in_shards_told(asked, tmp_path):
    """Whatever lies at the same path on this machine."""
    (tmp_path / "empty").mkdir()
    elsewhere = recipe.fitted(override(asked, {"data.root": str(tmp_path / "empty")}), count=lambda: 400)
    assert elsewhere.epochs == recipe.changes(get("cifar10"), 46_000, 400)["epochs"]
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "train-0.tar", "w") as shard:
        shard.add(next((tmp_path / "trees" / "train" / "ash").iterdir()), "0.png")
        label = tarfile.TarInfo("0.cls")
        label.size = 1
        shard.addfile(label, io.BytesIO(b"0"))
    said = []
    shards = override(asked, {"data.root": str(tmp_path / "shards")})
    assert recipe.fitted(shards, emit=said.append) == shards
    assert "WebDataset" in said[0].text and "--epochs" in said[0].text


def test_a_worker_of_full_keeps_its_images_with_more_of_them_as_far_as_the_job_allows():
    def fitted(workers, job="mnist", preset="full", kept=None, **asked):
        config = recipe.fitted(override(get(job, preset), {"workers": workers, **asked}), kept)
        return config.global_batch_size, config.lr, recipe.told(config, None)

    batch, lr = get("mnist", "full").global_batch_size, get("mnist", "full").lr
    for workers, factor in ((0, 1), (1, 1), (2, 2), ("1..3", 3), (4, 4), (64, 4)):
        size, rate, told = fitted(workers)
        assert (size, rate) == (factor * batch, factor * lr)
        words = (
            f"to {workers if workers == 64 else factor} workers: --global-batch-size {size} --lr {rate:g}."
        )
        assert words in told if factor > 1 else not told
    assert fitted(4, preset="quick")[2] == fitted(4, job="gan")[2] == ""
    assert fitted(4, global_batch_size=96)[:2] == (96, lr)
    assert fitted(4, lr=0.5)[:2] == (4 * batch, 0.5)
    # A run goes on as it began, with other workers and without the rule too.
    before = flatten(recipe.fitted(override(get("mnist", "full"), {"workers": 3})))
    assert fitted(1, kept=before)[:2] == fitted(8, kept=before)[:2] == (3 * batch, 3 * lr)
    assert fitted(4, kept=flatten(get("mnist", "full")))[:2] == (batch, lr)


def test_the_command_line_and_a_sweep_say_what_stays(asked):
    words = ["--data.source", "folder", "--data.root", asked.data.root]
    config = recipe.fitted(flags.parse("cifar10", [*words, "--epochs", "14", "--lr", "0.003"], "x"))
    assert (config.epochs, config.lr, config.global_batch_size) == (14, 0.003, 8)
    config, _, space = flags.parse_sweep("cifar10", words, {"epochs": "10..20"}, "x")
    assert config.epochs == 14 and space["epochs"].low == 10
    assert space["lr"].low < config.lr < space["lr"].high and config.lr < get("cifar10").lr


@pytest.mark.slow
def test_a_run_goes_on_as_it_began_when_images_are_added(asked, tmp_path):
    config = override(asked, {"storage": str(tmp_path), "name": "run", "wandb": "off", "threads": 1})
    config = override(
        config, {"model.width": 2, "model.growth": 1, "data.image_size": 8, "precision": "fp32"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SHORTER", 1.0)
        run = crayon.train(config)
    began = json.loads((run.path / "config.json").read_text())
    assert began["epochs"] == 14 and began["global_batch_size"] == 8
    assert run.result["epochs"] == 14
    Image.new("RGB", (12, 12)).save(tmp_path / "trees" / "train" / "ash" / "new.png")
    assert crayon.train(config).config == began  # though fitted now it would be something else
    assert recipe.fitted(config).epochs > 14
