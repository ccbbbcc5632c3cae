"""What a sweep shows in a pipe (a real one), and the tables at its end."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from sweep_shown import AFTER, BEFORE, COMMANDS, ODD, SPACE, WIDE, script, sweep, trial

from crayon.tune.records import SweepRecord
from crayon.tune.space import Dimension
from crayon.tune.terminal import SweepDisplay, space_help


def plain(*records: SweepRecord, end: bool = False) -> list[str]:
    out = io.StringIO()
    with SweepDisplay(out) as display:
        for record in records:
            display.show(record)
        if end:
            display.result(records[-1], COMMANDS)
    return out.getvalue().splitlines()


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
    monkeypatch.setattr("crayon.tune.terminal.time.monotonic", lambda: now[0])
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


def test_help_lists_the_dimensions(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert space_help(SPACE).splitlines() == [
        "   --space.epochs      4..12",
        "   --space.lr          0.0005..0.02:log",
        "   --space.beta1       0.7..0.98",
        "   any setting can be a dimension by its dotted name: low..high, low..high:log, or a,b,c; one value fixes it.",
    ]
    assert len(space_help({}).splitlines()) == 1


def test_nothing_heavy_is_imported():
    code = "import sys, crayon.tune.terminal; print({'torch', 'ray', 'optuna'} & set(sys.modules))"
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
