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


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
