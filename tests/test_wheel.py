"""The distribution: it declares what it imports, and its wheel is all that is needed to train."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from crayon.system.host import DISTRIBUTION

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "grpc": "grpcio",
    "pillow_heif": "pillow-heif",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Of imports that aren't called like what is installed."""


def test_every_import_is_declared():
    requirements = importlib.metadata.requires(DISTRIBUTION)
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - sys.stdlib_module_names - {"crayon"}
    assert {DISTRIBUTIONS.get(name, name) for name in others} <= declared


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_environment(tmp_path):
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    # Of the 200 packages' modules only those that are imported are compiled.
    without = ("PYTHONPATH", "VIRTUAL_ENV", "UV_COMPILE_BYTECODE")
    env = {name: value for name, value in os.environ.items() if name not in without}

    def command(*words: str | Path) -> None:
        end = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert end.returncode == 0, end.stderr

    command(uv, "build", "--wheel", "--out-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "crayon/py.typed" in names and any(name.endswith("licenses/LICENSE") for name in names)

    # The versions that are here, which uv has kept.
    here = {d.name: d.version for d in importlib.metadata.distributions() if d.name != DISTRIBUTION}
    (tmp_path / "here.txt").write_text("\n".join(f"{name}=={version}" for name, version in here.items()))
    command(uv, "venv", "--python", sys.executable, tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    command(uv, "pip", "install", "--python", python, "--constraint", tmp_path / "here.txt", wheel)
    asked = ["--data.source", "digits", "--epochs", "1", "--global-batch-size", "32", "--workers", "0"]
    command(python.with_name("crayon"), "mnist", *asked, "--name", "wheel", "--wandb", "off")
    assert json.loads((tmp_path / "runs" / "wheel" / "result.json").read_text())["test/accuracy"] > 0.1
