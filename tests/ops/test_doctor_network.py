"""What listens, and the token, as the doctor finds them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from examined import CANARY, by_name, facts

from crayon.ops.doctor import network, node


@pytest.mark.parametrize(
    ("address", "mode", "state"),
    [("0.0.0.0", "disabled", "warning"), ("0.0.0.0", "token", "note"), ("127.0.0.1", "disabled", "ok")],
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
