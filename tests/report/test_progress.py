"""What a run shows on a terminal (a real pseudo-terminal) and in a pipe (a real one)."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace

from terminal import bare, on_terminal

from crayon.report.events import EpochEnd, Finished, Images, Message, Progress, Started, Step
from crayon.report.terminal import RunDisplay

RUN = {"job": "mnist", "name": "m1", "folder": "/far/away/m1", "source": "mnist"}
SIZE = {"epochs": 12, "total_steps": 240, "parameters": 29000, "train_images": 55200}
START = Started(**RUN, **SIZE, device="cpu", precision="fp32", threads=2, workers=2)
STEP = Step(epoch=2, step=50, total_steps=240, loss=0.12345, images_per_second=11240.1, seconds_left=75.2)
ROW = {"train/loss": 0.083, "val/accuracy": 0.98914, "images_per_second": 11240.0, "seconds": 40.0}
EPOCH = EpochEnd(epoch=3, epochs=12, metrics=ROW)
RESULT = {"test/accuracy": 0.9938, "test/recall/cat": 0.5, "test/recall": 0.99, "val/accuracy": 0.9942}
RESULT |= {"seconds": 72.0, "train_seconds": 60.0, "images_per_second": 11240.0}
DONE = Finished(folder="/far/away/m1", sync="wandb sync /far/away/m1/wandb/x", result=RESULT)
DECODING = [Progress("decoding", n, 3000) for n in (0, 1000, 2000, 3000)]
EVENTS = [*DECODING, START, STEP, EPOCH, Message("Measuring [bold]x\x1b[31m", True), DONE]

SCRIPT = """
import sys, time
from crayon.report.events import *
from crayon.report.terminal import RunDisplay
with RunDisplay() as display:
    for event in EVENTS:
        display(event)
        time.sleep(0.3 if isinstance(event, Step) else 0)
    if "fail" in sys.argv:
        raise ValueError
"""


def lines(events) -> list[str]:
    out = io.StringIO()
    with RunDisplay(out) as display:
        for event in events:
            display(event)
    return out.getvalue().splitlines()


def in_pty(*arguments: str, events=EVENTS, **environment: str) -> str:
    command = [sys.executable, "-c", SCRIPT.replace("EVENTS", repr(events)), *arguments]
    return on_terminal(command, **environment)


def test_plain_lines_say_everything_once():
    text = lines(EVENTS)
    assert text[0] == "decoding  0/3,000"
    assert text[1] == "decoding  3,000/3,000"
    assert text[2] == "mnist  55,200 images of mnist  29,000 parameters  cpu on 2 workers, fp32, 2 threads"
    assert "/far/away/m1" in text[3]
    assert "--name m1" in text[3]
    assert text[4] == "epoch  3/12  loss 0.0830  val accuracy  98.91 %   11,240 images/s   0:40"
    assert text[5] == "warning: Measuring [bold]x?[31m"
    table = [line.split() for line in text[6:]]
    assert ["test", "validation"] in table
    assert ["accuracy", "99.38", "%", "99.42", "%"] in table
    assert not any("cat" in line for line in table)
    assert text[-3:] == [
        "time      1 min 12 s, 1 min 0 s of it training at 11,240 images/s",
        "report    /far/away/m1/report.html",
        "W&B       offline; to upload: wandb sync /far/away/m1/wandb/x",
    ]


def test_the_last_lines_of_any_result_are_apart_from_their_names():
    """An autoencoder's of images without labels has only short names; some runs have no figures at all."""
    for figures in ({"test/mse": 0.01, "test/psnr": 20.0, "test/ssim": 0.9}, {}):
        text = lines([replace(DONE, result=figures | {"seconds": 72.0})])
        assert text[-3:] == [
            "time    1 min 12 s",
            "report  /far/away/m1/report.html",
            "W&B     offline; to upload: wandb sync /far/away/m1/wandb/x",
        ]


def test_steps_without_a_terminal_are_rare(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("crayon.report.terminal.time.monotonic", lambda: now[0])
    out = io.StringIO()
    display = RunDisplay(out)
    for i in range(200):
        now[0] += 0.1
        display(replace(STEP, step=i))
    assert len(out.getvalue().splitlines()) == 4  # 20 seconds, and one at most every five
    assert out.getvalue().splitlines()[0] == "training  step 0/240  loss 0.1235  11,240 images/s  1:15 left"


def test_a_pipe_gets_no_control_characters_and_no_broken_lines():
    folder = "/far/" + "long/" * 40
    events = [replace(START, folder=folder), STEP, EPOCH, DONE]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("EVENTS", repr(events))],
        capture_output=True,
        text=True,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40", "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    assert sum(folder in line for line in done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_terminal_shows_a_bar_that_is_gone_at_the_end():
    raw = in_pty()
    text = bare(raw)
    assert "epoch 3/12 ━" in text
    assert "loss 0.1235  11,240 images/s  1:15 left" in text
    assert "epoch  3/12  loss 0.0830  val accuracy  98.91 %   11,240 images/s   0:40" in text
    assert "━" not in text[text.rindex("test  validation") :]
    assert "\x1b[31m" not in raw  # what a message smuggles in
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # the cursor is back
    assert "wandb sync /far/away/m1/wandb/x" in text


def test_a_terminal_is_left_in_order_when_the_run_fails():
    raw = in_pty("fail", events=[START, STEP])
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")


def test_no_color_and_a_dumb_terminal_are_respected():
    assert re.search(r"\x1b\[\d*;?3\d", in_pty())
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m", in_pty(NO_COLOR="1"))
    assert "\x1b" not in in_pty(TERM="dumb")


def test_both_losses_of_a_gan_are_shown():
    losses = {"train/discriminator/loss": 0.61, "train/generator/loss": 1.2}
    (line,) = lines([replace(EPOCH, metrics=losses | {"val/recall": 0.25, "val/coverage": 0.5})])
    assert "discriminator loss 0.6100  generator loss 1.2000" in line
    assert "val recall  25.00 %  val coverage  50.00 %" in line


def test_a_restarted_worker_starts_the_bar_anew():
    text = bare(in_pty(events=[START, STEP, START, replace(STEP, step=20, epoch=1)]))
    assert text.rindex("epoch 2/12") > text.rindex("epoch 3/12")


ABOUT = {
    "source": "folder",
    "classes": [f"class {i}" for i in range(1000)],
    "splits": {
        "train": {"images": 30_000, "classes": [*range(900, 400, -1), *[20] * 499, 3]},
        "val": {"images": 2000, "classes": [2] * 1000},
    },
    "kinds": {"JPG": 31_000, "PNG": 1000},
    "sizes": {"different": 2, "looked_at": 500, "smallest": [30, 20], "largest": [640, 480]},
    "left_out": ["of other kinds: 1 PDF"],
    "notes": ["no \x1b[31mtest split"],
    "warnings": ["1 class has fewer than 20 training images: class 999 3"],
}


def test_a_run_s_images_are_one_table_that_folds_many_classes():
    text = lines([Images(ABOUT)])
    assert len(text) == 20 and text[0].split() == ["train", "validation"]
    assert text[1].split() == ["class", "0", "900", "2"] and text[13].split() == ["class", "999", "3", "2"]
    assert text[7].split() == ["988", "more", "20", "to", "894", "2"]
    assert text[14].split() == ["images", "30,000", "2,000"]
    assert text[15:] == [
        "kinds     31,000 JPG, 1,000 PNG",
        "sizes     30 x 20 to 640 x 480, 2 different among 500",
        "left out  of other kinds: 1 PDF",
        "note      no ?[31mtest split",
        "warning: 1 class has fewer than 20 training images: class 999 3",
    ]
    few = ABOUT | {"classes": [], "splits": {"train": {"images": 9, "classes": []}}, "kinds": {}, "sizes": {}}
    assert lines([Images(few)])[:2] == ["        train", "images      9"]
