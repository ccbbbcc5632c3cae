"""What a sweep shows on a terminal: a real pseudo-terminal."""

from __future__ import annotations

import re
import shlex
import subprocess
import time

import pytest
from rich.cells import cell_len
from sweep_records import AFTER, BEFORE, COMMANDS, WIDE, record, script, sweep, trial
from terminal import bare, on_terminal


def in_pty(*arguments: str, records=(BEFORE, AFTER), columns=80, lines=30, **environment: str) -> str:
    return on_terminal([*script(records), *arguments], (lines, columns), **environment)


def test_a_terminal_shows_a_view_that_is_gone_at_the_end():
    raw = in_pty("result", columns=120)
    text = bare(raw)
    state = r"trials 4/20 \(1 pruned, 1 failed\) ━+─+ best 99\.62 % \(trial 1\)  \d:\d\d, \d:\d\d left\r\n"
    assert re.search(state, text) and "0:00  preparing the sweep" in text
    assert re.search(r" 1  complete +9/9 +99\.62 % +40 s +9  0\.004132  0\.8712\s*\r\n", text)
    assert re.search(r" 4  running +3/9 +97\.10 % +40 s +9  0\.004132  0\.8712\s*\r\n", text)
    assert re.search(r"\x1b\[\d*;?36m", raw)  # in colour
    assert "\x1b[31m" not in raw  # what a message smuggles in
    end = bare(raw[raw.rindex("\x1b[2K") :])  # the last erased line is the view's
    assert "━" not in end
    assert end.count("complete ") == 2
    assert "\r\nbest            trial 1  val accuracy 99.62 % (preset 99.54 %)\r\n" in end
    # What is copied and pasted is the command, and no word of it is broken in two.
    lines = end[end.index("train the best") :].split("\r\n")
    command = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
    copied = "\n".join(lines[: command + 1]).removeprefix("train the best  ")
    assert command > 1 and max(map(len, lines)) <= 120
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {copied}"], capture_output=True, text=True, check=True
    )
    assert words.stdout.splitlines() == shlex.split(COMMANDS["train the best"])
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(("columns", "left_out"), [(100, 0), (80, 3), (60, 6)])
def test_a_narrow_terminal_leaves_out_the_last_settings(columns, left_out):
    text = bare(in_pty("result", records=[BEFORE, record(12, WIDE)], columns=columns))
    rows = [line for line in re.split(r"[\r\n]+", text) if re.match(r" *5  complete +4/4 +99\.64 % ", line)]
    assert len(rows) >= 2 and max(map(cell_len, rows)) <= columns  # in the view and at the end
    assert (f"and {left_out} more settings" in text) == bool(left_out)


def test_a_low_terminal_gets_no_more_lines_than_it_has():
    record = sweep(*(trial(i, "running") for i in range(30)), trial(30))
    text = bare(in_pty(records=[BEFORE, record], lines=12))
    assert "and 25 more running" in text


def test_a_terminal_is_left_in_order_when_the_sweep_fails():
    raw = in_pty("fail")
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")


def test_many_threads_on_a_terminal():
    started = time.monotonic()
    raw = in_pty("threads", records=[BEFORE, AFTER])
    text = bare(raw)
    assert time.monotonic() - started < 25  # no deadlock
    assert text.count("line 39\r\n") == 4
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")


def test_the_view_is_not_redrawn_more_than_four_times_a_second():
    started = time.monotonic()
    text = bare(in_pty("often"))
    assert 2 <= text.count("trials 4/20") <= 4 * (time.monotonic() - started) + 2


@pytest.mark.parametrize(
    ("environment", "absent"),
    [({"NO_COLOR": "1"}, r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m"), ({"TERM": "dumb"}, r"\x1b")],
)
def test_terminals_without_colour_or_cursor_are_respected(environment, absent):
    assert not re.search(absent, in_pty("result", **environment))
