"""Imports go one way, and each heavy library has one door."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crayon

ROOT = Path(crayon.__file__).parent
ORDER = [
    "errors", "config", "system", "rng", "fast", "report", "data", "tasks", "training", "launch", "tuning", "use",
    "ops", "cli",
]  # fmt: skip
"""Each may import those before it."""
DOORS = {
    "ray.train": {"launch", "fast"},
    "ray.tune": {"tuning"},
    "ray.serve": {"use", "fast"},
    "fastapi": {"use"},
    "optuna": {"tuning"},
    "wandb": {"report"},
}
"""Which of them may import which library."""


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


def place(module: str) -> int:
    return ORDER.index(module.split(".")[0])


def test_the_package_has_these_names_and_no_others():
    found = {p.stem for p in ROOT.iterdir()} - {"__init__", "__pycache__", "py"}  # py.typed
    assert found == set(ORDER)


@pytest.mark.parametrize("folder", [name for name in ORDER if (ROOT / name).is_dir()])
def test_every_folder_says_what_it_is_for_in_one_sentence(folder):
    charter = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
    assert charter and charter.endswith(".") and "\n\n" not in charter


def ours(module: str) -> set[str]:
    """Modules of the package that one imports, wherever in it."""
    known = modules()
    found = {name.removeprefix("crayon.") for name in imports(known[module]) if name.startswith("crayon.")}
    return {name for name in found if name in known or f"{name}.__init__" in known}


@pytest.mark.parametrize("module", [m for m in modules() if m != "__init__"])
def test_imports_go_one_way(module):
    upward = {name for name in ours(module) if place(name) > place(module)}
    assert not upward, f"{module} imports upward: {upward}"


def test_no_two_files_import_each_other():
    graph = {m: ours(m) for m in modules()}
    mutual = {
        tuple(sorted((a, b))) for a in graph for b in graph[a] if b in graph and a in graph[b] and a != b
    }
    assert not mutual


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library):
    users = {
        m.split(".")[0]
        for m, path in modules().items()
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }
    assert users <= DOORS[library]


def test_ray_is_used_by_its_public_interface():
    """Where it isn't, the public one stands beside it."""
    private = re.compile(r"\bray\.[\w.]*\b(_internal|_private|_raylet|core)\b")
    apart = ("fast.", "ops.doctor.")
    assert not [
        m for m, path in modules().items() if not m.startswith(apart) and private.search(path.read_text())
    ]


def test_help_and_mistakes_load_neither_torch_nor_ray():
    code = (
        "import sys\nfrom crayon.cli import main as cli\n"
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
