"""The doctor finds what is really wrong, says how to mend it, shows no secret and leaves nothing behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time

import pytest
from examined import CANARY, by_name, facts, on_node, packages
from helpers import crayon
from nodes import Nodes

from crayon.cli import main as cli
from crayon.ops.doctor import login, machine, network, node, probe, storage
from crayon.ops.doctor.findings import Pending

# Versions and GPUs.


def test_versions_here_are_compared_with_pyproject():
    assert [f.state for f in machine.versions(facts())] == ["ok"]
    wrong = by_name(machine.versions(facts(python="3.9.1", **packages(ray="2.40.0", optuna=None))))["here"]
    assert wrong.state == "error"
    for word in ("Python >=3.10", "ray<3,>=2.54", "optuna<6,>=4.5"):
        assert word in wrong.text


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "ok", "the same versions"),
        (packages(ray="2.55.0"), "error", "ray 2.55.0 (here "),
        (packages(crayon=None), "error", "crayon is not installed"),
        (packages(wandb=None), "error", "wandb missing"),
        ({"python": "3.11.99"}, "error", "Python 3.11.99"),
        (packages(numpy="2.0.0"), "warning", "numpy 2.0.0"),
        ({"failed": "no answer"}, "error", "no answer"),
    ],
)
def test_versions_of_a_node_are_compared_with_here(changes, state, words):
    found = by_name(machine.versions(facts(), [on_node(**changes)]))["10.0.0.1 111111"]
    assert found.state == state
    assert words in found.text


def test_nodes_that_compute_together_need_one_torch_and_one_nccl():
    gpu = {"cuda": "12.8", "nccl": "2.27.3", "gpus": ["H100"]}
    nodes = [on_node(1, torch=gpu), on_node(2, torch=gpu | {"nccl": "2.21.5"}, **packages(torch="2.10.0"))]
    found = by_name(machine.versions(facts(), nodes))
    assert "2.21.5, 2.27.3" in found["NCCL on nodes"].text
    assert found["torch on nodes"].state == "error"


@pytest.mark.parametrize(
    ("ray", "gpus", "driver", "state", "words"),
    [
        (0, [], {"version": None, "gpus": []}, "note", "no GPU"),
        (2, ["H100"] * 2, {"version": "570.1", "gpus": ["H100"] * 2}, "ok", "2 x H100"),
        (0, [], {"version": "570.1", "gpus": ["H100"]}, "error", "sees none"),
        (1, ["H100"] * 2, {"version": "570.1", "gpus": ["H100"] * 2}, "warning", "Ray counts 1"),
        (1, [], {"version": None, "gpus": []}, "error", "Ray counts 1"),
        (0, [], {"version": None, "gpus": [], "failed": "no devices"}, "warning", "nvidia-smi fails"),
    ],
)
def test_gpus_are_a_fact_and_only_disagreement_is_wrong(ray, gpus, driver, state, words):
    torch = {"cuda": "12.8", "nccl": "2.27.3", "gpus": gpus}
    found = by_name(machine.gpus(facts(), [on_node(gpus=ray, torch=torch, driver=driver)]))
    assert found["10.0.0.1 111111"].state == state
    assert words in found["10.0.0.1 111111"].text


# W&B.


def test_where_the_key_is_is_told_and_never_the_key(home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert node.wandb_key()["key"] is None
    (home / ".netrc").write_text(f"machine 127.0.0.1 login user password {CANARY}\n")
    asked = node.wandb_key()
    assert asked["key"] == "~/.netrc" and CANARY not in str(asked)
    assert sorted(p.name for p in home.iterdir()) == [".netrc"]
    found = by_name(login.wandb(facts(wandb=asked), [on_node()]))
    assert found["W&B"].state == "warning" and "does not answer" in found["W&B"].text  # nothing listens there
    assert "10.0.0.1" in found["W&B on nodes"].text
    assert "not logged in" in by_name(login.wandb(facts()))["W&B"].text
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert by_name(login.wandb(facts(wandb=asked)))["W&B"].state == "note"


# What listens, and the token.


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


# The command.


def test_a_check_that_hangs_or_breaks_is_one_warning():
    hangs, breaks = Pending("slow", lambda: time.sleep(60), 0.2), Pending("broken", lambda: 1 / 0, 5)
    assert [f.state for f in hangs.findings()] == ["warning"] and hangs.hangs
    assert "ZeroDivisionError" in breaks.findings()[0].text


def test_a_cluster_that_takes_connections_and_says_nothing_is_given_up(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        report = probe.ask(str(tmp_path), *storage.probe_names(), seconds=1)
    assert "did not answer within 1 s" in report.failed and not report.nodes


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.yaml"], ["."], ["--storag", "x"], ["--job", "x"], ["--storage", "ftp://x"], ["a", "b"]],
)
def test_bad_usage_is_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(None, ["doctor", *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_a_dead_cluster_is_one_error_and_the_rest_is_still_examined(home):
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {CANARY}\n")
    (home / "c.yaml").write_text(f"wandb_api_key: {CANARY}\n")
    here = sorted(home.iterdir())
    keys = {"WANDB_API_KEY": CANARY, "RAY_AUTH_TOKEN": CANARY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    end = crayon("doctor", "c.yaml", "--job", "mnist", cwd=home, RAY_ADDRESS="127.0.0.1:9", **keys)
    assert end.returncode == 1 and end.stderr == "", end.stderr
    assert "\x1b" not in end.stdout and CANARY not in end.stdout
    found = re.findall(r"(?m)^(?:ok|note|warning|error) .*", end.stdout)
    lines = {line[9:31].strip(): line for line in found}
    assert lines["cluster"].startswith("error") and "127.0.0.1:9" in lines["cluster"]
    assert lines["disk"].startswith("ok") and "mnist" in lines["disk"]
    assert lines["W&B"].startswith("warning") and "WANDB_API_KEY" in lines["W&B"]
    assert lines["file"].startswith("error") and "provider" in lines["file"]
    assert sorted(home.iterdir()) == here


@pytest.mark.faults
def test_a_cluster_is_asked_node_by_node(tmp_path):
    """Two nodes that see this machine's disk, and a third that has one of its own where the runs should go."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with Nodes(1, head=1) as cluster, cluster.apart(runs) as more:
        words = ["--storage", str(runs), "--job", "mnist"]
        end = crayon("doctor", *words, cwd=tmp_path, RAY_ADDRESS=cluster.address, HOME=str(tmp_path))
    out, nodes = end.stdout, 2 + more
    assert end.stderr == "" and end.returncode == int(more), out + end.stderr
    assert f"{nodes} nodes with {nodes} CPUs and 0 GPUs" in out
    assert len(re.findall(r"ok +[\d.]+ [0-9a-f]{6} +the same versions as here; 1 CPU", out)) == nodes
    assert len(re.findall(r"note +[\d.]+ [0-9a-f]{6} +no GPU", out)) == nodes
    assert "2 nodes and this machine see each other's files" in out
    assert len(re.findall(r"error +[\d.]+ [0-9a-f]{6} +\S+runs is not shared", out)) == int(more)
    assert list(tmp_path.rglob("*")) == [runs]
