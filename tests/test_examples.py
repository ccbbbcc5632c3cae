"""The examples do what they say: trained here and on two workers, resumed bit for bit, swept, exported."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from helpers import kill_with_family, rows
from PIL import Image
from test_trainer import final, same

import crayon
from crayon.config.names import override
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training import checkpoint, worker

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "fashion_mnist": [
        "--data.root",
        "data",
        "--model.width",
        "4",
        "--global-batch-size",
        "50",
        "--epochs",
        "3",
    ],
    "finetune": [
        *("--data.root", "photos", "--model.weights", "none", "--data.image-size", "32"),
        *("--global-batch-size", "8", "--epochs", "3", "--model.lr-factor", "1"),
    ],
    "vae": ["--epochs", "3", "--data.size", "300"],
}
COMMON = ["--wandb", "off", "--device", "cpu", "--storage", "runs", "--precision", "fp32", "--threads", "1"]


def idx(folder: Path, n: int, stem: str) -> None:
    """`n` images of noise, brighter for higher labels, in MNIST's files."""
    rng = np.random.default_rng(n)
    folder.mkdir(parents=True, exist_ok=True)
    labels = rng.integers(0, 10, n, np.uint8)
    images = rng.integers(0, 26, (n, 28, 28), np.uint8) + 25 * labels[:, None, None]
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (folder / f"{stem}-{kind}-ubyte").write_bytes(head + array.tobytes())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with small data for all examples, in which they are run."""
    for name in ("FashionMNIST", "MNIST"):
        idx(tmp_path / "data" / name / "raw", 2500, "train")
        idx(tmp_path / "data" / name / "raw", 500, "t10k")
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("dark", "light")):
        for split, n in (("train", 24), ("test", 6)):
            folder = tmp_path / "photos" / split / kind
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 128, (40, 36, 3), np.uint8) + 120 * k
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(name: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, EXAMPLES / f"{name}.py", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )


def example(name: str, *words: str) -> str:
    """What an example says that is run to its end."""
    process = start(name, *words)
    out = process.communicate(timeout=280)[0]
    assert process.returncode == 0, out
    return out


@pytest.mark.parametrize("name", ["fashion_mnist", "vae", pytest.param("finetune", marks=pytest.mark.faults)])
def test_an_example_trains_goes_on_after_kill_9_and_is_exported(name, place):
    command = [*SMALL[name], *COMMON, "--workers", "0", "--checkpoint.every-minutes", "0.001", "--name"]
    assert "report" in example(name, *command, "whole")
    process = start(name, *command, "broken")
    deadline = time.monotonic() + 100
    while checkpoint.latest(RunFolder("runs", "broken")) is None:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    kill_with_family(process)
    example(name, *command, "broken")
    assert same(final(place / "runs", "broken"), final(place / "runs", "whole"))
    assert [row["epoch"] for row in rows(place / "runs" / "broken")] == [1, 2, 3]
    formats = ["safetensors", "pt2"] if name == "vae" else ["safetensors"]  # torch.export takes its time
    said = example(name, "export", "runs/whole", "--out", "out", "--formats", *formats)
    assert ("largest difference from PyTorch 0" in said) == ("pt2" in formats)
    assert "README.md" in os.listdir("out")


@pytest.mark.faults
@pytest.mark.parametrize("name", SMALL)
def test_an_example_on_two_workers_and_in_a_sweep(name, place):
    """Its own classes and functions reach Ray's processes, where the file that has them isn't installed."""
    out = example(name, *SMALL[name], *COMMON, "--workers", "2", "--name", "two")
    assert json.loads((place / "runs" / "two" / "result.json").read_text())["workers"] == 2, out
    words = ["tune", *SMALL[name], *COMMON, "--trials", "2", "--concurrent", "1", "--name", "night"]
    example(name, *words, "--epochs", "1", "--space.epochs", "1")
    assert json.loads((place / "runs" / "night" / "result.json").read_text())["trials"]["complete"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.faults)])
def test_a_job_that_is_named_by_its_file(place, workers):
    """`crayon FILE.py:NAME`: trained on a worker, its images generated, and loaded where it is named."""
    job = f"{EXAMPLES / 'vae.py'}:job"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "crayon.cli", *words], capture_output=True, text=True, timeout=280
        )

    end = run(job, *SMALL["vae"], *COMMON, "--workers", "1", "--name", "faces")
    assert end.returncode == 0, end.stderr
    end = run(job, "generate", "runs/faces", "--seeds", "0..9", "--out", "faces", "--workers", workers)
    assert end.returncode == 0 and len(list(Path("faces").glob("block-*/*.png"))) == 10, end.stderr
    end = run("vae", "generate", "runs/faces", "--out", "other")
    assert end.returncode == 2 and "named by its module, as in my_jobs.py:flowers" in end.stderr
    with pytest.raises(crayon.BadInput, match="another job or preset"):
        crayon.load("runs/faces")


def test_plain_torch_ends_with_the_weights_of_the_engine(place):
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import mnist_plain as plain; torch.set_num_threads(1);"
        "torch.save(plain.train(*plain.training_images('data')).state_dict(), 'plain.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(EXAMPLES)], check=True, timeout=300)
    plain = torch.load("plain.pt", weights_only=True)

    changes = {"data.root": "data", "storage": "runs", "workers": 0, "precision": "fp32", "threads": 1}
    config = override(get("mnist", "instant"), changes | {"device": "cpu", "wandb": "off"})
    run = RunFolder(config.storage, "run")
    run.create()
    worker.run_worker(config, run, measure=False)
    engine = crayon.load("runs/run", "last").networks["classifier"].state_dict()

    assert plain.keys() == engine.keys()
    assert all(torch.equal(plain[name], engine[name]) for name in plain)
    assert plain["stem.norm.num_batches_tracked"] == 23  # of 2,300 images


CELL = """
import crayon
small = {"data.source": "digits", "data.image_size": 16, "data.size": 64, "model.width": 4}
config = crayon.preset("mnist", epochs=5000, global_batch_size=32, workers=0, name="cell", wandb="off", **small)
run = crayon.train(config, progress=True)
"""


def interrupted(client: nbclient.NotebookClient, place: Path) -> tuple[int, str]:
    """Run CELL, and interrupt it after some epochs: (the step that `crayon.Stopped` tells, what was printed)."""
    run = place / "runs" / "cell"
    before = len(rows(run)) if run.exists() else 0

    def interrupt() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if (run / "metrics.jsonl").exists() and len(rows(run)) >= before + 3:
                break
            time.sleep(0.02)
        asyncio.run(client.km.interrupt_kernel())

    cell = nbformat.v4.new_code_cell(CELL)
    watching = threading.Thread(target=interrupt)
    watching.start()
    with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
        client.execute_cell(cell, 0)
    watching.join()
    assert error.value.ename == "Stopped"
    step = re.fullmatch(r"Stopped after step ([\d,]+) of .*, with a checkpoint written\.", error.value.evalue)
    assert step, error.value.evalue
    return int(step[1].replace(",", "")), "".join(o.text for o in cell.outputs if o.output_type == "stream")


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel_and_a_cell_that_is_interrupted_goes_on(tmp_path):
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}})
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        first, said = interrupted(client, tmp_path)
        assert "Going on" not in said
        assert checkpoint.latest(RunFolder(str(tmp_path / "runs"), "cell")).step == first
        second, said = interrupted(client, tmp_path)
        assert f"Going on from the checkpoint of step {first:,}." in said and second > first
    epochs = [row["epoch"] for row in rows(tmp_path / "runs" / "cell")]
    assert epochs == list(range(1, len(epochs) + 1))
    assert not [o for o in outputs if o.output_type == "stream"], "nothing prints"
    results = [o["data"] for o in outputs if o.output_type == "execute_result"]
    accuracy, frame, *_, best = results
    assert float(accuracy["text/plain"]) > 0.9 and float(best["text/plain"]) > 0.9
    assert "val/accuracy" in frame["text/html"]
    assert sum("image/png" in data for data in results) == 2


@pytest.mark.parametrize(
    ("name", "most"), [("fashion_mnist", 40), ("finetune", 60), ("vae", 130), ("mnist_plain", 165)]
)
def test_examples_are_short(name, most):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= most
