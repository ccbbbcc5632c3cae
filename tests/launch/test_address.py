"""Which Ray cluster is joined, and what is said where that can't be; and where our own finds room for its files."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import tempfile
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from helpers import until

from crayon.errors import BadInput, RunFailed
from crayon.launch import address, own_cluster, token


@pytest.fixture
def note(monkeypatch, tmp_path) -> Path:
    """Where `ray start` on this machine would leave its cluster's address."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS")
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def refusal() -> str:
    with pytest.raises(BadInput) as error:
        address.check()
    return str(error.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_dashboards_address_is_told_from_the_clusters(monkeypatch, scheme):
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}://head.example:8265")
    assert "dashboard" in refusal() and "RAY_ADDRESS=head.example:6379" in refusal()


def test_a_web_server_is_no_cluster(monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
        said = refusal()
        server.shutdown()
    assert "dashboard" in said


@pytest.mark.parametrize("named", ["head", "head:port", "head:99999", "ftp://head:1", " "])
def test_what_is_no_address_is_said_to_be_none(monkeypatch, named):
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert "is no address of a Ray cluster; write HOST:PORT" in refusal()


def test_auto_beside_a_cluster_that_does_not_answer_ends_in_a_sentence(monkeypatch, note):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert str(note) in refusal()
    note.write_text(f"127.0.0.1:{closed_port()}")
    assert refusal().startswith(f"No Ray cluster answers at RAY_ADDRESS=auto ({note.read_text()})")


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"no cluster", b"", "folder", "stale", "loop"])
def test_a_damaged_note_of_a_cluster_means_that_there_is_none(note, damage):
    if damage == "folder":
        note.mkdir()
    elif damage == "loop":
        note.symlink_to(note)
    else:
        note.write_bytes(f"127.0.0.1:{closed_port()}".encode() if damage == "stale" else damage)
    assert not address.joins()
    address.check()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives a file to another user")
def test_another_users_note_is_not_followed(monkeypatch, note):
    note.write_text("203.0.113.1:6379")
    os.chown(note, 65534, 65534)
    assert not address.joins()  # without asking that host
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address.address() == "203.0.113.1:6379"  # whoever asks for it


@pytest.mark.skipif(not Path("/proc").exists(), reason="a script's name is its process's on Linux")
def test_a_cluster_with_a_folder_of_its_own_is_found_by_its_node(monkeypatch, note, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "empty"))
    node = tmp_path / "raylet"
    node.write_text("#!/bin/sh\nread line\n")
    node.chmod(0o700)
    note.write_text("203.0.113.1:6379")

    def found() -> bool:
        address._folders_of_nodes.cache_clear()
        return note.read_text() in address._started_here(by_anyone=False)

    with subprocess.Popen([node, f"--temp_dir={note.parent}"], stdin=subprocess.PIPE) as process:
        try:
            until(found)
            monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "empty"))  # which says where to look
            assert not address.joins()
        finally:
            process.kill()
            address._folders_of_nodes.cache_clear()


def gcs(port: int, wanted: str) -> grpc.Server:
    """What of a cluster's head is asked for the token, which is `wanted`."""

    class Service(grpc.GenericRpcHandler):
        def service(self, call):
            sent = dict(call.invocation_metadata).get("authorization", "")

            def answer(request, context):
                if wanted and sent != f"Bearer {wanted}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer) if call.method == token.HELLO else None

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Service()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server


def test_a_wrong_token_is_said_at_once_and_so_is_a_cluster_that_asks_for_none(monkeypatch, home):
    place = f"127.0.0.1:{closed_port()}"
    assert token.check(place) == ""  # nobody there: not what is looked at here
    server = gcs(int(place.rpartition(":")[2]), "ours")
    try:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(BadInput, match="asks for a token: set RAY_AUTH_MODE=token"):
            token.check(place)
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("theirs\n")
        with pytest.raises(BadInput, match=r"doesn't take the token in ~/\.ray/auth_token"):
            token.check(place)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "ours")
        assert token.check(place) == ""
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(BadInput, match="asks for a token"):
            token.check(place)
    finally:
        server.stop(None)
    place = f"127.0.0.1:{closed_port()}"
    server = gcs(int(place.rpartition(":")[2]), "")
    try:
        assert "asks for no token: whoever reaches its ports can run code" in token.check(place)
    finally:
        server.stop(None)


def test_a_start_that_comes_to_nothing_is_tried_again_and_names_what_works_without_ray():
    """Against a stand-in for Ray: its own start can't be made to fail twice in a known way."""
    tries, told = [], []

    def init(**settings: object) -> None:
        tries.append(settings)
        raise RuntimeError("The current node timed out during startup.")

    ray = types.SimpleNamespace(init=init, shutdown=lambda: None, __version__="99.0.0")
    with pytest.raises(RunFailed, match=r"too busy\. Try again, or use --workers 0"):
        own_cluster.start(ray, {"num_cpus": 1}, told.append, "use --workers 0")
    assert tries == [{"num_cpus": 1}] * own_cluster.TRIES
    assert told == ["Ray's processes did not start; trying again."]
