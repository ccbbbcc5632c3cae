"""What README and docs/ tell a reader to type: the command line understands it, and what is marked as run does run.

A block of bash or python may have a comment on the line before it: `<!-- run -->` (in order, in one folder for each
page), or `<!-- not run: WHY -->`; jobs that are started there must be understood nevertheless.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import JOBS

from crayon.cli import flags
from crayon.errors import BadInput

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    *(ROOT / "docs").glob("*.md"),
]


class Block(NamedTuple):
    """A block of code and how it is marked: "", "run" or "not run: WHY"."""

    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    pattern = r"(?:^ *<!-- (run|not run: [^\n]+) -->\n)?^ *```(bash|python)\n(.*?)^ *```"
    return [Block(*found) for found in re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)]


COMMANDS = sorted(
    {
        line.strip()
        for page in PAGES
        for block in blocks(page)
        if block.language == "bash"
        for line in block.text.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
        if not block.mark.startswith("not run") or re.search(r"jobs/\w+\.py", line)
    }
)


def understand(words: list[str]) -> None:
    """Parse a command of this project, in whatever way it is started. Raises BadInput, or ValueError if it is none."""
    while "=" in words[0]:  # variables
        words = words[1:]
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :] if "--" in words else words[3:]
    start = next(i for i, word in enumerate(words) if word.startswith("jobs/") or word == "crayon")
    if not re.fullmatch(r"((uv run|python)\b.*)?", " ".join(words[:start])):
        raise ValueError(f"{words[:start]} starts no job")
    job, rest = words[start], words[start + 1 :]
    if job == "crayon":
        job, rest = rest[0], rest[1:]
    else:
        assert (ROOT / job).exists()
        job = Path(job).stem
    command = rest[0] if rest and not rest[0].startswith("-") else "train"
    after = rest[1:] if command != "train" else rest
    if job == "doctor":
        parsed = flags.parse_doctor(rest)
    elif job == "cache":
        parsed = flags.parse_cache(rest)
    elif command == "train":
        parsed = flags.parse(job, after, job)
    elif command == "tune":
        asked, others = flags.dimensions(after, job)
        parsed = flags.parse_sweep(job, others, asked, job)
    elif command == "chaos":
        parsed = flags.parse_chaos(job, after, job)
    else:
        assert command in flags.commands(job)
        parsed = flags.parse_use(job, command, after, job)
    assert parsed is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_understands_every_command(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    understand(shlex.split(command, comments=True))


def test_a_wrong_command_would_be_noticed():
    for wrong in (
        "uv run jobs/gan.py --lrr 3",
        "uv run jobs/mnist.py generate runs/x",
        "uv run crayon cache burn",
    ):
        with pytest.raises((BadInput, AssertionError)):
            understand(shlex.split(wrong))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.mark == "run" for b in blocks(p))], ids=lambda p: p.name
)
def test_blocks_that_are_marked_as_run_do_run(page, tmp_path):
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
    }
    for block in blocks(page):
        if block.mark == "run":
            text = block.text.replace("uv run jobs/", "python jobs/")  # in the environment that is tested
            words = ["bash", "-e", "-c", text] if block.language == "bash" else [sys.executable, "-c", text]
            end = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert end.returncode == 0, end.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1300
    assert set(JOBS) == set(
        re.findall(r"^\| `uv run jobs/(\w+)\.py`", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
