"""Tests never touch the user's caches, runs, W&B account or Ray cluster."""

from __future__ import annotations

import os

import pytest

os.environ["RAY_ADDRESS"] = "local"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # networks this small are slower on two threads, and tests share the cores
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for the whole test run, so that procedural sets are rendered once."""
    before = os.environ.get("CRAYON_CACHE")
    os.environ["CRAYON_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("CRAYON_CACHE")
    if before is not None:
        os.environ["CRAYON_CACHE"] = before


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a classifier ("mnist") and an autoencoder of 16 x 16 digits and a "gan" of faces, as training
    leaves them; the first two with their results."""
    from helpers import tiny

    from crayon import session
    from crayon.storage import RunFolder

    storage = tmp_path_factory.mktemp("runs")
    for job in ("mnist", "autoencoder", "gan"):
        changes = {"epochs": 1, "data__size": 64} if job == "gan" else {}
        config = tiny(job, name=job, storage=str(storage), **changes)
        run = RunFolder(config.storage, job)
        run.create()
        trainer = session.build(config, session.load_data(config), run)
        trainer.fit()
        if job != "gan":
            session.conclude(trainer, "")
    return storage


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
