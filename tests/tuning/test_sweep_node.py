"""A sweep on a cluster whose nodes come and go."""

from __future__ import annotations

import pytest
from helpers import rows
from nodes import Nodes
from test_nodes import Run
from test_sweep import TRIAL, commandline, result, rows_of, sweep, trials, wait_for


def trains(nodes: Nodes, number: int) -> bool:
    """Whether a node trains trials."""
    return any(TRIAL.search(commandline(p)) for p in nodes.raylets[number].children(recursive=True))


@pytest.mark.faults
def test_a_sweep_follows_its_cluster_and_a_killed_node_costs_no_more_than_the_epoch_under_way(tmp_path):
    arguments = sweep(tmp_path, "--trials", "4", "--no-early-stopping", "--space.epochs", "150")
    del arguments[(at := arguments.index("--concurrent")) : at + 2]
    with Nodes(1) as nodes:
        run = Run(arguments, **nodes.env)
        wait_for(tmp_path, lambda: rows_of(tmp_path, 0) >= 2, run.process)
        nodes.add()
        run.says("The cluster has room for 2 trials at once now (1 before).")
        wait_for(tmp_path, lambda: trains(nodes, 1) and rows_of(tmp_path, 1) >= 2, run.process)
        nodes.kill(0)
        run.says("The cluster has room for 1 trial at once now (2 before).")
        assert run.ends() == 0, run.out
    assert "lost its process or its node; it goes on after epoch" in run.out
    assert "Traceback" not in run.out
    assert [(number, state) for number, state, *_ in trials(tmp_path)] == [(n, "COMPLETE") for n in range(4)]
    assert result(tmp_path)["trials"]["complete"] == 4
    assert result(tmp_path)["this_command"]["concurrent"] == 2
    for number in range(4):
        trained = rows(tmp_path / "s" / "trials" / f"{number:04d}")
        assert [row["epoch"] for row in trained] == list(range(1, 151)), number
