"""How a cluster is shared out between trials."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray

from crayon.config.names import override
from crayon.errors import BadInput
from crayon.tasks.jobs import get
from crayon.tuning.settings import SweepConfig
from crayon.tuning.slots import Growth, Slots, hint, slots


def shared(monkeypatch, cores: int, gpus: int, changes: dict | None = None, **sweep) -> Slots:
    resources = {"CPU": float(cores), "GPU": float(gpus)}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "", "Alive": True, "Resources": resources}])
    return slots(override(get("mnist"), changes or {}), SweepConfig(**sweep))


@pytest.mark.parametrize(
    ("cores", "gpus", "changes", "sweep", "wanted"),
    [
        (2, 0, {}, {}, Slots(2, 1, 0.0)),
        (8, 0, {}, {"concurrent": 2}, Slots(2, 4, 0.0)),
        (8, 0, {}, {"concurrent": 3}, Slots(3, 2, 0.0)),
        (8, 0, {"ray.cpus_per_worker": 3}, {}, Slots(2, 3, 0.0)),
        (16, 2, {}, {}, Slots(2, 8, 1.0)),
        (16, 1, {}, {"gpus_per_trial": 0.25}, Slots(4, 4, 0.25)),
        (16, 2, {}, {"gpus_per_trial": 0.3}, Slots(6, 2, 0.3)),
        (2, 1, {}, {"gpus_per_trial": 0.1}, Slots(2, 1, 0.1)),
        (16, 4, {"device": "cpu"}, {}, Slots(16, 1, 0.0)),
        (64, 0, {}, {"trials": 20}, Slots(20, 3, 0.0)),
        (16, 4, {"workers": 2}, {}, Slots(2, 4, 1.0)),
        (8, 0, {"workers": 2}, {}, Slots(4, 1, 0.0)),
        (8, 0, {"workers": 2}, {"concurrent": 1}, Slots(1, 4, 0.0)),
    ],
)
def test_what_a_trial_gets(monkeypatch, cores, gpus, changes, sweep, wanted):
    assert shared(monkeypatch, cores, gpus, changes, **sweep) == wanted


@pytest.mark.parametrize(
    ("cores", "gpus", "changes", "sweep", "words"),
    [
        (2, 0, {}, {"concurrent": 3}, "--concurrent 3 is more than the 2"),
        (2, 0, {"device": "cuda"}, {}, "no GPU"),
        (2, 0, {"ray.cpus_per_worker": 4}, {}, "doesn't fit"),
        (2, 0, {"workers": 4}, {}, "doesn't fit"),
        (8, 1, {"workers": 2}, {}, "more than the cluster's 1 GPUs"),
    ],
)
def test_what_does_not_fit_is_said(monkeypatch, cores, gpus, changes, sweep, words):
    with pytest.raises(BadInput, match=words):
        shared(monkeypatch, cores, gpus, changes, **sweep)


def test_a_cluster_that_was_joined_may_have_its_nodes_still_to_come(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert shared(monkeypatch, 2, 0, concurrent=3) == Slots(2, 1, 0.0)
    assert shared(monkeypatch, 0, 0) == Slots(0, 1, 0.0)
    assert shared(monkeypatch, 0, 0, {"device": "cuda"}) == Slots(0, 1, 1.0)


def test_trials_that_start_later_have_the_cores_of_a_cluster_that_grew(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    cases = (({}, 0, "20 trials at once now (2 before), of 3 CPU"), ({"device": "cuda"}, 4, "of 16"))
    for changes, gpus, later in cases:
        found = shared(monkeypatch, 2, 0, changes)
        assert found.cpus == 1
        growth = Growth(override(get("mnist"), changes), SweepConfig(), found, (told := []).append)
        shared(monkeypatch, 64, gpus, changes)
        growth.follow(0, 0)
        assert later in told[0] and found.cpus == (16 if gpus else 3)


def test_no_trial_gets_more_cores_than_a_node_has(monkeypatch):
    nodes = [{"NodeID": "", "Alive": True, "Resources": {"CPU": 8.0, "GPU": gpu}} for gpu in (0.0, 1.0)]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert slots(get("mnist"), SweepConfig()) == Slots(1, 8, 1.0)
    assert slots(override(get("mnist"), {"device": "cpu"}), SweepConfig(concurrent=1)) == Slots(1, 8, 0.0)


def test_many_trials_at_once_are_told():
    assert "8 of 20 trials run at once" in hint(8, SweepConfig()) and "--concurrent 7" in hint(
        8, SweepConfig()
    )
    for count, asked in ((7, {}), (8, {"sampler": "random"}), (8, {"concurrent": 8}), (6, {"trials": 6})):
        assert hint(count, SweepConfig(**asked)) == ""


def test_what_a_sweep_needs_before_it_starts_ray_does_not_import_it():
    """Ray reads its settings, the token among them, when it is imported: they are made before that."""
    code = "import sys, crayon.tuning.driver, crayon.tuning.images, crayon.tuning.study; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
