"""Tests never touch the user's caches, runs, W&B account or Ray cluster."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

import pytest

# Tests use each other's helpers across folders.
sys.path += [str(p) for p in Path(__file__).parent.iterdir() if p.is_dir()]
os.environ["RAY_ADDRESS"] = "local"
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, children would inherit that it is ignored
os.environ["OMP_NUM_THREADS"] = (
    "1"  # networks this small are slower on two threads, and tests share the cores
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those beside this file first: long ones are among them, and none should be left alone at the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


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
    from helpers import trainer

    from crayon.training import worker

    storage = tmp_path_factory.mktemp("runs")
    for job in ("mnist", "autoencoder", "gan"):
        changes = {"epochs": 1, "data__size": 64} if job == "gan" else {}
        made = trainer(storage, job, **changes)
        made.fit()
        if job != "gan":
            worker.conclude(made, "")
    return storage


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, in which nobody is logged in."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def payload(tmp_path):
    """(a pickle, the file that it makes when it is loaded)."""
    mark = tmp_path / "executed"

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    harm = pickle.dumps(Harm())
    pickle.loads(harm)
    assert mark.exists()  # it would
    mark.rmdir()
    yield harm
    assert not mark.exists()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """digits/<class>/*.png, 20 of each of two classes, at twice the model's size."""
    import torch
    from helpers import tiny
    from PIL import Image

    from crayon.training import worker

    folder = tmp_path_factory.mktemp("photos") / "digits"
    images = worker.load_data(tiny("mnist")).test
    for label in (3, 7):
        (folder / str(label)).mkdir(parents=True)
        for k, i in enumerate((images.labels == label).nonzero()[:10, 0].tolist()):
            image = images.gather(torch.tensor([i]))[0, 0].numpy().repeat(2, 0).repeat(2, 1)
            Image.fromarray(image).save(folder / str(label) / f"{k}.png")
    return folder


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs `crayon JOB COMMAND ...` in this process: (exit code, standard output, standard error)."""
    from crayon.cli import main as cli

    monkeypatch.chdir(tmp_path)

    def call(job, *argv):
        with pytest.raises(SystemExit) as end:
            cli.main(job, [*map(str, argv), "--device", "cpu"])
        return (end.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def use(call, runs):
    """Runs "JOB COMMAND" with that job's run, and words, and returns what it says."""

    def use(words, *argv):
        job, command, *more = words.split()
        code, out, err = call(job, command, runs / job, *argv, *more)
        assert code == 0, err
        return out

    return use
