"""Ports, token and dashboard, as the doctor finds them."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading

import pytest
from examined import CANARY, by_name, facts

from crayon.ops.doctor import network, node


def test_a_port_that_is_taken_is_named_with_its_holder():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {port: ("the dashboard's", "--dashboard-port")}
        found = network.free_ports(ports)
        assert found.state == "warning"
        assert str(port) in found.text and f"process {os.getpid()}" in found.text
        assert "--dashboard-port" in found.mend
    assert network.free_ports(ports).state == "ok"


@pytest.mark.parametrize(
    ("address", "mode", "state"),
    [
        ("0.0.0.0", "disabled", "warning"),
        ("0.0.0.0", "token", "note"),
        ("127.0.0.1", "disabled", "ok"),
    ],
)
def test_what_ray_listens_on_is_found_and_whether_it_asks_for_the_token(tmp_path, address, mode, state):
    (tmp_path / "gcs_server").symlink_to(os.path.realpath(sys.executable))
    code = (
        f"import socket, sys; server = socket.create_server(('{address}', 0))\n"
        "print(server.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [tmp_path / "gcs_server", "-I", "-c", code],
        env=os.environ | {"RAY_AUTH_MODE": mode, "PYTHONHOME": sys.base_prefix},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        port = int(server.stdout.readline())
        mine = [entry for entry in node.listeners() if entry[2] == port]
        server.stdin.close()
    assert mine == [["GCS", address, port, mode == "token"]]
    assert by_name(network.exposed(facts(listeners=mine)))["ports here"].state == state


def test_the_token_is_not_shown_and_others_must_not_read_it(home, monkeypatch):
    assert network.token().state == "note"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert network.token().state == "error"
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text(CANARY)
    path.chmod(0o644)
    found = network.token()
    assert found.state == "warning" and "0644" in found.text and found.mend == "chmod 600 ~/.ray/auth_token"
    path.chmod(0o600)
    assert network.token().state == "ok"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert network.token().mend == "export RAY_AUTH_MODE=token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert network.token().state == "warning"
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", CANARY)
    assert CANARY not in str(network.token())


@pytest.mark.parametrize(
    ("status", "state", "words"), [(200, "note", "no token"), (401, "ok", "the token"), (404, "error", "404")]
)
def test_the_job_server_is_asked_whether_it_asks_for_the_token(monkeypatch, status, state, words):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *ignored):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
        found = by_name(network.dashboard(""))["job server"]
        server.shutdown()
    assert found.state == state and words in found.text
    assert by_name(network.dashboard(""))["job server"].state == "error"  # nothing listens any more


def test_a_dashboard_on_loopback_is_well_and_another_a_warning(home):
    assert by_name(network.dashboard("127.0.0.1:8265"))["dashboard"].state == "ok"
    assert by_name(network.dashboard("10.0.0.1:8265"))["dashboard"].state == "warning"
