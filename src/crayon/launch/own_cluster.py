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
"""How long the start of our own cluster may take, while its raylet lives."""
TRIES = 5
TELL_SECONDS = 20.0
"""After which it is told that Ray is starting, or being joined, still."""
LINGER_SECONDS = 3.0
"""How long the processes of our own cluster may take to end."""


def start(ray: ModuleType, settings: dict[str, Any], tell: Callable[[str], None], instead: str) -> None:
    """Start a cluster of our own, with a second try where the first comes to nothing, and up to TRIES within
    START_SECONDS where the machine is but slow. Raises RunFailed."""
    deadline = time.monotonic() + START_SECONDS
    for number in range(1, TRIES + 1):
        before = _children()
        try:
            with (
                telling(tell, "Ray is starting still; this machine is busy."),
                ray_start.few_processes(ray),
                ray_start.patience(ray, deadline, _raylet_lives),
                own_signals(),
            ):
                ray.init(**settings)
            return
        except Exception as error:  # Ray's own: of many classes, some of which are just Exception
            ray.shutdown()
            end([process for process in _children() if process not in before])
            reason = one_line(error)
            slow = "timed out" in reason.lower()
            if number == TRIES or (number > 1 and not (slow and time.monotonic() < deadline)):
                why = "in time; this machine may be too busy" if slow else f"({reason})"
                text = f"Ray's processes did not start {why}. Try again{instead and f', or {instead}'}."
                raise RunFailed(text) from error
            if number == 1:
                tell("Ray's processes did not start; trying again.")


@contextlib.contextmanager
def telling(tell: Callable[[str], None], text: str) -> Iterator[None]:
    """Tell `text` once this block has taken long."""
    timer = threading.Timer(TELL_SECONDS, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _raylet_lives() -> bool:
    for child in _children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("raylet") and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


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
    for child in _children():
        with contextlib.suppress(psutil.Error):
            if "".join(child.cmdline()).startswith("ray::"):
                found.append(child)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kill those that don't end by themselves."""
    for process in psutil.wait_procs(processes, timeout=LINGER_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
