"""What a sweep shows in a pipe (a real one), and the tables at its end."""

from __future__ import annotations

import io
import os
import re
import subprocess
import threading
from dataclasses import replace

from sweep_records import AFTER, BEFORE, COMMANDS, SPACE, WIDE, record, script, sweep, trial

from crayon.tuning.records import SweepRecord
from crayon.tuning.terminal import SweepDisplay, space_help

LATER = replace(AFTER, trials=(*AFTER.trials[:4], trial(4, value=0.97)))


def plain(*records: SweepRecord, end: bool = False) -> list[str]:
    out = io.StringIO()
    with SweepDisplay(out) as display:
        for shown in records:
            display.show(shown)
        if end:
            display.result(records[-1], {}, COMMANDS)
    return out.getvalue().splitlines()


def test_a_pipe_gets_a_line_for_each_end():
    settings = "training time 40 s  epochs 9  lr 0.004132  beta1 0.8712   best 99.62 % (trial 1)"
    assert plain(BEFORE, AFTER, AFTER, LATER) == [
        "trials 0/20   trial 0 epoch 3/9, trial 1 epoch 0/9   0:00",
        f"trial  0  complete after epoch 9/9     val accuracy 99.54 %   {settings}",
        f"trial  1  complete after epoch 9/9     val accuracy 99.62 %   {settings}",
        f"trial  2  pruned after epoch 2/9       val accuracy 98.71 %   {settings}",
        f"trial  3  failed after epoch 0/9       val accuracy       –   {settings}",
        f"trial  4  complete after epoch 9/9     val accuracy 97.00 %   {settings}",
    ]


def test_a_resumed_sweep_does_not_show_old_trials_again():
    text = plain(AFTER, AFTER, LATER)
    assert text[0] == "Going on with 4 finished trials; best 99.62 % (trial 1)."
    assert [line.split()[:3] for line in text[1:]] == [["trial", "4", "complete"]]
    # One that failed and is tried again has another line.
    text = plain(sweep(trial(0, "failed", None)), sweep(trial(0, "running")), sweep(trial(0)))
    assert text[0] == "Going on with 1 finished trial."
    assert [line.split()[:3] for line in text[1:]] == [["trial", "0", "complete"]]


def test_progress_in_a_pipe_is_rare(monkeypatch):
    now = [5.0]  # a machine that has just started
    monkeypatch.setattr("crayon.tuning.terminal.time.monotonic", lambda: now[0])
    out = io.StringIO()
    display = SweepDisplay(out)
    for _ in range(900):
        now[0] += 0.1
        display.show(AFTER, 133.2)
    text = out.getvalue().splitlines()
    assert len(text) == 3  # in 90 seconds: at once, and one every thirty
    line = "trials 4/20 (1 pruned, 1 failed)   trial 4 epoch 3/9   best 99.62 % (trial 1)   "
    assert text[1:] == [f"{line}{times}" for times in ("0:30, 2:13 left", "1:00, 2:13 left")]


def test_what_is_left_is_told_by_the_pace_of_this_command(monkeypatch):
    """Two of twenty were there before; in 80 seconds it came to the middle of the fourth."""
    now = [5.0]
    monkeypatch.setattr("crayon.tuning.terminal.time.monotonic", lambda: now[0])
    out = io.StringIO()
    display = SweepDisplay(out)
    now[0] += 20
    display.show(sweep(trial(0), trial(1), trial(2, "running", epoch=0)))
    now[0] += 80
    more = trial(2), trial(3, "running", epoch=4, epochs=8)
    display.show(sweep(trial(0), trial(1), *more, *(trial(4 + i, "running", epoch=0) for i in range(2))))
    now[0] += 40
    display.show(sweep(trial(0), trial(1), *more))
    assert out.getvalue().splitlines()[-1].endswith("2:20, 22:00 left")


def test_threads_show_each_end_once():
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
        [*script([BEFORE, AFTER, record(12, WIDE)]), "result"],
        capture_output=True,
        text=True,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40", "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    lines = done.stdout.splitlines()
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    assert {"Measuring [bold]x?[31m", f"train the best  {COMMANDS['train the best']}"} <= set(lines)
    (head,) = [line for line in lines if line.startswith("   trial")]
    assert all(name in head.split() for name in WIDE)
    assert done.stderr == ""


def test_the_final_table():
    text = plain(BEFORE, AFTER, end=True)
    table = text[text.index("") + 1 :]
    assert [re.split(r"\s{2,}", line.strip()) for line in table[:4]] == [
        ["trial", "state", "epoch", "val accuracy", "training time", "epochs", "lr", "beta1"],
        ["1", "complete", "9/9", "99.62 %", "40 s", "9", "0.004132", "0.8712"],
        ["preset 0", "complete", "9/9", "99.54 %", "40 s", "9", "0.004132", "0.8712"],
        ["2", "pruned", "2/9", "98.71 %", "40 s", "9", "0.004132", "0.8712"],
    ]
    assert len({len(line) for line in table[:4]}) == 1
    assert table[4:] == [
        "",
        "trials          2 complete, 1 pruned, 1 failed, 1 running",
        "best            trial 1  val accuracy 99.62 % (preset 99.54 %)",
        f"train the best  {COMMANDS['train the best']}",
    ]


def test_the_ten_best_and_the_rest_of_the_front():
    trials = [trial(i, value=0.9 + i / 1000, seconds=40.0 + (i % 2)) for i in range(14)]
    trials[1] = replace(trials[1], seconds=0.5)
    quality = plain(BEFORE, sweep(*trials), end=True)
    assert sum(bool(re.match(r" +\d+  complete  ", line)) for line in quality) == 10
    text = plain(BEFORE, sweep(*trials, objective="pareto"), end=True)
    rows = [line.split() for line in text if re.match(r" +\d+  complete  ", line)]
    assert [int(row[0]) for row in rows] == [*range(13, 3, -1), 1]
    assert [int(row[0]) for row in rows if "front" in row] == [13, 12, 1]


def test_the_smallest_is_the_best_where_that_is_asked():
    trials = trial(0, value=20.0), trial(1, value=12.5), trial(2, value=3.25)
    text = plain(BEFORE, sweep(*trials, metric="val/fid_x", direction="min"), end=True)
    assert "best            trial 2  val fid x 3.25 (preset 20)" in text
    assert text[1].endswith("best 3.25 (trial 2)")


def test_the_preset_as_the_best_and_a_sweep_without_trials():
    best = "best            trial 0  val accuracy 99.00 % (the preset)"
    assert best in plain(BEFORE, sweep(trial(0)), end=True)
    assert plain(sweep(), end=True)[0] == "trials 0/20   0:00"


def test_help_lists_the_dimensions():
    assert space_help(SPACE).splitlines() == [
        "   --space.epochs      4..12",
        "   --space.lr          0.0005..0.02:log",
        "   --space.beta1       0.7..0.98",
        "   any setting can be a dimension by its dotted name:",
        "   low..high, low..high:log, or a,b,c; one value fixes it,",
        "   and '0..0.5 if epochs>6' is searched only there.",
    ]


def test_what_belongs_beside_the_value_is_shown_beside_it():
    trials = [
        trial(0, value=12.5, metrics={"val/recall": 0.25}),
        trial(1, value=3.25),  # of an earlier evaluation nothing else is known
    ]
    shown = sweep(*trials, beside=("val/recall",), metric="val/fd_x", direction="min")
    text = plain(BEFORE, shown, end=True)
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in text[text.index("") + 1 :][:3]]
    assert head[:6] == ["trial", "state", "epoch", "val fd x", "val recall", "training time"]
    assert [row[3:5] for row in rows] == [["3.25", "–"], ["12.5", "25.00 %"]]
