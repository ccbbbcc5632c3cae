"""What a sweep shows on a terminal: a real pseudo-terminal."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from rich.cells import cell_len
from sweep_shown import AFTER, BEFORE, COMMANDS, ODD, WIDE, script, sweep, trial
from terminal import bare, on_terminal


def in_pty(*arguments: str, records=(BEFORE, AFTER), columns=80, lines=30, **environment: str) -> str:
    return on_terminal([*script(records), *arguments], (lines, columns), **environment)


def test_a_terminal_shows_a_view_that_is_gone_at_the_end():
    raw = in_pty("result", columns=120)
    text = bare(raw)
    assert re.search(r"trials 4/20 \(1 failed\) ━+─+ best 99\.62 % \(trial 1\)  \d:\d\d left\r\n", text)
    assert re.search(r" 4  running +3/9 +97\.10 % +9  0\.00413  0\.871\r\n\r\n", text)
    assert re.search(r" 1  complete +9/9 +99\.62 % +9  0\.00413  0\.871\r\n", text)
    assert re.search(r"\x1b\[\d*;?36m", raw)  # in colour
    assert "\x1b[31m" not in raw  # what a message smuggles in
    end = bare(raw[raw.rindex("\x1b[2K") :])  # the last erased line is the view's
    assert "━" not in end
    assert end.count("complete ") == 2
    assert "\r\nbest            trial 1  val accuracy 99.62 % (preset 99.54 %)\r\n" in end
    assert f"train the best  {COMMANDS['train the best']}\r\n" in end  # no line break to copy
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(("columns", "record"), [(80, AFTER), (80, ODD), (60, ODD)])
def test_a_narrow_view_does_not_wrap(columns, record):
    text = bare(in_pty(records=[BEFORE, record], columns=columns))
    assert "state" in text
    assert max(cell_len(line) for line in re.split(r"[\r\n]+", text)) <= columns
    if record is AFTER:
        assert re.search(r"val accuracy +(epochs +)?lr +beta1\r\n", text)
    else:
        assert re.search(r"\+[678]\r\n", text)  # so many dimensions are left out


def test_a_low_terminal_gets_no_more_lines_than_it_has():
    record = sweep(*(trial(i, "running") for i in range(30)), trial(30))
    text = bare(in_pty(records=[BEFORE, record], lines=12))
    assert "and 23 more running\r\n" in text


def test_a_narrow_terminal_gets_every_dimension_in_the_end():
    raw = in_pty("result", records=[BEFORE, replace(ODD, metric="val/accuracy")])
    heads = [line for line in bare(raw).splitlines() if line.startswith("rank")]
    assert len(heads) > 1
    assert all(any(name in head for head in heads) for name in WIDE)


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


def test_no_color_is_respected():
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m", in_pty("result", NO_COLOR="1"))


def test_a_dumb_terminal_gets_plain_lines():
    assert "\x1b" not in in_pty("result", TERM="dumb")
