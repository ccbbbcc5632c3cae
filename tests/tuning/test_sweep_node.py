"""A sweep on a cluster of two nodes, one of which dies."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from helpers import kill_with_family, rows
from test_sweep import TRIAL, result, rows_of, sweep, trials, wait_for

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
second = cluster.add_node(**small)
print(cluster.address, second.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def two_nodes():
    """(address, the second node's raylet) of a cluster with a core on each of two nodes."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # As on our own cluster: at Ray's niceness of 15, one busy program beside the test keeps workers from starting.
        env=os.environ | {"RAY_worker_niceness": "0"},
    ) as process:
        address, pid = process.stdout.readline().split()
        yield address, psutil.Process(int(pid))
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            kill_with_family(process)


@pytest.mark.faults
def test_a_killed_node_costs_its_trial_no_more_than_the_epoch_under_way(two_nodes, tmp_path):
    address, raylet = two_nodes
    arguments = sweep(tmp_path, "--trials", "3", "--no-early-stopping", "--space.epochs", "100")
    arguments[arguments.index("--concurrent") + 1] = "2"
    process = subprocess.Popen(
        [sys.executable, "-m", "crayon.cli", *arguments],
        # Under `uv run` an environment would be built for the workers: slow, and not what this is about.
        env=os.environ | {"RAY_ADDRESS": address, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    victims: list[psutil.Process] = []

    def two_trials_run() -> bool:
        """One of them on the second node, whose processes are the victims then."""
        victims[:] = raylet.children(recursive=True)
        there = any(TRIAL.search(" ".join(p.cmdline())) for p in victims)
        return there and rows_of(tmp_path, 0) >= 2 and rows_of(tmp_path, 1) >= 2

    wait_for(tmp_path, two_trials_run, process)
    for victim in [raylet, *victims]:
        victim.kill()

    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0, out
    assert [(number, state) for number, state, *_ in trials(tmp_path)] == [(n, "COMPLETE") for n in range(3)]
    assert result(tmp_path)["trials"]["complete"] == 3
    for number in range(3):
        trained = rows(tmp_path / "s" / "trials" / f"{number:04d}")
        assert [row["epoch"] for row in trained] == list(range(1, 101)), number
