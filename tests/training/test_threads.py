"""The number of threads of a step: what is chosen on machines of a known behaviour, and beside real busy processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers import crayon, flags, python, rows, tiny

from crayon.training import threads
from crayon.training.threads import SETTLE_STEPS, TIMED_STEPS, WINDOW_STEPS, Threads

TRIAL = SETTLE_STEPS + TIMED_STEPS


class Machine:
    """Steps that take what `seconds(threads, others)` says, on `cores` cores of which other programs keep `others`
    busy. Its clock is the one that `Threads` reads."""

    def __init__(
        self, patch: pytest.MonkeyPatch, cores: int, seconds: Callable[[int, int], float], others: int = 0
    ):
        self.cores, self.seconds, self.others = cores, seconds, others
        self.now, self.count = 0.0, cores
        self.used: list[int] = []
        patch.setattr("time.perf_counter", lambda: self.now)
        patch.setattr(torch, "set_num_threads", lambda count: setattr(self, "count", count))
        patch.setattr(threads, "_Load", lambda: self)

    def restart(self) -> None: ...

    def load(self) -> tuple[float, float]:
        """(cores that others use, idle cores)."""
        others = min(self.others, self.cores)
        own = min(self.count, self.cores - others / 2 if others else self.cores)
        return float(others), max(0.0, self.cores - own - others)

    def train(self, chosen: Threads, steps: int) -> None:
        chosen.restart()
        for _ in range(steps):
            self.used.append(self.count)
            self.now += self.seconds(self.count, self.others)
            chosen.after_step()


def two_cores(count: int, others: int) -> float:
    """Milliseconds as measured for the MNIST preset."""
    return {(1, 0): 0.045, (2, 0): 0.026, (1, 1): 0.05, (2, 1): 0.097, (1, 2): 0.042, (2, 2): 3.2}[
        count, others
    ]


def test_alone_all_cores_are_used_and_hardly_a_step_is_spent_on_finding_out(monkeypatch):
    machine = Machine(monkeypatch, 2, two_cores)
    machine.train(Threads(2), 1_720)
    assert machine.used == [1] * TRIAL + [2] * (1_720 - TRIAL)
    assert machine.now < 1.01 * 1_720 * two_cores(2, 0)


@pytest.mark.parametrize("others", [1, 2])
def test_beside_busy_processes_one_thread_is_used_from_the_start(monkeypatch, others):
    machine = Machine(monkeypatch, 2, two_cores, others)
    told: list[str] = []
    chosen = Threads(2, tell=told.append)
    machine.train(chosen, 300)
    assert set(machine.used) == {1}, "two aren't tried: a step of two threads may take 3 s"
    assert chosen.count == 1 and len(told) == 1 and told[0].startswith("1 thread instead of 2: ")


def test_a_step_that_takes_ages_ends_a_trial(monkeypatch):
    """Others came when it had begun."""
    machine, chosen = Machine(monkeypatch, 2, two_cores), Threads(2)
    machine.train(chosen, TRIAL)
    machine.others = 2
    machine.train(chosen, 300)
    assert machine.used[TRIAL:].count(2) == 1 and chosen.count == 1


def test_the_number_follows_other_programs_that_come_and_go(monkeypatch):
    machine = Machine(monkeypatch, 2, two_cores)
    told: list[str] = []
    chosen = Threads(2, tell=told.append)
    machine.train(chosen, 200)
    machine.others = 2
    machine.train(chosen, 100)
    assert chosen.count == 1
    assert machine.used[200:300].count(2) <= WINDOW_STEPS, "steps of 3 s, before it was noticed"
    machine.others = 0
    machine.train(chosen, 400)
    assert chosen.count == 2 and machine.used[-1] == 2
    assert [text.partition(":")[0] for text in told] == ["1 thread instead of 2", "2 threads instead of 1"]


def test_more_threads_are_tried_again_ever_more_rarely_where_they_do_not_help(monkeypatch):
    machine = Machine(monkeypatch, 2, lambda count, others: 0.05 if count == 1 else 0.06)
    chosen = Threads(2)
    machine.train(chosen, 10_000)
    assert chosen.count == 1
    early, late = machine.used[:1000].count(2), machine.used[-5000:].count(2)
    assert TRIAL <= early <= 6 * TRIAL
    assert late <= 6 * TRIAL


def test_many_cores_are_not_all_used_where_fewer_are_faster(monkeypatch):
    machine = Machine(monkeypatch, 64, lambda count, others: 0.02 / min(count, 8) + 1e-4 * count)
    chosen = Threads(64)
    machine.train(chosen, 200)
    assert list(dict.fromkeys(machine.used)) == [1, 64, 32, 16, 8, 4]
    assert chosen.count == 8


def test_beside_one_busy_process_of_many_cores_only_its_core_is_left_alone(monkeypatch):
    machine = Machine(monkeypatch, 8, lambda count, others: 0.1 / count * (4 if count + others > 8 else 1))
    chosen = Threads(8)
    machine.train(chosen, 200)
    assert chosen.count == 8
    machine.others = 1
    machine.train(chosen, 400)
    assert chosen.count == 7


def test_a_step_that_was_stopped_changes_nothing(monkeypatch):
    machine, chosen = Machine(monkeypatch, 2, two_cores), Threads(2)
    machine.train(chosen, 100)
    machine.others = 1  # which had the cores while this process was stopped
    monkeypatch.setattr(machine, "seconds", lambda count, others: 60.0)
    machine.train(chosen, 1)
    machine.others = 0
    monkeypatch.setattr(machine, "seconds", two_cores)
    machine.train(chosen, 100)
    assert set(machine.used[2 * TRIAL :]) == {2}


@pytest.mark.parametrize(("options", "others"), [({"first_trial": False}, 0), ({"adapt": False}, 2)])
def test_a_short_run_tries_nothing_at_its_start_and_one_that_is_told_nothing_at_all(
    monkeypatch, options, others
):
    machine = Machine(monkeypatch, 2, two_cores, others)
    machine.train(Threads(2, **options), 200)
    assert set(machine.used) == {2}


@pytest.mark.parametrize("stop", [0, 2, TRIAL, TRIAL + 1, 2 * TRIAL, 50])
def test_a_resumed_run_has_the_same_number_in_every_step(monkeypatch, stop):
    whole = Machine(monkeypatch, 2, two_cores)
    whole.train(Threads(2), 100)
    parts = Machine(monkeypatch, 2, two_cores)
    first = Threads(2)
    parts.train(first, stop)
    second = Threads(2)
    second.load(first.state())
    parts.train(second, 100 - stop)
    assert parts.used == whole.used
    second.load({"count": 8})  # of another machine, which had more cores
    assert second.count == parts.count == 2


def test_epochs_shorter_than_a_trial_do_not_begin_it_anew(monkeypatch):
    machine, chosen = Machine(monkeypatch, 2, two_cores), Threads(2)
    for _ in range(20):
        machine.train(chosen, 3)
    assert machine.used == [1] * TRIAL + [2] * (60 - TRIAL)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity to narrow")
def test_a_core_on_which_this_process_computes_is_not_idle():
    code = """
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from crayon.training.threads import _Load
load = _Load()
end = time.monotonic() + 1.0
while time.monotonic() < end: pass
print(load.count, *load.load())
"""
    out, errors = python(code).communicate()
    assert out, errors
    count, others, idle = map(float, out.split())
    assert count == 1 and idle < 0.2 and -0.1 < others < 0.9


@pytest.mark.faults
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_beside_real_busy_processes_a_run_ends_with_fewer_threads_and_says_so(tmp_path):
    """Twice as many busy processes as cores: what happens on a shared server."""
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        config = tiny("mnist", epochs=60, storage=str(tmp_path), name="r", threads=None)
        end = crayon("mnist", *flags(config), OMP_NUM_THREADS=str(cores))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert end.returncode == 0, end.stderr
    assert f"{cores} threads" in end.stdout
    assert rows(tmp_path / "r")[-1]["threads"] < cores
    assert f" instead of {cores}: " in end.stdout
