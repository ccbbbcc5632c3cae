"""`crayon JOB serve`, really started on Ray Serve."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from helpers import tiny

from crayon.cli import main as cli
from crayon.errors import BadInput
from crayon.system.runfolder import RunFolder
from crayon.training import worker


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folder = RunFolder(str(root), "digits")
    folder.create()
    worker.run_worker(tiny("mnist", epochs=1, storage=str(root), name="digits"), folder, measure=False)
    return root / "digits"


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


@pytest.mark.slow
def test_a_run_is_served_until_ctrl_c(run):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "crayon.cli",
        "mnist",
        "serve",
        str(run),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until_answered(process, port)
        content = ask(port)[1]
        assert [m["name"] for m in json.loads(content)] == ["digits"]
        assert ask(port, path="/")[1].startswith(b"<!doctype html>")
        # All that was said to be refused is so behind Serve's own HTTP server, too.
        assert ask(port, host="evil.example")[0] == 421
        assert ask(port, origin="http://evil.example")[0] == 403
        large = {"path": "/api/models/digits/classify", "content_type": "image/png"}
        assert ask(port, "POST", body=iter([b"x" * 2**20] * 9), **large)[0] == 413
        family = psutil.Process(process.pid)
        everywhere = {
            a: n for a, n in listening(family).items() if a.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
        }
        assert everywhere == {}
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
    ("arguments", "says"),
    [
        (["--port", "8000"], "is missing"),
        (["RUN", "--port", "0"], "--port 0 is out of range"),
        (["RUN", "--max-mib", "nan"], "--max-mib nan is out of range"),
        (["RUN", "--max-mib", "-1"], "--max-mib -1 is out of range"),
        (["RUN", "--host", "203.0.113.7"], "Nothing can listen at 203.0.113.7"),
        (["RUN", "--host", "no such host"], "Nothing can listen at no such host"),
        (["RUN", "--port", "TAKEN"], "choose another --port"),
        (["RUN/missing", "--port", "FREE"], "There is no run"),
        (["RUN", "--port", "FREE", "--checkpoint", "first"], "first"),
        (["GAN", "RUN", "--port", "FREE"], "RUN is a run of mnist; use crayon mnist serve"),
    ],
)
def test_mistakes_are_told_before_anything_starts(run, arguments, says):
    job = "mnist"
    if arguments[0] == "GAN":
        job, arguments = "gan", arguments[1:]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = {"RUN": str(run), "TAKEN": str(taken.getsockname()[1]), "FREE": str(free_port())}
        for name, value in place.items():
            arguments = [word.replace(name, value) for word in arguments]
            says = says.replace(name, value)
        with pytest.raises(BadInput) as error:
            cli.run(job, ["serve", *arguments])
    assert says in str(error.value)
    assert "ray.serve" not in sys.modules


def test_a_mistake_loads_neither_torch_nor_ray(run):
    code = (
        "import sys\nfrom crayon.cli import main as cli\n"
        f"try: cli.main('mnist', ['serve', {str(run)!r}, '--port', '0'])\nexcept SystemExit as end: code = end.code\n"
        "assert not {'torch', 'ray', 'fastapi'} & set(sys.modules), set(sys.modules) & {'torch', 'ray', 'fastapi'}\n"
        "sys.exit(code)"
    )
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert end.returncode == 2, end.stderr
    assert end.stderr.startswith("error: --port 0")
