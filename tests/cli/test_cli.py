"""When the command started, which every reported wall time counts from, and what it says of itself."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import JOBS

from crayon.cli import main as cli
from crayon.cli.flags import commands
from crayon.cli.parser import WIDEST
from crayon.errors import BadInput


def test_the_start_is_the_process_start_to_a_few_hundredths():
    code = "import time; time.sleep(0.3)\nfrom crayon.cli.main import command_start\nprint(command_start())"
    before = time.time()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    after = time.time()
    told = float(process.communicate()[0])
    assert before - 0.05 < told < after + 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mnst", "no job 'mnst'; did you mean mnist? The jobs are"),
        ("GAN", "did you mean gan?"),
        ("docter", "did you mean crayon doctor?"),
        ("generate --seeds 3", "generate is a command of a job, as in crayon gan generate;"),
        ("mnist tran", "no command 'tran'; did you mean train? There are"),
        ("mnist generate", "'generate', which is for gan. There are"),
        ("mnist --preset instnat", "did you mean instant? Choose --preset"),
        ("mnist --Dropout 0", "did you mean --model.dropout?"),
        ("mnist predict r --topk 3", "did you mean --top-k?"),
    ],
)
def test_what_resembles_a_misspelt_word_is_named(words, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        cli.run(None, words.split())


def test_a_script_outside_its_environment_says_so_in_one_sentence():
    script = Path(__file__).parents[2] / "jobs" / "mnist.py"
    bare = [sys.executable, "-I", "-S", script]
    ended = subprocess.run(bare, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(
        r"error: \S+ has no numpy, PIL, torch, ray; start this with uv run, .*\n", ended.stderr
    )


def test_a_help_says_all_of_a_commands_settings(capsys):
    assert cli.run("mnist", ["predict", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("RUN", "INPUT...", "--top-k INT", "--data.split {test,val,train}"))
    assert cli.run("gan", ["tune", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("--trials INT", "--task.extractor", "(default: classic)", "--space.")
    )


def test_commands_that_are_told_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, mode in (("mine.py", 0o644), ("own file.py", 0o644), ("tool.py", 0o755)):
        (tmp_path / name).touch(mode)
    assert [cli.script(p) for p in ("mine.py", "own file.py", "tool.py")] == [
        "python mine.py",
        "python 'own file.py'",
        "./tool.py",
    ]


@pytest.mark.parametrize("columns", [72, 101, 200])
@pytest.mark.parametrize("job", list(JOBS))
def test_no_line_of_a_help_breaks_before_it_is_full(job, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in commands(job):
        assert cli.run(job, [command, "--help-all"]) == 0
        told = capsys.readouterr().out.partition("\n")[2].splitlines()
        assert max(map(len, told)) <= columns
        column = next(line for line in told if line.startswith("  -h, --help ")).index("show")
        for line, after in itertools.pairwise(told):
            goes_on = after[:column].isspace() and not after[column : column + 1].isspace()
            if goes_on and line[column - 2 : column].isspace() and line[column:].strip():
                full = len(line) + 1 + len(after.split()[0])
                assert full > min(columns, WIDEST) - 3, f"{command}: {line!r} and then {after!r}"


def test_the_short_help_is_short_on_a_wide_terminal(capsys, monkeypatch):
    lengths = set()
    for columns in ("120", "240"):
        monkeypatch.setenv("COLUMNS", columns)
        assert cli.run("mnist", ["--help"]) == 0
        text = capsys.readouterr().out
        assert "--lr FLOAT" in text and "--optim.beta2" not in text
        lengths.add(len(text))
    assert len(lengths) == 1
