"""Untrained models, for the tests of what is made of generators (`pytest_plugins`)."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny

import crayon
from crayon.system.runfolder import RunFolder
from crayon.training import worker


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Untrained models of two kinds, as checkpoints; the generator's normalisation has statistics of its own."""
    storage = tmp_path_factory.mktemp("runs")
    for job, changes in (("gan", {"data__size": 64}), ("mnist", {})):
        config = tiny(job, name=job, storage=str(storage), **changes)
        run = RunFolder(config.storage, job)
        run.create()
        trainer = worker.build(config, worker.load_data(config), run)
        if job == "gan":
            torch.manual_seed(1)
            for networks in (trainer.networks, trainer.average.networks):
                for layer in networks["generator"].modules():
                    if isinstance(layer, torch.nn.BatchNorm2d):
                        layer.running_mean.normal_(0, 0.3)
                        layer.running_var.uniform_(0.3, 2)
        trainer.save(best=True)
    return storage


@pytest.fixture(scope="session")
def model(untrained):
    return crayon.load(untrained / "gan", device="cpu")
