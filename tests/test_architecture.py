"""Imports go one way, and each heavy library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crayon

ROOT = Path(crayon.__file__).parent
LAYERS = [
    {"cli"},
    {"arguments"},
    {"sweep", "doctor", "chaos", "use"},
    {"launch", "progress"},
    {"workers"},
    {"lean", "loopback", "interface"},
    {"elastic"},
    {"preflight", "session", "inference", "runs"},
    {"trainer", "report"},
    {"evaluation", "saver", "step", "train_state"},
    {"tasks", "data", "optim", "checkpoint", "tracking", "wandb_process", "meter", "mailbox"},
    {
        "models",
        "metrics",
        "figures",
        "style",
        "storage",
        "disk",
        "objectstore",
        "lease",
        "distributed",
        "shared_mean",
        "environment",
        "presets",
        "address",
        "own_cluster",
        "cluster",
        "capacity",
        "victims",
    },
    {
        "dotted",
        "secrets",
        "private",
        "allocator",
        "collector",
        "threads",
        "devices",
        "child",
        "lasting",
        "config",
        "rng",
        "errors",
    },
]
DOORS = {
    "ray.train": {"workers", "lean", "loopback", "interface", "elastic"},
    "ray.tune": {"sweep.trial", "sweep.tuner"},
    "ray.serve": {"use.serve"},
    "fastapi": {"use.web"},
    "optuna": {"sweep.study", "sweep.database"},
    "wandb": {"tracking", "wandb_process"},
    "tyro": {"arguments"},
}
"""Which modules may import which library."""


def modules() -> dict[str, Path]:
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, TYPE_CHECKING blocks excepted."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> int | None:
    top = module.split(".")[0]
    return next((i for i, names in enumerate(LAYERS) if top in names), None)


def test_every_module_has_a_layer():
    assert not [m for m in modules() if m != "__init__" and layer(m) is None]


# What a task is made of (its protocol's types) is shared by the data package and the tasks.
@pytest.mark.parametrize("module", [m for m in modules() if m != "__init__"])
def test_imports_go_one_way(module):
    ours = {name.removeprefix("crayon.") for name in imports(modules()[module]) if name.startswith("crayon.")}
    upward = {name for name in ours if layer(name) is not None and layer(name) < layer(module)}
    assert not upward, f"{module} imports upward: {upward}"


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library):
    users = {
        m
        for m, path in modules().items()
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }
    assert users <= DOORS[library]


def test_help_and_mistakes_load_neither_torch_nor_ray():
    code = (
        "import sys\nfrom crayon import cli\n"
        "try: cli.main('mnist', sys.argv[1:])\nexcept SystemExit as end: code = end.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules), set(sys.modules) & {'torch', 'ray'}\n"
        "sys.exit(code)"
    )
    for arguments, code_wanted in ((["--help"], 0), (["--lrr", "3"], 2), (["--epochs", "0"], 2)):
        end = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert end.returncode == code_wanted, end.stderr


def test_jobs_are_short_and_executable():
    jobs = sorted((ROOT.parents[1] / "jobs").glob("*.py"))
    assert [p.stem for p in jobs] == ["autoencoder", "cifar10", "gan", "mnist"]
    for path in jobs:
        text = path.read_text()
        assert len(text.splitlines()) <= 20
        assert text.startswith("#!/usr/bin/env python")
        assert path.stat().st_mode & 0o111
