"""What a sweep shows on a terminal (a real pseudo-terminal) and in a pipe (a real one)."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace

import pytest
from rich.cells import cell_len

from crayon.sweep.display import SweepDisplay, space_help
from crayon.sweep.records import SweepRecord, TrialRecord
from crayon.sweep.space import Dimension

SPACE = {
    "epochs": Dimension(name="epochs", kind="int", low=4, high=12),
    "lr": Dimension(name="lr", kind="float", low=5e-4, high=2e-2, log=True),
    "beta1": Dimension(name="beta1", kind="float", low=0.7, high=0.98),
}
COMMANDS = {"train the best": "crayon train mnist --epochs 9 --lr 0.0041324 " + "--and-more " * 20 + "--end"}

SCRIPT = """
import sys, threading, time
from math import inf, nan
from crayon.sweep.display import SweepDisplay
from crayon.sweep.records import SweepRecord, TrialRecord
from crayon.sweep.space import Dimension
with SweepDisplay() as display:
    for i, record in enumerate(RECORDS):
        display.show(record, 133.2)
        if i == 0:
            display.message("Measuring [bold]x\\x1b[31m")
    time.sleep(0.4)
    if "fail" in sys.argv:
        raise ValueError
    if "result" in sys.argv:
        display.result(record, COMMANDS)
    if "often" in sys.argv:
        for _ in range(100):
            display.show(record)
            time.sleep(0.01)
    if "threads" in sys.argv:
        def work():
            for i in range(40):
                display.show(record, i)
                display.message(f"line {i}")
                time.sleep(0.01)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
"""


def trial(number: int, state: str = "complete", value: float | None = 0.99, **more) -> TrialRecord:
    params = {"epochs": 9, "lr": 0.0041324, "beta1": 0.871234}
    known = {"epoch": 9, "epochs": 9, "seconds": 40.0, "params": params}
    return TrialRecord(number=number, state=state, value=value, **known | more)


def sweep(*trials: TrialRecord, **more) -> SweepRecord:
    known = {
        "name": "s",
        "job": "mnist",
        "metric": "val/accuracy",
        "direction": "max",
        "objective": "quality",
    }
    return SweepRecord(trials=trials, **known | {"space": SPACE, "planned": 20} | more)


BEFORE = sweep(trial(0, "running", 0.95, epoch=3), trial(1, "running", None, epoch=0))
AFTER = sweep(
    trial(0, value=0.9954),
    trial(1, value=0.9962),
    trial(2, "pruned", 0.98713, epoch=2),
    trial(3, "failed", None, epoch=0),
    trial(4, "running", 0.971, epoch=3),
)
LONG = "model.a_rather_long_name_of_a_setting_number"
WIDE = {
    f"{LONG}{i}": Dimension(name=f"{LONG}{i}", kind="choice", choices=("a\x1b[31mb", True, None, "x" * 40))
    for i in range(8)
}
ODD = sweep(
    trial(0, value=float("nan"), seconds=float("nan"), params={}),
    trial(1, value=None, seconds=None, params=dict.fromkeys(WIDE)),
    trial(2, value=float("inf"), params=dict.fromkeys(WIDE, True), epochs=0),
    trial(
        3,
        value=0.5,
        params=dict(zip(WIDE, ("a\x1b[31mb", 3, 0.25, None, "x" * 40, False, "日本", ""), strict=True)),
    ),
    trial(4, "running", None, params=dict.fromkeys(WIDE, "x" * 40)),
    trial(5, "waiting", None, params={}),
    space=WIDE,
    metric="val/odd\x07name",
    planned=0,
)


def plain(*records: SweepRecord, end: bool = False) -> list[str]:
    out = io.StringIO()
    with SweepDisplay(out) as display:
        for record in records:
            display.show(record)
        if end:
            display.result(records[-1], COMMANDS)
    return out.getvalue().splitlines()


def script(records) -> list[str]:
    text = SCRIPT.replace("RECORDS", repr(list(records))).replace("COMMANDS", repr(COMMANDS))
    return [sys.executable, "-c", text]


def in_pty(*arguments: str, records=(BEFORE, AFTER), columns=80, lines=30, **environment: str) -> str:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*script(records), *arguments],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env=env | {"TERM": "xterm-256color"} | environment,
    )
    os.close(follower)
    output, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline:
        ready, _, _ = select.select([leader], [], [], 0.2)
        if ready:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            output += data
    os.close(leader)
    process.wait(10)
    return output.decode()


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_pipe_tells_each_end_once():
    text = plain(BEFORE, AFTER, AFTER, replace(AFTER, trials=(*AFTER.trials[:4], trial(4, value=0.97))))
    assert text == [
        "trials 0/20   trial 0 epoch 3/9, trial 1 epoch 0/9",
        "trial  0  complete after epoch 9/9     val accuracy 99.54 %   epochs  9  lr 0.00413  beta1 0.871   "
        "best 99.62 % (trial 1)",
        "trial  1  complete after epoch 9/9     val accuracy 99.62 %   epochs  9  lr 0.00413  beta1 0.871   "
        "best 99.62 % (trial 1)",
        "trial  2  pruned after epoch 2/9       val accuracy 98.71 %   epochs  9  lr 0.00413  beta1 0.871   "
        "best 99.62 % (trial 1)",
        "trial  3  failed after epoch 0/9       val accuracy       –   epochs  9  lr 0.00413  beta1 0.871   "
        "best 99.62 % (trial 1)",
        "trial  4  complete after epoch 9/9     val accuracy 97.00 %   epochs  9  lr 0.00413  beta1 0.871   "
        "best 99.62 % (trial 1)",
    ]


def test_a_failed_trial_that_is_tried_again_is_told_again():
    text = plain(BEFORE, sweep(trial(0, "failed", None)), sweep(trial(0, "running")), sweep(trial(0)))
    assert [line.split()[:3] for line in text[1:]] == [["trial", "0", "failed"], ["trial", "0", "complete"]]


def test_a_resumed_sweep_does_not_tell_old_trials_again():
    text = plain(AFTER, AFTER, replace(AFTER, trials=(*AFTER.trials[:4], trial(4, value=0.97))))
    assert text[0] == "Going on with 4 finished trials; best 99.62 % (trial 1)."
    assert [line.split()[:3] for line in text[1:]] == [["trial", "4", "complete"]]
    assert plain(sweep(trial(0, "failed", None)))[0] == "Going on with 1 finished trial."


def test_progress_in_a_pipe_is_rare(monkeypatch):
    now = [5.0]  # a machine that has just started
    monkeypatch.setattr("crayon.sweep.display.time.monotonic", lambda: now[0])
    out = io.StringIO()
    display = SweepDisplay(out)
    for _ in range(900):
        now[0] += 0.1
        display.show(AFTER, 133.2)
    text = out.getvalue().splitlines()
    assert len(text) == 3  # in 90 seconds: at once, and one every thirty
    line = "trials 4/20 (1 failed)   trial 4 epoch 3/9   best 99.62 % (trial 1)  2:13 left"
    assert text[1:] == [line, line]


def test_threads_tell_each_end_once():
    out = io.StringIO()
    with SweepDisplay(out) as display:
        display.show(BEFORE)
        threads = [threading.Thread(target=display.show, args=(AFTER,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [line[:8] for line in out.getvalue().splitlines()[1:]] == [f"trial  {i}" for i in range(4)]


def test_a_pipe_gets_no_control_characters_and_no_broken_lines():
    done = subprocess.run(
        [*script([BEFORE, AFTER, ODD]), "result"],
        capture_output=True,
        text=True,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40", "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    assert "Measuring [bold]x?[31m" in done.stdout.splitlines()
    assert f"train the best  {COMMANDS['train the best']}" in done.stdout.splitlines()
    (head,) = [line for line in done.stdout.splitlines() if line.startswith("rank")]
    assert all(name in head.split() for name in WIDE)
    assert "x" * 40 in done.stdout
    assert done.stderr == ""


def test_the_final_table():
    text = plain(BEFORE, AFTER, end=True)
    table = text[text.index("") + 1 :]
    assert [re.split(r"\s{2,}", line.strip()) for line in table[:4]] == [
        ["rank", "trial", "state", "val accuracy", "training time", "trained", "epochs", "lr", "beta1"],
        ["1", "1", "complete", "99.62 %", "40 s", "9/9", "9", "0.00413", "0.871"],
        ["2", "preset 0", "complete", "99.54 %", "40 s", "9/9", "9", "0.00413", "0.871"],
        ["3", "2", "pruned", "98.71 %", "40 s", "2/9", "9", "0.00413", "0.871"],
    ]
    assert len({len(line) for line in table[:4]}) == 1
    assert table[4:] == [
        "",
        "trials          2 complete, 1 failed, 1 pruned, 1 running",
        "best            trial 1  val accuracy 99.62 % (preset 99.54 %)",
        f"train the best  {COMMANDS['train the best']}",
    ]


def test_the_ten_best_and_the_rest_of_the_front():
    trials = [trial(i, value=0.9 + i / 1000, seconds=40.0 + (i % 2)) for i in range(14)]
    trials[1] = replace(trials[1], seconds=0.5)
    quality = plain(BEFORE, sweep(*trials), end=True)
    assert sum(bool(re.match(r" +\d+ +\d+  complete", line)) for line in quality) == 10
    text = plain(BEFORE, sweep(*trials, objective="pareto"), end=True)
    rows = [line.split() for line in text if re.match(r" +\d+ +\d+  complete", line)]
    assert [int(row[0]) for row in rows] == [*range(1, 11), 13]
    assert [int(row[1]) for row in rows if "front" in row] == [13, 12, 1]


def test_the_smallest_is_the_best_where_that_is_asked():
    record = sweep(trial(1, value=12.5), trial(2, value=3.25), metric="val/fid_x", direction="min")
    text = plain(BEFORE, record, end=True)
    assert "best            trial 2  val fid x 3.25" in text
    assert "best 3.25 (trial 2)" in text[1]


def test_the_preset_as_the_best():
    assert "best            trial 0  val accuracy 99.00 % (the preset)" in plain(
        BEFORE, sweep(trial(0)), end=True
    )


def test_odd_records():
    assert plain(sweep(space={}, planned=0), end=True)[0] == "trials 0/1"
    text = plain(BEFORE, ODD, sweep(trial(0, value=1.0, params={}), space={}), end=True)
    assert any("val odd?name" in line for line in text)
    for low, high, log in ((0.0, 0.0, False), (1e-7, 1e-3, True), (1.0, 1e9, True), (None, None, False)):
        space = {"lr": Dimension(name="lr", kind="float", low=low, high=high, log=log)}
        for value in (0.00123, 0, -1.5, float("nan"), float("inf"), 3e8, None, "x", True):
            plain(BEFORE, sweep(trial(0, params={"lr": value}), space=space), end=True)


@pytest.mark.parametrize(
    ("low", "high", "log", "value", "text"),
    [
        (5e-4, 2e-2, True, 0.0123, "0.01230"),
        (1e-7, 1e-3, True, 0.000413, "4.13e-04"),
        (0.0, 0.4, False, 0.1, "0.100"),
        (10.0, 5000.0, False, 1234.56, "1235"),
    ],
)
def test_all_values_of_a_dimension_have_as_many_decimals(low, high, log, value, text):
    space = {"x": Dimension(name="x", kind="float", low=low, high=high, log=log)}
    assert f"   x {text}   " in plain(BEFORE, sweep(trial(0, params={"x": value}), space=space))[1]


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


def test_help_lists_the_dimensions():
    assert space_help(SPACE).splitlines() == [
        "   --space.epochs      4..12",
        "   --space.lr          0.0005..0.02:log",
        "   --space.beta1       0.7..0.98",
        "   any setting can be a dimension by its dotted name: low..high, low..high:log, or a,b,c; one value fixes it.",
    ]
    assert len(space_help({}).splitlines()) == 1


def test_nothing_heavy_is_imported():
    code = "import sys, crayon.sweep.display; print({'torch', 'ray', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_belongs_beside_the_value_is_shown_beside_it():
    trials = [
        trial(0, value=12.5, metrics={"val/recall": 0.25}),
        trial(1, value=3.25),  # of an earlier evaluation nothing else is known
    ]
    record = sweep(*trials, metric="val/fd_x", direction="min", beside=("val/recall",))
    text = plain(BEFORE, record, end=True)
    (head,) = [line for line in text if line.startswith("rank")]
    rows = text[text.index(head) :][1:3]
    assert re.split(r"\s{2,}", head)[:6] == [
        "rank",
        "trial",
        "state",
        "val fd x",
        "val recall",
        "training time",
    ]
    assert [re.split(r"\s{2,}", row.strip())[3:5] for row in rows] == [["3.25", "–"], ["12.5", "25.00 %"]]
