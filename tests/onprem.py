"""A cluster that cluster/onprem.yaml started on hosts of its own."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from hosts import ROOT, Host, hosts

TOKEN = {"RAY_AUTH_MODE": "token"}
SUBMIT = TOKEN | {"RAY_API_SERVER_ADDRESS": "http://localhost:8265"}
"""The environment of commands that reach the cluster, and of those that submit jobs from the desk."""


class OnPrem:
    """`up` was called from the desk; Ray runs on the head and the worker."""

    def __init__(self, desk: Host, head: Host, worker: Host, folder: Path):
        self.desk, self.head, self.worker = desk, head, worker
        self.runs = folder / "runs"
        """A folder that all see."""
        self.file = folder / "onprem.yaml"
        for host in (
            head,
            worker,
        ):  # Ray's niceness of 15, beside anything else on these cores, is a standstill
            with (host.home / ".profile").open("a") as profile:
                profile.write("export RAY_worker_niceness=0\n")
        text = (ROOT / "cluster/onprem.yaml").read_text()
        for placeholder, value in {
            "[<10.0.0.2>, <10.0.0.3>]": f"[{worker.address}]",
            "<10.0.0.1>": head.address,
            "<you>": "root",
        }.items():
            assert placeholder in text
            text = text.replace(placeholder, value)
        self.file.write_text(text)
        assert desk.run(["ray", "get-auth-token", "--generate"], env=TOKEN).returncode == 0

    def up(self) -> None:
        """`ray up`, until both hosts are in the cluster."""
        old = {"RAY_UP_enable_autoscaler_v2": "0"}
        up = self.desk.run(["ray", "up", "-y", self.file], timeout=180, env=TOKEN | old)
        assert up.returncode == 0, up.stdout
        wait_for(self.whole)

    def whole(self) -> bool:
        return "2 local.cluster.node" in self.head.run(["ray", "status"], env=TOKEN).stdout

    def open_dashboard(self) -> None:
        """At the desk's localhost:8265, until the desk or the head ends."""
        self.desk.popen(["ray", "dashboard", self.file], env=TOKEN, stdin=subprocess.PIPE)
        wait_for(lambda: ":8265" in self.desk.run(["ss", "-ltn"]).stdout)

    def submit(
        self, *command: str, env: Mapping[str, str] | None = None, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit` from the desk, to the job's end."""
        words = ["ray", "job", "submit", *options, "--", *command]
        return self.desk.run(words, env=SUBMIT | dict(env or {}), timeout=500)

    def rays(self) -> list[str]:
        """The command lines of Ray's processes on the head and the worker."""
        found = []
        for process in (*self.head.processes(), *self.worker.processes()):
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        return [line for line in found if "ray" in line]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[OnPrem]:
    with hosts(3, folder) as (desk, head, worker):
        started = OnPrem(desk, head, worker, folder)
        started.up()
        started.open_dashboard()
        yield started


def wait_for(ready: Callable[[], bool], seconds: float = 180) -> float:
    """How many seconds it took until this was true. Fails after `seconds`."""
    started = time.monotonic()
    while not ready():
        assert time.monotonic() - started < seconds
        time.sleep(1)
    return time.monotonic() - started
