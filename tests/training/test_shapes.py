"""Images that aren't square, in all three tasks: trained on, shown, and read afterwards as training read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pixels, trainer
from PIL import Image

import crayon
from crayon.config.settings import DataConfig
from crayon.data import load
from crayon.training import worker
from crayon.use.inputs import find
from crayon.use.settings import SourceConfig


@pytest.mark.parametrize("job", ["autoencoder", "gan"])
def test_they_are_trained_on_and_made(job, tmp_path):
    more = {"autoencoder": "24x16", "gan": "32x16"}
    size = {"data__source": "digits", "data__channels": 1, "data__image_size": more[job]}
    made = trainer(tmp_path, job, epochs=1, data__size=64, **size)
    made.fit()
    shape = (1, *map(int, more[job].split("x")))
    assert made.task.info.shape == shape
    model = crayon.load(tmp_path / job, device="cpu")
    assert tuple(model.decode(torch.zeros(2, model.task.latent_dim)).shape) == (2, *shape)
    picture = made.task.progress_image(made.networks, torch.device("cpu"))
    assert picture.height > 1.3 * picture.width  # a grid of 8 by 8


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> tuple[Path, Path]:
    """(a run that was trained on CT numbers, 24 high and 16 wide and padded; its images)."""
    root, noise = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    for split, (low, high) in {"train": (-1024, 3071), "test": (-500, 900)}.items():
        for name in ("bone", "lung"):
            (root / split / name).mkdir(parents=True)
            for i in range(12):
                array = noise.integers(low, high, (20, 30), np.int32, endpoint=True)
                array[0, :2] = low, high
                Image.fromarray(array).save(root / split / name / f"{i}.tif")
    data = {"source": "folder", "root": str(root), "image_size": "24x16", "fit": "pad", "size": None}
    augment = {"augment__flip": True, "augment__zoom": 0.1, "augment__cutout": 4}
    settings = {f"data__{k}": v for k, v in data.items()} | augment | {"global_batch_size": 8, "epochs": 1}
    made = trainer(root, "mnist", **settings)
    made.fit()
    worker.conclude(made, "")
    return root / "mnist", root


def test_the_range_of_the_training_images_is_recorded(scans):
    run, _ = scans
    config = json.loads((run / "config.json").read_text())
    assert (config["data.range"], config["data.image_size"]) == ("-1024..3071", "24x16")
    assert crayon.load(run).form[:3] == (24, 16, 1)


def test_files_are_read_afterwards_as_training_read_them(scans):
    run, root = scans
    data = DataConfig(source="folder", root=str(root), image_size="24x16", fit="pad", val_fraction=0.0)
    trained_on = load(data, labels=True).test
    model = crayon.load(run, device="cpu")
    found = find([str(root / "test")], SourceConfig()).open(model)
    read, bad = found.start(0, len(found))()
    assert np.array_equal(read, pixels(trained_on)) and not bad and read[:, :, 8:16].max() < 140
    image = Image.open(found.names[3])
    for given in (image, found.names[3]):
        assert torch.equal(model.prepare(given), pixels(trained_on)[3])
    source = SourceConfig(source="folder", root=str(root))
    assert np.array_equal(find([], source).open(model).start(0, len(found))()[0], read)
