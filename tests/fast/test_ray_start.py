"""Where Ray has changed inside, it starts by its public interface alone, and the log says so."""

from __future__ import annotations

import logging
import sys
import types

from ray.train.torch import TorchTrainer

from crayon.fast import ray_start


def test_a_name_that_ray_has_no_more_leaves_everything_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr(ray_start, "tried", lambda version: True)
    made = types.SimpleNamespace(Node=type("Node", (), {"start_log_monitor": 1}))
    other = types.SimpleNamespace(
        __version__="2.60.9", _private=types.SimpleNamespace(node=made, services=made)
    )
    with caplog.at_level(logging.WARNING, "crayon"), ray_start.few_processes(other):
        assert vars(made.Node)["start_log_monitor"] == 1
    with ray_start.patience(other, 0.0, lambda: True):
        assert not hasattr(made, "get_node")
    assert caplog.text.count("any more: it starts as it does by itself") == 2


def test_a_trainer_that_cannot_be_imported_is_rays_own(monkeypatch, caplog):
    monkeypatch.setattr(ray_start, "tried", lambda version: True)
    monkeypatch.setitem(sys.modules, "crayon.fast.ray_train", None)
    with caplog.at_level(logging.WARNING, "crayon"):
        assert ray_start.trainer_class() is TorchTrainer
    assert "gets a process of its own" in caplog.text
