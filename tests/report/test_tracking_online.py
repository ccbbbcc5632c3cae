"""A server of Weights & Biases that isn't there, doesn't answer, goes away or comes back."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import until
from wandb_files import follower, history, process_of, records, result, row
from wandb_server import Server

from crayon.report import wandb_follower
from crayon.report.wandb_follower import Follower

KEY = "c0ffee" * 6 + "beef"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def no_key_in(run: Path) -> bool:
    return not any(KEY.encode() in p.read_bytes() for p in run.rglob("*") if p.is_file())


def steps(found: list[dict]) -> list[int]:
    return [r["step"] for r in found if "train/loss" in r]


@pytest.mark.parametrize("server", ["closed", pytest.param("silent", marks=pytest.mark.faults)])
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
        told: list[str] = []
        t = follower(run, tell=told.append)
        row(run, 10)
        process_of(run)
        children = psutil.Process().children(recursive=True)
        assert not any(KEY in word for process in children for word in process.cmdline())
        begun = time.monotonic()
        result(run)
        upload = t.finish()
    assert time.monotonic() - begun < 30
    assert len(told) == 1 and "going on offline" in told[0]
    assert steps(history(records(run))) == [10]
    assert upload.startswith("wandb sync ")
    assert no_key_in(run) and KEY not in repr(told)


def begun_online(run: Path, server: Server, monkeypatch, tell: Callable[[str], None]) -> Follower:
    """A follower whose first row, of step 10, the server has got."""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    t = follower(run, tell=tell)
    row(run, 10)
    until(lambda: server.rows)
    return t


def test_a_server_that_goes_away_leaves_the_rows_here_to_be_uploaded_without_one_twice(run, monkeypatch):
    monkeypatch.setattr(wandb_follower, "FINISH_SECONDS", 3.0)
    told: list[str] = []
    with Server() as server:
        t = begun_online(run, server, monkeypatch, told.append)
    row(run, 20)
    result(run, model=False)  # this server takes no artifacts
    upload = t.finish()
    assert any("not all was sent within 3 s" in text for text in told)
    assert steps(server.rows) == [10] and steps(history(records(run))) == [10, 20]
    assert re.fullmatch(r"wandb sync \S*/offline-run-\S*", upload)
    assert no_key_in(run)
    with Server(server.port, server.rows):
        command = [str(Path(sys.executable).with_name("wandb")), *upload.split()[1:]]
        end = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=60)
        assert end.returncode == 0, end.stderr
    assert steps(server.rows) == [10, 20]


@pytest.mark.faults
def test_a_server_that_comes_back_is_sent_every_row(run, monkeypatch):
    told: list[str] = []
    with Server() as server:
        t = begun_online(run, server, monkeypatch, told.append)
    row(run, 20)
    time.sleep(1)
    with Server(server.port, server.rows):
        row(run, 30)
        assert t.finish() == ""
    assert told == [] and steps(server.rows) == [10, 20, 30]


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param("process", marks=pytest.mark.faults),
        "process and its helper",
        pytest.param("training and process", marks=pytest.mark.faults),
    ],
)
def test_what_is_killed_while_online_is_gone_on_with_and_no_row_is_sent_twice(run, monkeypatch, killed):
    told: list[str] = []
    with Server() as server:
        t = begun_online(run, server, monkeypatch, told.append)
        process = process_of(run)
        if killed == "training and process":
            t._left = 0  # as good as killed: it starts no other
            t._say = lambda text: None
        for victim in [*process.children(recursive=True), process][0 if "helper" in killed else -1 :]:
            victim.kill()
        row(run, 20)
        if killed == "training and process":
            t._thread.join(10)
            t = follower(run, tell=told.append)
        row(run, 30)
        t.finish()
        assert steps(server.rows) == [10, 20, 30] and told == []
