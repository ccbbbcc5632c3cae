"""A terminal that is closed while a command runs on it: a checkpoint is written, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import flags, tiny
from test_launch import start, wait_for_step
from test_sweep import sweep, trials

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint

CRAYON = str(Path(sys.executable).with_name("crayon"))


class Terminal:
    """A command, the first process on a terminal of its own, which shows what it writes until it is closed."""

    def __init__(self, command: list[str]):
        self.shown = b""
        leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(follower)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(leader,))
        self._reader.start()

    def _read(self, leader: int) -> None:
        while not self._closing.is_set():
            if select.select([leader], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(leader, 65536)
                except OSError:  # the command has ended
                    break
        os.close(leader)

    def until(self, ready: Callable[[], Any]) -> None:
        while not ready():
            assert self.process.poll() is None, self.shown
            time.sleep(0.02)

    def close(self) -> int:
        """The exit code of the command, which has left no process."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self._closing.set()
        self._reader.join()
        code = self.process.wait(60)
        assert not psutil.wait_procs(family, timeout=30)[1]
        return code


def command(folder: Path, **changes) -> list[str]:
    config = tiny("mnist", name="run", storage=str(folder), **changes)
    return [config.job, *flags(config)]


def newest(folder: Path) -> int:
    entry = checkpoint.latest(RunFolder(str(folder), "run"))
    checkpoint.load(entry)
    return entry.step


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_a_closed_terminal_stops_with_a_checkpoint(workers, tmp_path):
    words = command(tmp_path, epochs=2000, workers=workers)
    first = Terminal([CRAYON, *words])
    first.until(lambda: b"epoch  " in first.shown.replace(b"   ", b"  "))  # it trains
    assert first.close() == 130
    stopped = newest(tmp_path)
    again = Terminal([CRAYON, *words])
    again.until(lambda: b"Going on from the checkpoint" in again.shown)
    assert again.close() == 130
    assert newest(tmp_path) >= stopped


def test_whoever_reads_what_it_says_may_end(tmp_path):
    """As `tee` does when the terminal is closed."""
    process = start(command(tmp_path, epochs=2000))
    wait_for_step(tmp_path, 9, process)
    process.stdout.close()
    assert process.wait(60) == 130
    assert newest(tmp_path) >= 9


def test_under_nohup_it_trains_on(tmp_path):
    words = command(tmp_path, epochs=30)
    process = subprocess.Popen(["nohup", CRAYON, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for_step(tmp_path, 9, process)
    process.send_signal(signal.SIGHUP)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0, out
    assert (tmp_path / "run" / "result.json").exists()


def ended_trials(folder: Path) -> list[tuple]:
    """Of the sweep s, while it runs; none before there is a study."""
    with contextlib.suppress(Exception):
        return [trial for trial in trials(folder) if trial[1] in ("COMPLETE", "PRUNED")]
    return []


@pytest.mark.faults
def test_a_sweep_on_a_closed_terminal_is_kept(tmp_path):
    terminal = Terminal([CRAYON, *sweep(tmp_path, "--trials", "50")])
    terminal.until(lambda: (tmp_path / "s" / "trials").exists() and ended_trials(tmp_path))
    assert terminal.close() == 130
    kept = trials(tmp_path)
    ended = ended_trials(tmp_path)
    assert ended and not [t for t in kept if t[1] == "FAIL"]
    again = start(sweep(tmp_path, "--trials", str(len(ended) + 1)))
    out = again.communicate(timeout=120)[0]
    assert again.returncode == 0, out
    assert trials(tmp_path)[: len(ended)] == ended
