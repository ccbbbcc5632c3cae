"""Measured processes: started afresh, stopped while another is measured (SIGSTOP), ended with all their children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from suite.tell import read

PATIENCE = 300.0
"""Seconds within which a process must have finished its first step."""


class Failed(Exception):
    """A measured process ended, or said nothing: what it said at last."""


class Side:
    """One measured command in a session of its own, with a scratch folder.

    `{told}` and `{folder}` in `command` become the file it tells its steps in, and that folder. What it prints goes
    into the folder's output.txt.
    """

    def __init__(self, command: list[str], env: Mapping[str, str] | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="crayon-bench-"))
        self.told = self.folder / "told.jsonl"
        names = {"{told}": str(self.told), "{folder}": str(self.folder)}
        words = [_filled(word, names) for word in command]
        env = {name: _filled(value, names) for name, value in (env or {}).items()}
        self.output = self.folder / "output.txt"
        self._tree: list[psutil.Process] = []
        self.begun = time.time()
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                env=os.environ | env,
            )

    def tree(self) -> list[psutil.Process]:
        """The process and all below it, those seen before that are still there among them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            self._tree = list({*self._tree, root, *root.children(recursive=True)})
        self._tree = [p for p in self._tree if p.is_running()]
        return self._tree

    def first_step(self) -> float:
        """Wait for the first finished step; seconds from the start of the process to it. Raises Failed."""
        while not (steps := self.steps()):
            self.check()
            if time.time() - self.begun > PATIENCE:
                raise Failed(f"no step after {PATIENCE:.0f} s: {self.said()}")
            time.sleep(0.05)
        return steps[0]["at"] - self.begun

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in read(self.told) if "images" in line]

    def check(self) -> None:
        """Raises Failed if it has ended."""
        if self.process.poll() is not None:
            raise Failed(f"exit code {self.process.returncode}: {self.said()}")

    def said(self) -> str:
        """The end of what it printed, on one line."""
        lines = self.output.read_text(errors="replace").split("\n")[-8:]
        return " | ".join(line.strip() for line in lines if line.strip())[-600:] or "it printed nothing"

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def end(self, seconds: float = 20.0) -> None:
        """SIGTERM, wait, SIGKILL for what is left of it, and remove its folder."""
        tree = self.tree()
        if self.process.poll() is None:
            self.process.terminate()
            self.go()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        for process in {*tree, *self.tree()}:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        shutil.rmtree(self.folder, ignore_errors=True)


def _filled(word: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        word = word.replace(name, value)
    return word


@contextlib.contextmanager
def running(sides: Mapping[str, tuple[list[str], Mapping[str, str]]]) -> Iterator[dict[str, Side]]:
    """All of `sides`, started one after the other: each is stopped once it has done its first step."""
    started: dict[str, Side] = {}
    try:
        for name, (command, env) in sides.items():
            side = started[name] = Side(command, env)
            try:
                side.first_step()
            except Failed as failed:
                raise Failed(f"{name}: {failed}") from None
            side.stop()
        yield started
    finally:
        for side in started.values():
            side.end()


def rates(sides: Mapping[str, Side], *, turns: int, turn: float, settle: float) -> dict[str, float]:
    """Images per second of each side, by turns: one computes, all others are stopped.

    A machine's speed drifts by more than what is measured, so turns are short. The first `settle` seconds of a turn,
    when caches and threads are cold, aren't counted. Raises Failed for a side that has ended or that told nothing.
    """
    windows: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for k in range(turns):
        names = list(sides)
        for name in names[k % len(names) :] + names[: k % len(names)]:
            side = sides[name]
            side.check()
            side.go()
            time.sleep(settle)
            begun = time.time()
            until = begun + turn
            while time.time() < until:
                time.sleep(max(0.0, until - time.time()))
                window = (begun, time.time())
                if rate_within(side.steps(), [window]) is None and window[1] - begun < PATIENCE / 4:
                    until = time.time() + turn  # a step takes longer than a turn
            windows[name].append(window)
            side.stop()
    found = {}
    for name, side in sides.items():
        rate = rate_within(side.steps(), windows[name])
        if rate is None:
            raise Failed(f"{name} told of no steps in its turns: {side.said()}")
        found[name] = rate
    return found


def rate_within(steps: list[dict[str, Any]], windows: list[tuple[float, float]]) -> float | None:
    """Images per second between the first and the last line in each window, all windows together."""
    images = seconds = 0.0
    for begin, end in windows:
        inside = [s for s in steps if begin <= s["at"] <= end]
        if len(inside) > 1:
            images += inside[-1]["images"] - inside[0]["images"]
            seconds += inside[-1]["at"] - inside[0]["at"]
    return images / seconds if seconds else None


def proportional_mib(tree: list[psutil.Process]) -> float:
    """MiB of memory of these processes, what they share with others by its share (PSS)."""
    total = 0
    for process in tree:
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    return total / 2**20


def whole_mib(side: Side) -> float:
    return proportional_mib(side.tree())


def private_mib(side: Side) -> float:
    """MiB of a process's own memory, without its children and without mapped files. Linux only, and quick."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{side.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Watch:
    """Samples a side's memory in the background; `peak` in MiB. of: what is sampled, in MiB."""

    def __init__(self, side: Side, every: float = 0.25, of: Callable[[Side], float] = whole_mib):
        self.side, self.every, self.of, self.peak = side, every, of, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            self.peak = max(self.peak, self.of(self.side))

    def end(self) -> float:
        self._ended.set()
        self._thread.join()
        return self.peak
