"""A server of Weights & Biases that isn't there, doesn't answer, goes away or comes back."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from wandb_files import Warnings, arguments_of_children, history, records, tracker
from wandb_server import Server

from crayon.report import wandb
from crayon.report.wandb import Tracker

KEY = "c0ffee" * 6 + "beef"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def no_key_in(run: Path) -> bool:
    return not any(KEY.encode() in p.read_bytes() for p in run.rglob("*") if p.is_file())


@pytest.mark.parametrize("server", ["closed", "silent"])
def test_online_without_a_network_goes_on_offline(run, monkeypatch, server):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        if server == "silent":
            listening.listen(50)  # accepts, and never answers
        else:
            listening.close()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        warnings, begun = Warnings(), time.monotonic()
        t = tracker(run, warn=warnings)
        t.log({"step": 10, "train/loss": 0.5}, 10)
        time.sleep(0.5)
        assert KEY not in arguments_of_children()
        t.finish({"test/accuracy": 1.0})
    assert time.monotonic() - begun < wandb.ONLINE_SECONDS + 20
    assert len(warnings) == 1
    assert "going on offline" in warnings[0]
    assert [r["step"] for r in history(records(run))] == [10]
    assert t.sync_command.startswith("wandb sync ")
    assert no_key_in(run)
    assert KEY not in repr(warnings)


def steps_of(found: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in found]


def begun_online(run: Path, server: Server, monkeypatch, warnings: Warnings) -> Tracker:
    """A tracker whose first row, of step 10, the server has got."""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    t = tracker(run, warn=warnings)
    t.log({"step": 10}, 10)
    deadline = time.monotonic() + 60
    while not server.rows:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return t


def test_a_server_that_goes_away_in_the_middle_leaves_the_rows_here(run, monkeypatch):
    monkeypatch.setattr(wandb, "FINISH_SECONDS", 3.0)
    warnings = Warnings()
    with Server() as server:
        t = begun_online(run, server, monkeypatch, warnings)
    t.log({"step": 20}, 20)
    t.finish({"test/accuracy": 1.0})
    assert len(warnings) == 1 and "not all was sent within 3 s" in warnings[0]
    assert steps_of(server.rows) == [10] and steps_of(history(records(run))) == [10, 20]
    assert re.fullmatch(r"wandb sync \S*/offline-run-\S*", t.sync_command)
    assert no_key_in(run)


def test_a_server_that_comes_back_is_sent_every_row(run, monkeypatch):
    warnings = Warnings()
    with Server() as server:
        t = begun_online(run, server, monkeypatch, warnings)
    t.log({"step": 20}, 20)
    time.sleep(1)
    with Server(server.port) as again:
        t.log({"step": 30}, 30)
        t.finish({"test/accuracy": 1.0})
    assert warnings == [] and t.sync_command == ""
    assert steps_of(server.rows + again.rows) == [10, 20, 30]


def test_a_process_that_dies_while_online_is_followed_by_one_that_is_told_all(run, monkeypatch):
    warnings = Warnings()
    with Server() as server:
        t = begun_online(run, server, monkeypatch, warnings)
        t._process.kill()
        t.log({"step": 20}, 20)
        t.finish({})
    assert len(warnings) == 1 and "going on offline" in warnings[0]
    assert steps_of(history(records(run))) == [10, 20] and "offline-run" in t.sync_command
