"""cluster/onprem.yaml, used as cluster/README.md says, on hosts of its own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers import flags, rows, tiny
from hosts import ROOT, Host, hosts

TOKEN = {"RAY_AUTH_MODE": "token"}
SUBMIT = TOKEN | {"RAY_API_SERVER_ADDRESS": "http://localhost:8265"}


def test_hosts_reach_each_other_until_they_are_cut_off_and_leave_nothing(tmp_path):
    before = interfaces(), Path("/proc/mounts").read_text()
    with hosts(2, tmp_path) as (first, second):
        assert reach(first, second) == 0 and reach(second, first) == 0
        second.cut()
        assert reach(first, second) == 255
        second.heal()
        assert reach(first, second) == 0
        sleeper = second.popen(["sh", "-c", "echo; exec sleep 1000"])
        sleeper.stdout.readline()
        assert [p.name() for p in second.processes()] == ["sleep"] and not first.processes()
        second.kill()
        assert sleeper.wait(10)
        assert reach(first, second) == 255
        second.start()
        assert reach(first, second) == 0
        second.popen(["sleep", "1000"])
        processes = psutil.Process().children(recursive=True)
        names = {p.name() for p in processes}
    assert {"sshd", "sleep", "unshare"} <= names
    assert not [p for p in processes if p.is_running()]
    assert (interfaces(), Path("/proc/mounts").read_text()) == before


def interfaces() -> str:
    return subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True).stdout


def reach(source: Host, target: Host) -> int:
    options = [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "ConnectTimeout=2",
    ]
    return source.run(["ssh", *options, target.address, "test $(hostname) = " + target.name]).returncode


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Host, Host, Host, Path]]:
    """(desk, head, worker, file): the head and the worker were started from the desk with onprem.yaml, whose
    dashboard is at the desk's localhost:8265."""
    with hosts(3, folder) as (desk, head, worker):
        for host in (
            head,
            worker,
        ):  # Ray's niceness of 15, beside anything else on these cores, is a standstill
            with (host.home / ".profile").open("a") as profile:
                profile.write("export RAY_worker_niceness=0\n")
        file = folder / "onprem.yaml"
        text = (ROOT / "cluster/onprem.yaml").read_text()
        for placeholder, value in {
            "[<10.0.0.2>, <10.0.0.3>]": f"[{worker.address}]",
            "<10.0.0.1>": head.address,
            "<you>": "root",
        }.items():
            assert placeholder in text
            text = text.replace(placeholder, value)
        file.write_text(text)
        assert desk.run(["ray", "get-auth-token", "--generate"], env=TOKEN).returncode == 0
        up = desk.run(
            ["ray", "up", "-y", file], timeout=180, env=TOKEN | {"RAY_UP_enable_autoscaler_v2": "0"}
        )
        assert up.returncode == 0, up.stdout
        wait_for(lambda: "2 local.cluster.node" in head.run(["ray", "status"], env=TOKEN).stdout)
        desk.popen(["ray", "dashboard", file], env=TOKEN, stdin=subprocess.PIPE)
        wait_for(lambda: ":8265" in desk.run(["ss", "-ltn"]).stdout)
        yield desk, head, worker, file


def wait_for(ready, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(1)


def small(storage: Path, name: str) -> list[str]:
    return flags(tiny("mnist", workers=2, storage=str(storage), name=name))


def placed(head: Host) -> set[str]:
    """The nodes on which there have been workers."""
    listed = head.run(["ray", "list", "actors", "--format", "json"], env=TOKEN).stdout
    actors = json.loads(listed[listed.index("[\n") :])
    return {actor["node_id"] for actor in actors if actor["class_name"] == "RayTrainWorker"}


@pytest.mark.faults
def test_from_ray_up_to_ray_down(tmp_path):
    runs = tmp_path / "runs"
    with cluster(tmp_path) as (desk, head, worker, file):
        listening = head.run(["ss", "-Hltn", "sport = :8265"]).stdout.split()
        assert [word for word in listening if word.endswith(":8265")] == ["127.0.0.1:8265"]
        # Without the token, nothing is told even on the head itself.
        stranger = head.run(["env", "HOME=/tmp", "ray", "job", "list"], env=SUBMIT)
        assert stranger.returncode != 0 and "token" in stranger.stdout

        submit = ["ray", "job", "submit", "--working-dir", ".", "--"]
        job = desk.run([*submit, "python", "jobs/mnist.py", *small(runs, "first")], env=SUBMIT, timeout=400)
        assert job.returncode == 0, job.stdout
        result = json.loads((runs / "first/result.json").read_text())
        assert 0 <= result["test/accuracy"] <= 1
        assert [row["epoch"] for row in rows(runs / "first")] == [1, 2, 3]
        assert len(placed(head)) == 2

        wrong = desk.run([*submit, "python", "jobs/mnist.py", "--epochs", "0"], env=SUBMIT, timeout=120)
        assert wrong.returncode == 1 and "error: --epochs 0" in wrong.stdout

        down = desk.run(["ray", "down", "-y", file], env=TOKEN, timeout=120)
        assert down.returncode == 0, down.stdout
        wait_for(lambda: not [p for p in (*head.processes(), *worker.processes()) if "ray" in cmdline(p)])


def cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
