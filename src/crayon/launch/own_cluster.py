"""Starting a Ray cluster of our own on this machine, and ending what is left of it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import psutil

from crayon.errors import RunFailed, one_line
from crayon.fast import ray_start

START_SECONDS = 240.0
"""How long the start of our own cluster may take, if its processes get on."""
STALLED_SECONDS = 30.0
"""How long they may do nothing at all meanwhile."""
TELL_SECONDS = 20.0
"""How often it is told that Ray is starting still."""
LINGER_SECONDS = 3.0
"""How long the processes of our own cluster may take to end."""


def start(ray: ModuleType, settings: dict[str, Any], tell: Callable[[str], None], instead: str) -> None:
    """Start a cluster of our own, with a second try where the first comes to nothing. Raises RunFailed."""
    reason = ""
    for tries in (1, 2):
        before = set(psutil.Process().children(recursive=True))
        try:
            with (
                ray_start.few_processes(ray),
                ray_start.patience(ray, _Progress()),
                _told(tell),
                own_signals(),
            ):
                ray.init(**settings)
            return
        except Exception as error:  # Ray's own: of many classes, some of which are just Exception
            ray.shutdown()
            end([p for p in psutil.Process().children(recursive=True) if p not in before])
            reason = one_line(error)
            if tries == 1:
                tell("Ray's processes did not start; trying once more.")
    slow = "timed out" in reason.lower()
    why = "in time; this machine may be too busy" if slow else f"({reason})"
    raise RunFailed(f"Ray's processes did not start {why}. Try again{instead and f', or {instead}'}.")


@contextlib.contextmanager
def _told(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell now and then that Ray is starting still."""
    began, over = time.monotonic(), threading.Event()

    def report() -> None:
        while not over.wait(TELL_SECONDS):
            tell(f"Ray is starting ({time.monotonic() - began:.0f} s); this machine is busy.")

    telling = threading.Thread(target=report, daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()


class _Progress:
    """Calling it tells whether our cluster's processes get on with their start."""

    def __init__(self) -> None:
        self.began = self.moved = time.monotonic()
        self.seconds: float | None = -1.0

    def __call__(self) -> bool:
        now, seconds = time.monotonic(), _work()
        if seconds != self.seconds:
            self.seconds, self.moved = seconds, now
        return seconds is not None and now - self.moved < STALLED_SECONDS and now - self.began < START_SECONDS


def _work() -> float | None:
    """Seconds of CPU that the processes of our cluster have had; None where its raylet has ended."""
    seconds, lives = 0.0, False
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                lives |= child.name().startswith("raylet")
                seconds += sum(child.cpu_times()[:2])
    return seconds if lives else None


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Ray puts handlers of its own in place, which end the process at once. Ours stop the run with a checkpoint. And a
    terminal that is closed hangs up on all processes of its session: Ray's have to wait for that checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mask = None
    if hasattr(signal, "SIGHUP"):  # what is started now blocks it, too; here it only waits
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def processes() -> list[psutil.Process]:
    """The actors and workers of the cluster that this process started.

    Some of them don't survive their cluster's end as they should: seen here, a controller that waits for ever for a
    lock in Ray's own clean-up, with all its memory.
    """
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(child.cmdline()).startswith("ray::"):
                found.append(child)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kill those that don't end by themselves."""
    for process in psutil.wait_procs(processes, timeout=LINGER_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
