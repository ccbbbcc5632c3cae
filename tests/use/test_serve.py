"""`crayon JOB serve`, really started on Ray Serve."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

import crayon
from crayon.cli import main as cli
from crayon.errors import BadInput
from crayon.tasks import jobs

OWN = """
import crayon
from torch import nn


def network(model, data):
    return nn.Sequential(nn.Flatten(), nn.Linear(data.image_size**2, len(data.classes)))


small = {"epochs": 1, "global_batch_size": 32, "workers": 0, "wandb": "off", "device": "cpu"}
digits = crayon.DataConfig(source="digits", image_size=16, size=64)
quick = crayon.ClassificationExperiment(data=digits, **small)
job = crayon.Job(name="flat", about="Digits.", network=network, presets={"quick": quick})
"""
LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(port, method="GET", path="/api/models", body=None, **headers):
    """(status, content) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()


def until_answered(process, port):
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(port)[0] == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the page never came")


def listening(process):
    """The addresses at which a command and all that it started listen."""
    found = {}
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in member.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr] = member.name()
    return found


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`FILE.py:NAME` of a job that isn't installed, and the folder of a run of it."""
    monkeypatch.setattr(jobs, "_registered", {})
    monkeypatch.setattr(jobs, "_places", {})
    monkeypatch.setattr(jobs, "local_modules", [])
    (tmp_path / "flat_digits.py").write_text(OWN)
    place = f"{tmp_path / 'flat_digits.py'}:job"
    config = dataclasses.replace(jobs.named(place).experiment(), name="own", storage=str(tmp_path))
    monkeypatch.delitem(sys.modules, "flat_digits")
    return place, crayon.train(config).path


@pytest.mark.slow
def test_runs_are_served_until_ctrl_c(runs, own):
    """One of them is of a job of one's own, which Serve's process can't look up."""
    port = free_port()
    words = ["-m", "crayon.cli", own[0], "serve", str(own[1]), str(runs / "mnist"), "--port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *words], start_new_session=True, **pipes)
    try:
        until_answered(process, port)
        content = ask(port)[1]
        assert [(m["name"], m["job"]) for m in json.loads(content)] == [("own", "flat"), ("mnist", "mnist")]
        assert ask(port, path="/")[1].startswith(b"<!doctype html>")
        # All that was said to be refused is so behind Serve's own HTTP server, too.
        assert ask(port, host="evil.example")[0] == 421
        assert ask(port, origin="http://evil.example")[0] == 403
        large = {"path": "/api/models/mnist/classify", "content_type": "image/png"}
        assert ask(port, "POST", body=iter([b"x" * 2**20] * 9), **large)[0] == 413
        assert (
            ask(port, path="/-/routes", host="evil.example")[0] == 421
        )  # Serve's own answers pass the guard, too
        with contextlib.ExitStack() as stalled:  # nor do 120 bodies of which half is sent keep anybody out
            head = (
                "POST /api/models/mnist/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            )
            for _ in range(120):
                half = stalled.enter_context(socket.create_connection(("127.0.0.1", port)))
                half.sendall(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
            time.sleep(1)
            whole = ask(port, "POST", "/api/models/mnist/classify", b"x", content_type="image/png")
            assert whole[0] == 422, whole
        family = psutil.Process(process.pid)
        assert {a: name for a, name in listening(family).items() if a.ip not in LOOPBACK} == {}
        members = [family, *family.children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, err
    assert f"http://127.0.0.1:{port}" in out
    assert "Ctrl-C ends it." in out
    assert err == ""
    assert psutil.wait_procs(members, timeout=10)[1] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("mnist --port 8000", "is missing"),
        ("mnist RUN --port 0", "--port 0 is out of range"),
        ("mnist RUN --max-mib nan", "--max-mib nan is out of range"),
        ("mnist RUN --max-mib -1", "--max-mib -1 is out of range"),
        ("mnist RUN --host 203.0.113.7", "Nothing can listen at 203.0.113.7"),
        ("mnist RUN --host 'no such host'", "Nothing can listen at no such host"),
        ("mnist RUN --port TAKEN", "choose another --port"),
        ("mnist RUN/missing --port FREE", "There is no run"),
        ("mnist RUN --port FREE --checkpoint first", "first"),
        ("gan RUN --port FREE", "RUN is a run of mnist; use crayon mnist serve"),
    ],
)
def test_mistakes_are_told_before_anything_starts(runs, words, says):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"RUN": runs / "mnist", "TAKEN": taken.getsockname()[1], "FREE": free_port()}
        for name, place in places.items():
            words, says = words.replace(name, str(place)), says.replace(name, str(place))
        job, *rest = shlex.split(words)
        with pytest.raises(BadInput) as error:
            cli.run(job, ["serve", *rest])
    assert says in str(error.value)
    assert "ray.serve" not in sys.modules
