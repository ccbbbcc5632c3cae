"""Work in blocks: what was made is kept, what is missing is made, here and on Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from helpers import python, tiny

import crayon
from crayon.use.output import Output
from crayon.use.settings import EvaluateConfig
from crayon.use.spread import run_blocks


def go(make, output, names, emit=lambda event: None, workers=0, factory=None):
    settings = EvaluateConfig(run="", device="cpu", workers=workers)
    with output.locked():
        run_blocks(
            factory or (lambda: make), names, [10] * len(names), output, settings, tiny("gan"), emit, "x"
        )


def test_only_missing_blocks_are_made_and_an_error_keeps_what_is_done(tmp_path):
    made, events = [], []

    def make(block, following):
        made.append((block, following))
        if block == 3 and len(made) < 5:
            raise OSError(28, "No space left on device")
        return {"a": b"%d" % block} if block % 2 else b"%d" % block

    output, names = Output(str(tmp_path / "o"), {"x": 1}), [f"blocks/{k}" for k in range(5)]
    with pytest.raises(crayon.errors.RunFailed, match="the same command goes on"):
        go(make, output, names, events.append)
    assert [k for k, _ in made] == [0, 1, 2, 3]
    go(make, output, names, events.append)
    assert made[4:] == [(3, 4), (4, None)]
    assert (output.path / "blocks" / "3" / "a").read_bytes() == b"3"
    assert (output.path / "blocks" / "4").read_bytes() == b"4"
    assert (events[-1].done, events[-1].total) == (50, 50)
    assert not list(output.path.rglob(".tmp-*"))


def test_ctrl_c_stops_after_a_block(tmp_path):
    def make(block, following):
        if block == 1:
            signal.raise_signal(signal.SIGINT)
        return b"%d" % block

    output = Output(str(tmp_path / "o"), {})
    with pytest.raises(crayon.errors.Stopped, match="2 of 4 blocks"):
        go(make, output, list("abcd"))
    assert sorted(p.name for p in output.path.iterdir() if p.name in "abcd") == ["a", "b"]


def dying(folder):
    """Makes blocks, and kills its process at the first try of block 1."""

    def make(block, following):
        if block == 1 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return b"%d" % block

    return make


@pytest.mark.faults
def test_a_worker_that_dies_is_started_again(tmp_path):
    code = (
        "import functools, pathlib\nfrom test_spread import Output, dying, go\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "go(None, Output(str(folder / 'o'), {}), list('abcd'), print, 2, functools.partial(dying, folder))"
    )
    end = python(code)
    said = end.communicate(timeout=240)
    assert end.returncode == 0, said
    assert (tmp_path / "died").exists()
    assert [(tmp_path / "o" / name).read_bytes() for name in "abcd"] == [b"0", b"1", b"2", b"3"]


@pytest.mark.faults
def test_a_killed_predict_goes_on_over_ray_with_the_same_results(runs, photos, tmp_path):
    """Three blocks of one pass each; killed after the first, finished by two workers."""
    many = tmp_path / "many"
    many.mkdir()
    for k in range(150):
        os.link(photos / "3" / f"{k % 10}.png", many / f"{k:03d}.png")
    code = """
import time
from crayon.cli import main as cli
from crayon.use import predict, table
table.BLOCK_IMAGES = 64
classify = predict.work
def work(model, images):
    time.sleep(SECONDS)
    return classify(model, images)
if SECONDS:
    predict.work = work
cli.main("mnist", WORDS)
"""

    def command(out, seconds, *more):
        words = ["predict", runs / "mnist", many, "--out", tmp_path / out, "--device", "cpu", *more]
        return python(code.replace("SECONDS", str(seconds)).replace("WORDS", str([*map(str, words)])))

    whole = command("whole", 0)
    assert "150" in whole.communicate()[0]
    killed, first = command("o", 0.5), tmp_path / "o" / "parts" / "000000.parquet"
    while not first.exists():
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    made = first.stat().st_mtime_ns
    assert not (tmp_path / "o" / "predictions.csv").exists()
    again = command("o", 0, "--workers", "2")
    while again.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # gone once the table is written
            assert first.stat().st_mtime_ns == made
        time.sleep(0.05)
    said = again.communicate()
    assert again.returncode == 0 and "150" in said[0], said
    tables = [(tmp_path / out / "predictions.csv").read_bytes() for out in ("o", "whole")]
    assert tables[0] == tables[1]
