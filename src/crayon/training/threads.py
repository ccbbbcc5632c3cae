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
"""A trial ends with a step that takes this many times as long as a step does with the best number so far; the second is
for the steps in which kernels are made."""
PATIENCE = (2.0, 64.0)
"""Seconds before more threads are tried again: at first, and at most. Each time in vain doubles it."""


class Threads:
    """Chooses, between steps, how many threads torch uses in this process.

    Args:
        most: how many to use at most.
        adapt: False = always `most`: somebody has decided, or it isn't the CPU that computes.
        first_trial: whether a run's first steps try one thread, all, and halves of that as long as it gets faster.
        tell: told in one sentence when fewer than all are chosen, and when that changes.
    """

    def __init__(
        self,
        most: int,
        *,
        adapt: bool = True,
        first_trial: bool = True,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.most, self.adapt, self.tell = most, adapt and most > 1, tell
        self.count = most
        """In use, but for trials."""
        self._seconds: dict[int, float] = {}
        """Of a step by number of threads, where it was last measured."""
        self._queue: list[int] = []
        self._trial: list[float] = []
        self._starting = self.adapt and first_trial
        self._patience, self._retry_at = PATIENCE[0], 0.0
        self._load = _Load()
        self._window: list[float] = []
        self._was_idle = False
        self._last = time.perf_counter()
        torch.set_num_threads(most)

    def restart(self) -> None:
        """A step begins now: what happened since the last one was something else."""
        self._last = time.perf_counter()
        if self._starting and not self._queue:
            self._load.restart()
            self._try_next([1])

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the number of threads, and where a trial at the start is."""
        found: dict[str, Any] = {"count": self.count}
        if self._starting:
            found["trial"] = [self._queue, self._trial, list(self._seconds.items())]
        return found

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on with the number of threads of a checkpoint, as far as there are cores, so that the last bits are the
        same. None = of an earlier version, which used all."""
        state = state or {"count": self.most}
        if not self.adapt:
            return
        self.count = min(int(state["count"]), self.most)
        queue, self._trial, seconds = state.get("trial", ([], [], []))
        self._seconds = {int(count): float(value) for count, value in seconds}
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
            self._try(seconds)
            return
        if seconds >= WINDOW_SECONDS:  # quick steps before it would hide it
            self._window = [s for s in self._window if s >= WINDOW_SECONDS]
        self._window.append(seconds)
        if sum(self._window) >= WINDOW_SECONDS and len(self._window) >= WINDOW_STEPS:
            self._judge()

    # A trial of the numbers in `_queue`, one after the other.

    def _try(self, seconds: float) -> None:
        count = self._queue[0]
        self._trial.append(seconds)
        best = min(self._seconds.values(), default=math.inf)
        settling = len(self._trial) <= SETTLE_STEPS
        hopeless = seconds > (HOPELESS_AT_FIRST if settling else HOPELESS) * best
        if len(self._trial) < SETTLE_STEPS + TIMED_STEPS and not hopeless:
            return
        self._seconds[count] = statistics.median_low(self._trial[SETTLE_STEPS:] or self._trial)
        self._queue.pop(0)
        if self._starting and count == 1:
            self._queue = [c for c in (self._at_start(),) if c > 1]
        elif self._starting:
            slower = self._seconds.get(2 * count, math.inf)
            if count // 2 > 1 and self._seconds[count] < slower:
                self._queue.append(count // 2)
        if self._queue:
            self._try_next(self._queue)
        else:
            self._decide()

    def _at_start(self) -> int:
        """The number to try after one thread: all, unless others plainly have the cores."""
        _, idle = self._load.load()
        return self.most if 2 * idle >= self.most - 1 else min(self.most, math.floor(idle + 1.5))

    def _try_next(self, queue: list[int]) -> None:
        self._queue, self._trial = queue, []
        torch.set_num_threads(queue[0])

    def _decide(self) -> None:
        before, self._starting = self.count, False
        # Of those that are about as fast, the most threads.
        chosen = max(self._seconds)
        for count in sorted(self._seconds, reverse=True):
            if self._seconds[count] * GAIN < self._seconds[chosen]:
                chosen = count
        self.count = chosen
        torch.set_num_threads(chosen)
        self._load.restart()
        self._window, self._was_idle = [], False
        if chosen > before:
            self._patience = PATIENCE[0]
        else:
            self._patience = min(2 * self._patience, PATIENCE[1])
        self._retry_at = time.perf_counter() + self._patience
        if chosen != before:
            slower = self._seconds.get(before)  # None: not tried, as others had the cores
            why = f"{slower / self._seconds[chosen]:.1f} times as fast, " if slower else ""
            self.tell(
                f"{_threads(chosen)} instead of {before}: {why}beside what else runs on this machine (--threads fixes "
                "the number)."
            )

    # A window of steps.

    def _judge(self) -> None:
        others, idle = self._load.load()
        # Not the mean: one step may have been stopped, or had to wait for a disk.
        seconds = statistics.median_low(self._window)
        self._seconds[self.count] = seconds
        self._window = []
        candidates: set[int] = set()
        if others > TAKEN and idle < IDLE:
            fewer = {self.count - math.ceil(others - TAKEN), self.count // 2, 1}
            fewer = {count for count in fewer if 1 <= count < self.count}
            # A number that was slower when last measured isn't tried again while the pace is no worse than that.
            candidates = {c for c in fewer if self._seconds.get(c, 0.0) * GAIN < seconds}
        elif idle >= IDLE and self._was_idle and time.perf_counter() >= self._retry_at:
            candidates = {min(self.most, self.count + math.floor(idle + 1 - IDLE))} - {self.count}
        self._was_idle = idle >= IDLE
        if candidates:
            self._seconds = {self.count: seconds}
            self._try_next(sorted(candidates))


class _Load:
    """How many cores were in use since the last look, of those that this process may use."""

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)
        self._which = sorted(affinity(0)) if affinity else None
        self.count = len(self._times())
        self.restart()

    def _times(self) -> list[Any]:
        times = psutil.cpu_times(percpu=True)
        return times if self._which is None else [times[i] for i in self._which if i < len(times)]

    def _idle(self) -> float:
        return sum(core.idle + getattr(core, "iowait", 0.0) for core in self._times())

    def restart(self) -> None:
        self._begun = time.perf_counter(), time.process_time(), self._idle()

    def load(self) -> tuple[float, float]:
        """(cores that others use, another virtual machine among them; idle cores); begins the next stretch."""
        wall, own, idle = self._begun
        self.restart()
        now_wall, now_own, now_idle = self._begun
        spent = max(now_wall - wall, 1e-9)
        own, idle = (now_own - own) / spent, (now_idle - idle) / spent
        return self.count - own - idle, idle


def _threads(count: int) -> str:
    return f"{count} threads" if count > 1 else "1 thread"
