"""Runs under variables that other programs, batch systems and notebooks leave behind: nothing breaks, and the figures,
weights and pictures are those of a tidy environment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import crayon, flags, rows, tiny

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint

WALL = {"seconds", "train_seconds", "eval_seconds", "images_per_second"}
SYSTEMS = {
    "tidy": "",
    "notebook": "MPLBACKEND=module://matplotlib_inline.backend_inline MATPLOTLIBRC=styles COLUMNS=5 FORCE_COLOR=1 "
    "TTY_COMPATIBLE=1 JPY_PARENT_PID=1 PYTHONHASHSEED=5",
    "batch": "HOME=/proc/nowhere XDG_CONFIG_HOME=/proc/nowhere TMPDIR=/nowhere LC_ALL=C PYTHONIOENCODING=ascii "
    "TZ=Nowhere/Land TERM=dumb MPLCONFIGDIR=/proc/nowhere http_proxy=http://127.0.0.1:9 "
    "HTTPS_PROXY=http://127.0.0.1:9 CUDA_VISIBLE_DEVICES= RANK=3 LOCAL_RANK=3 WORLD_SIZE=8 MASTER_ADDR=10.0.0.1 "
    "MASTER_PORT=1",
    "strict": "PYTHONWARNINGS=error PYTHONSAFEPATH=1 "
    "PYTHONPATH=nowhere:also TORCHDYNAMO_DISABLE=1 TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 PYTORCH_JIT=0 "
    "SKLEARN_WORKING_MEMORY=1 SCIPY_ARRAY_API=1 JOBLIB_MULTIPROCESSING=0 OPENBLAS_NUM_THREADS=garbage",
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Every run, all beside each other: {kind of system: (its folder, exit code, stdout, stderr)}."""
    processes = {}
    for name, words in SYSTEMS.items():
        variables = dict(word.split("=", 1) for word in words.split())
        folder = tmp_path_factory.mktemp(name)
        (folder / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nbackend: TkAgg\n")
        config = tiny("autoencoder", name="run", storage=str(folder), epochs=1)
        process = subprocess.Popen(
            [sys.executable, "-m", "crayon.cli", config.job, *flags(config)],
            env=os.environ | variables,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes[name] = folder, process
    return {name: (folder, *p.communicate(), p.returncode) for name, (folder, p) in processes.items()}


def left(run: Path) -> Any:
    result = json.loads((run / "result.json").read_text())
    pictures = {p.name: p.read_bytes() for p in (run / "pictures").glob("*.png") if "curves" not in p.name}
    assert pictures
    return (
        [{k: v for k, v in row.items() if k not in WALL} for row in rows(run)],
        {k: v for k, v in result.items() if k.startswith(("val/", "test/"))},
        {name: hashlib.sha256(data).hexdigest() for name, data in pictures.items()},
        checkpoint.latest(RunFolder.at(run)).digests,
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_is_the_same_whatever_it_inherits(started, system):
    folder, _, err, code = started[system]
    assert (code, err) == (0, "")
    assert left(folder / "run") == left(started["tidy"][0] / "run")


@pytest.mark.faults  # all libraries are compiled anew
def test_without_docstrings_and_assertions_a_run_is_the_same(started, tmp_path):
    config = tiny("autoencoder", name="run", storage=str(tmp_path), epochs=1)
    end = crayon(config.job, *flags(config), PYTHONOPTIMIZE="2", PYTHONDONTWRITEBYTECODE="1")
    assert (end.returncode, end.stderr) == (0, "")
    assert left(tmp_path / "run") == left(started["tidy"][0] / "run")


@pytest.mark.parametrize(
    "variables",
    [
        {"CRAYON_CACHE": "/proc/nowhere"},
        {"CRAYON_CACHE": "", "HOME": "/proc/nowhere"},
        {"CRAYON_CACHE": "~nobody-at-all/x"},
    ],
    ids=["cache", "home", "somebody's home"],
)
def test_no_place_for_the_cache_is_a_sentence(variables, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    config = tiny("mnist", name="run", storage=str(tmp_path))
    end = crayon(config.job, *flags(config), **variables)
    assert end.returncode == 2, end.stderr
    assert end.stderr.startswith("error: ") and end.stderr.count("\n") == 1
    assert "CRAYON_CACHE" in end.stderr
