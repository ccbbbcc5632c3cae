"""Untrained models, for the tests of what is made of generators (`pytest_plugins`)."""

from __future__ import annotations

import pytest
import torch
from helpers import trainer

import crayon


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Untrained models of two kinds, as checkpoints; the generator's normalisation has statistics of its own."""
    storage = tmp_path_factory.mktemp("runs")
    for job, changes in (("gan", {"data__size": 64}), ("mnist", {})):
        made = trainer(storage, job, **changes)
        if job == "gan":
            torch.manual_seed(1)
            for network in (made.networks, made.average.networks):
                for layer in network["generator"].modules():
                    if isinstance(layer, torch.nn.BatchNorm2d):
                        layer.running_mean.normal_(0, 0.3)
                        layer.running_var.uniform_(0.3, 2)
        made.save(best=True)
    return storage


@pytest.fixture(scope="session")
def model(untrained):
    return crayon.load(untrained / "gan", device="cpu")
