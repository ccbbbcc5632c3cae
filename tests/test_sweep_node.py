"""A sweep on a cluster of two nodes, one of which dies."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from helpers import rows
from test_sweep import result, rows_of, sweep, trials, wait_for


@pytest.fixture
def two_nodes():
    """(cluster, its second node); a core each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=small)
    try:
        yield cluster, cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_killed_node_costs_its_trial_no_more_than_the_epoch_under_way(two_nodes, tmp_path):
    cluster, second = two_nodes
    arguments = sweep(tmp_path, "--trials", "4", "--no-early-stopping", "--space.epochs", "40")
    arguments[arguments.index("--concurrent") + 1] = "2"
    process = subprocess.Popen(
        [sys.executable, "-m", "crayon.cli", *arguments],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(tmp_path, lambda: rows_of(tmp_path, 0) >= 2 and rows_of(tmp_path, 1) >= 2, process)
    raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
    victims = raylet.children(recursive=True)
    names = [" ".join(victim.cmdline()).strip() for victim in victims]
    assert any("Trainable" in name for name in names), names
    for victim in [raylet, *victims]:
        victim.kill()

    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0, out
    assert [(number, state) for number, state, *_ in trials(tmp_path)] == [(n, "COMPLETE") for n in range(4)]
    assert result(tmp_path)["trials"]["complete"] == 4
    for number in range(4):
        trained = rows(tmp_path / "s" / "trials" / f"{number:04d}")
        assert [row["epoch"] for row in trained] == list(range(1, 41)), number
