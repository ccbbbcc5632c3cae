"""A runs model, loaded and used from Python."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import pixels, tiny, trainer
from PIL import Image

import crayon
from crayon.errors import BadInput
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training import worker
from crayon.training.checkpoint import entries, latest, load, save
from crayon.training.evaluation import evaluate


@pytest.fixture(scope="module")
def classifier(runs):
    return crayon.load(runs / "mnist", device="cpu")


def digits(count=200):
    return pixels(worker.load_data(tiny("mnist")).train)[:count]


def test_a_run_that_goes_on_can_be_loaded_at_any_moment(runs, tmp_path):
    shutil.copytree(runs / "mnist", tmp_path / "on")
    run = RunFolder(tmp_path, "on")
    newest = load(latest(run))

    def go_on():
        for step in range(newest.step + 1, newest.step + 31):
            save(run, dataclasses.replace(newest, step=step), keep=1)

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(go_on)
        while not training.done():
            assert crayon.load(tmp_path / "on", "last", device="cpu").classes
        training.result()


def test_a_classifier_gives_what_evaluation_gives(runs, classifier):
    images = digits()
    config = classifier.config
    splits = worker.load_data(config)
    stats = evaluate(classifier.task, classifier.networks, splits.val, config, worker.Group())
    ours = classifier.classify(pixels(splits.val))
    assert ours.dtype == torch.float32 and ours.shape == (len(splits.val), 10)
    confidence, predicted = ours.max(1)
    assert torch.equal(predicted, stats.rows["predicted"])
    assert (confidence - stats.rows["confidence"].float()).abs().max() < 2e-3
    assert torch.allclose(ours.sum(1), torch.ones(len(ours)), atol=1e-3)
    assert classifier.classes == list("0123456789")
    assert torch.equal(classifier.classify(images), classifier.classify(images.float() / 255))


def test_a_result_does_not_depend_on_the_images_around_it(runs):
    images = digits(150)
    for job, work in (("mnist", "classify"), ("autoencoder", "encode"), ("autoencoder", "reconstruct")):
        use = getattr(crayon.load(runs / job, device="cpu"), work)
        assert torch.equal(torch.cat([use(images[:7]), use(images[7:8]), use(images[8:])]), use(images))
    gan, seeds = crayon.load(runs / "gan", device="cpu"), torch.arange(100)
    made, latents = gan.generate(seeds), gan.latents(seeds)
    assert torch.equal(gan.generate(seeds[70:75]), made[70:75])
    assert torch.equal(gan.decode(latents[20:21]), gan.decode(latents)[20:21])
    assert made.dtype == torch.uint8 and (gan.decode(latents).int() - made.int()).abs().max() <= 1
    scores = gan.score(made)
    assert scores.shape == (100,) and len(scores.unique()) > 50
    assert torch.equal(torch.cat([gan.score(made[:3]), gan.score(made[3:])]), scores)


def test_errors_are_those_of_the_reconstructions(runs):
    model, images = crayon.load(runs / "autoencoder", device="cpu"), digits(30)
    rounded = ((model.reconstruct(images).float() - images.float()) / 255).square().flatten(1).mean(1)
    assert torch.allclose(model.errors(images), rounded, atol=1e-3)
    assert model.encode(images).shape == (30, 32)
    assert model.encode(images[:0]).shape == (0, 32)


def test_pictures_are_prepared_as_a_folder_is(classifier, tmp_path):
    big = Image.fromarray((np.arange(60 * 40 * 3) % 251).astype(np.uint8).reshape(60, 40, 3))
    big.save(tmp_path / "a.png")
    prepared = classifier.prepare(big)
    assert prepared.shape == (1, 16, 16) and prepared.dtype == torch.uint8
    assert torch.equal(prepared, classifier.prepare(tmp_path / "a.png"))


def test_checkpoints_by_name_step_folder_and_sweep(runs, classifier, tmp_path):
    found = entries(RunFolder(runs, "mnist"))
    assert crayon.load("mnist", "last", storage=str(runs)).step == found[-1].step
    assert crayon.load(runs / "mnist", found[0].step).step == found[0].step
    assert crayon.load(found[0].path).step == found[0].step
    assert classifier.step == next(e.step for e in found[::-1] if e.best)
    shutil.copytree(runs / "mnist", tmp_path / "sweep" / "best")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert crayon.load(tmp_path / "sweep").uri.startswith(str(tmp_path / "sweep" / "best"))


def test_what_cannot_be_loaded_is_said_in_a_sentence(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, left in (("cut", -100), ("stump", 99)):
        shutil.copytree(runs / "mnist", tmp_path / name)
        for file in (tmp_path / name / "checkpoints").iterdir():
            file.write_bytes(file.read_bytes()[:left])
    shutil.copytree(runs / "mnist", tmp_path / "linked")
    for file in (tmp_path / "linked" / "checkpoints").iterdir():
        file.unlink()
        file.symlink_to(runs / "mnist" / "checkpoints" / file.name)
    for run, checkpoint, *words in (
        (tmp_path / "linked", "best", "is a link", "aren't followed"),
        (runs / "other", "best", "There is no run", "gan, mnist"),
        (runs / "mnist", 7, "no complete checkpoint of step 7", "has those of", "27"),
        (runs / "mnist", "newest", "best, last"),
        (tmp_path / "empty", "best", "no complete checkpoint"),
        (tmp_path / "cut", "best", "Checkpoint", str(tmp_path / "cut"), "can't be read"),
        (tmp_path / "stump", "best", "damaged or cut off"),
    ):
        with pytest.raises(BadInput) as error:
            crayon.load(run, checkpoint)
        assert all(word in str(error.value) for word in words), error.value


def test_a_setting_that_came_later_has_its_default_not_the_presets(tmp_path):
    trainer(tmp_path, "cifar10", preset="full").save()
    run = RunFolder(tmp_path, "cifar10")
    old = load(latest(run))
    del old.config["model.activation"]
    save(run, old)
    assert crayon.load(run.path, device="cpu").config.model.activation == "relu"
    assert get("cifar10", "full").model.activation == "gelu"  # or this shows nothing


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.width": 9}, "doesn't hold the model that its settings describe"),
        ({"model.width": 10_000_000}, "doesn't hold the model that its settings describe"),  # 400 TB
        ({"model.height": 3}, "a setting that this version"),
        ({"job": "vae"}, "another job or preset"),
    ],
)
def test_settings_of_another_version_are_said(runs, tmp_path, change, says):
    theirs = load(entries(RunFolder(runs, "mnist"))[-1])
    run = RunFolder(tmp_path, "run")
    run.create()
    save(run, dataclasses.replace(theirs, config=theirs.config | change))
    with pytest.raises(BadInput, match=says):
        crayon.load(run.path)
