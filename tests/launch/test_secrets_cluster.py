"""On a cluster with a dashboard: what whoever reaches it can see of a submitted job, and of a sweep in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from canary import ALL, AWS, NETRC, RAY, WANDB, Watch, in_bytes, in_folder
from helpers import flags, tiny
from test_address import closed_port

pytestmark = pytest.mark.faults
LISTS = ["actors", "jobs", "nodes", "workers", "tasks", "runtime_envs"]
PAGES = [f"/api/v0/{what}?detail=1&limit=1000" for what in LISTS]
PAGES += [
    "/api/jobs/",
    "/nodes?view=summary",
    "/nodes?view=details",
    "/logical/actors",
    "/api/v0/cluster_metadata",
]
PAGES += ["/api/component_activities", "/api/cluster_status", "/api/prometheus/sd", "/api/v0/tasks/timeline"]


class Head:
    """`ray start --head` in a process of its own, which has all the secrets where they belong."""

    def __init__(self, place: Path, watched: bool = True):
        self.place = place
        home = place / "home"
        home.mkdir()
        (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {NETRC}\n")
        (home / ".netrc").chmod(0o600)
        gcs, dashboard, client, agent = (closed_port() for _ in range(4))
        self.url = f"http://127.0.0.1:{dashboard}"
        self.env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
            "HOME": str(home),
            "RAY_TMPDIR": str(place),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": RAY,
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "PYTHONWARNINGS": "ignore",
        }
        words = ["start", "--head", "--block", f"--port={gcs}", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
        words += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        words += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"]
        self.process = self.ray(*words, WANDB_API_KEY=WANDB, AWS_SECRET_ACCESS_KEY=AWS)
        self.watch = Watch(self.process) if watched else None
        deadline = time.monotonic() + 120
        while not self.get("/api/jobs/"):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def ray(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def get(self, page: str) -> bytes:
        request = urllib.request.Request(self.url + page, headers={"Authorization": f"Bearer {RAY}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except (urllib.error.URLError, OSError):
            return b""

    def submit(self, *arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str, dict[str, bytes]]:
        """(exit code, output, all that the dashboard showed of it meanwhile) of a job."""
        entry = ["--", sys.executable, "-m", "crayon.cli", "mnist", *arguments]
        job = self.ray("job", "submit", *options, *entry)
        seen: dict[str, bytes] = {}
        while job.poll() is None:
            for page in PAGES:
                seen[page] = seen.get(page, b"") + self.get(page)
            time.sleep(1)
        out = job.communicate()[0]
        deadline = time.monotonic() + 60
        while not (known := self.get("/api/jobs/")):  # a busy dashboard
            assert time.monotonic() < deadline
        for shown in json.loads(known):
            page = f"/api/jobs/{shown['submission_id']}/logs"
            seen[page] = self.get(page)
        return job.returncode, out, seen

    def close(self) -> None:
        if self.watch:
            self.watch.over.set()
            self.watch.join()
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        parent.terminate()
        for process in psutil.wait_procs(family, timeout=20)[1]:
            process.kill()
        self.process.communicate()


@pytest.fixture
def head():
    with tempfile.TemporaryDirectory(prefix="ch-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder))
        yield head
        head.close()


def test_a_job_shows_no_secret_and_one_submitted_with_a_secret_is_refused(head):
    place = head.place
    run = tiny(
        "mnist", name="run", storage=str(place / "runs"), workers=1, wandb="offline", ray__cpus_per_worker=1
    )
    code, out, seen = head.submit(*flags(run))
    assert code == 0, out
    assert list(place.glob("runs/run/wandb/offline-run-*/*.wandb"))
    assert any("crayon.report.wandb" in line for line in head.watch.knew[WANDB])  # it has reached it
    assert b"RayTrainWorker" in seen["/logical/actors"] and b"crayon.cli" in seen["/api/jobs/"]
    found = {page for page, content in seen.items() if in_bytes(content)}
    assert not found
    assert not in_bytes(out.encode())

    trial = tiny("mnist", name="sweep", storage=str(place / "runs"), epochs=1, workers=1, wandb="offline")
    search = ["tune", *flags(trial), "--trials", "1", "--concurrent", "1", "--ray.cpus-per-worker", "1"]
    code, out, seen = head.submit(*search)
    assert code == 0, out
    actors = set(re.findall(rb'"(?:actorClass|className|reprName)": "([^"]+)"', seen["/logical/actors"]))
    assert any(re.search(rb"Trainable|TrialActor|Inner", name) for name in actors), actors
    assert not {page for page, content in seen.items() if in_bytes(content)} and not in_bytes(out.encode())

    told = [line for line in head.watch.told if in_bytes(line.encode())]
    assert not told
    (place / "home" / ".netrc").unlink()
    assert in_folder(place) == []

    # Ray itself has shown and logged what is submitted like this, before crayon's first line runs.
    planted = "deadbeef" * 5
    assert planted not in ALL
    environment = json.dumps({"env_vars": {"WANDB_API_KEY": planted}})
    refused = tiny("mnist", name="refused", storage=str(place / "runs"), workers=1)
    code, out, seen = head.submit(*flags(refused), options=("--runtime-env-json", environment))
    words = " ".join(out.split())
    assert code != 0 and "holds a secret (WANDB_API_KEY)" in words and "dashboard" in words, out
    assert not (place / "runs" / "refused").exists()
    assert planted not in out.partition("error: ")[2]
