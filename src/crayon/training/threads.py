"""How many threads share the operations of a step on the CPU: as many as are measured to be fastest.

The threads of an operation wait for each other at its end. Where one of them is put aside because another program has
its core, all wait for it, hundreds of times in a step: beside two busy processes two threads on two cores can do a
hundredth of what one does (benchmarks/LOG.md), and one thread waits for nobody.

Sums are split among the threads, so results depend on their number in the last bits. It is kept in checkpoints, tried
at steps that depend on nothing but the number of cores, and changed later only when other programs come or go.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from crayon.system.host import usable_cores

SETTLE_STEPS, TIMED_STEPS = 1, 3
"""Steps of a trial of another number of threads. The first ones, in which kernels are made, count for nothing."""
SHORTEST_RUN = 400
"""In runs of fewer steps a trial at the start would cost more than a hundredth."""
WINDOW_SECONDS, WINDOW_STEPS = 1.0, 2
"""The pace is judged over stretches of at least this length."""
TAKEN, IDLE = 0.3, 0.6
"""Cores that others use, above which fewer threads may be faster; idle cores, above which more may be."""
GAIN = 1.05
"""By this factor another number of threads must be faster: noise must not decide."""
HOPELESS, HOPELESS_AT_FIRST = 2.0, 8.0
"""A trial ends with a step this many times as long as the best number's so far; the second: while kernels are made."""
PATIENCE = (2.0, 64.0)
"""Seconds before more threads are tried again: at first, and at most. Each time in vain doubles it."""


class Threads:
    """Chooses, between steps, how many threads torch uses in this process.

    Args:
        most: how many to use at most; None = the cores that this process may use.
        adapt: False = always `most`: somebody has decided, or it isn't the CPU that computes.
        first_trial: whether a run's first steps try one thread, all, and halves of that as long as it gets faster.
        tell: told in one sentence when fewer than all are chosen, and when that changes.
    """

    def __init__(
        self,
        most: int | None,
        *,
        adapt: bool = True,
        first_trial: bool = True,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.most = most or min(torch.get_num_threads(), usable_cores())
        self.adapt, self.tell = adapt and self.most > 1, tell
        self.count = self.most
        """In use, but for trials."""
        self._seconds: dict[int, float] = {}
        """Of a step by number of threads, where it was last measured."""
        self._queue: list[int] = []
        """To be tried, the first of them now; how long its steps took: `_trial`."""
        self._trial: list[float] = []
        self._starting = self.adapt and first_trial
        self._patience, self._retry_at = PATIENCE[0], 0.0
        self._load = _Load()
        self._window: list[float] = []
        self._was_idle = False
        self._last = time.perf_counter()
        torch.set_num_threads(self.most)

    def restart(self) -> None:
        """A step begins now: what happened since the last one was something else."""
        self._last = time.perf_counter()
        if self._starting and not self._queue:
            self._load.restart()
            self._try([1])

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the number of threads, and where a trial at the start is."""
        trial = {"trial": [self._queue, self._trial, list(self._seconds.items())]} if self._starting else {}
        return {"count": self.count} | trial

    def load(self, state: dict[str, Any]) -> None:
        """Go on as a checkpoint's `state` says, as far as there are cores, so that the last bits are the same."""
        if not self.adapt:
            return
        self.count = min(state["count"], self.most)
        queue, self._trial, seconds = state.get("trial", ([], [], []))
        self._seconds = dict(seconds)
        self._queue = [count for count in queue if count <= self.most]
        self._starting = bool(self._queue)
        torch.set_num_threads(self._queue[0] if self._queue else self.count)

    def after_step(self) -> None:
        """A step has just ended."""
        if not self.adapt:
            return
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self._queue:
            self._tried(seconds)
            return
        if seconds >= WINDOW_SECONDS:  # quick steps before it would hide it
            self._window = [s for s in self._window if s >= WINDOW_SECONDS]
        self._window.append(seconds)
        if sum(self._window) >= WINDOW_SECONDS and len(self._window) >= WINDOW_STEPS:
            self._judge()

    def _try(self, queue: list[int]) -> None:
        self._queue, self._trial = queue, []
        torch.set_num_threads(queue[0])

    def _tried(self, seconds: float) -> None:
        """Goes on with the trial in which a step took `seconds`."""
        self._trial.append(seconds)
        best = min(self._seconds.values(), default=math.inf)
        factor = HOPELESS_AT_FIRST if len(self._trial) <= SETTLE_STEPS else HOPELESS
        if len(self._trial) < SETTLE_STEPS + TIMED_STEPS and seconds <= factor * best:
            return
        count, *queue = self._queue
        self._seconds[count] = statistics.median_low(self._trial[SETTLE_STEPS:] or self._trial)
        if self._starting and count == 1:
            # Then all, unless others plainly have the cores.
            _, idle = self._load.load()
            most = self.most if 2 * idle >= self.most - 1 else min(self.most, math.floor(idle + 1.5))
            queue = [most] if most > 1 else []
        elif self._starting and count > 3 and self._seconds[count] < self._seconds.get(2 * count, math.inf):
            queue.append(count // 2)
        if queue:
            self._try(queue)
        else:
            self._decide()

    def _decide(self) -> None:
        before, self._starting, self._queue = self.count, False, []
        # Of those that are about as fast, the most threads.
        chosen = max(self._seconds)
        for count in sorted(self._seconds, reverse=True):
            if self._seconds[count] * GAIN < self._seconds[chosen]:
                chosen = count
        self.count = chosen
        torch.set_num_threads(chosen)
        self._load.restart()
        self._window, self._was_idle = [], False
        self._patience = PATIENCE[0] if chosen > before else min(2 * self._patience, PATIENCE[1])
        self._retry_at = time.perf_counter() + self._patience
        if chosen != before:
            slower = self._seconds.get(before)  # None: not tried, as others had the cores
            why = f"{slower / self._seconds[chosen]:.1f} times as fast, " if slower else ""
            self.tell(
                f"{chosen} thread{'s' if chosen > 1 else ''} instead of {before}: {why}beside what else runs on this "
                "machine (--threads fixes the number)."
            )

    def _judge(self) -> None:
        """Looks whether a window of steps is a reason to try other numbers."""
        others, idle = self._load.load()
        # Not the mean: one step may have been stopped, or had to wait for a disk.
        seconds = self._seconds[self.count] = statistics.median_low(self._window)
        self._window = []
        candidates: set[int] = set()
        if others > TAKEN and idle < IDLE:
            fewer = {self.count - math.ceil(others - TAKEN), self.count // 2, 1}
            # A number that was slower when last measured isn't tried again while the pace is no worse than that.
            candidates = {
                c for c in fewer if 1 <= c < self.count and self._seconds.get(c, 0.0) * GAIN < seconds
            }
        elif idle >= IDLE and self._was_idle and time.perf_counter() >= self._retry_at:
            candidates = {min(self.most, self.count + math.floor(idle + 1 - IDLE))} - {self.count}
        self._was_idle = idle >= IDLE
        if candidates:
            self._seconds = {self.count: seconds}
            self._try(sorted(candidates))


class _Load:
    """How many cores were in use since the last look, of those that this process may use."""

    def __init__(self) -> None:
        every = range(len(psutil.cpu_times(percpu=True)))
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else every
        self._cores = [core for core in every if core in mine]
        self.count = len(self._cores)
        self.restart()

    def restart(self) -> None:
        times = psutil.cpu_times(percpu=True)
        idle = sum(times[i].idle + getattr(times[i], "iowait", 0.0) for i in self._cores)
        self._begun = time.perf_counter(), time.process_time(), idle

    def load(self) -> tuple[float, float]:
        """(cores that others use, another virtual machine among them; idle cores); begins the next stretch."""
        before = self._begun
        self.restart()
        wall, own, idle = (now - then for now, then in zip(self._begun, before, strict=True))
        wall = max(wall, 1e-9)
        return self.count - (own + idle) / wall, idle / wall
