"""cluster/onprem.yaml, used as cluster/README.md says, on hosts of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import flags, rows, tiny
from hosts import Host
from onprem import SUBMIT, TOKEN, OnPrem, cluster, wait_for

UNASKED = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]


def small(on: OnPrem, name: str) -> list[str]:
    return flags(tiny("mnist", workers=2, storage=str(on.runs), name=name))


def placed(head: Host) -> set[str]:
    """The nodes on which there have been workers."""
    listed = head.run(["ray", "list", "actors", "--format", "json"], env=TOKEN).stdout
    actors = json.loads(listed[listed.index("[") :])
    return {actor["node_id"] for actor in actors if actor["class_name"] == "RayTrainWorker"}


@pytest.mark.faults
def test_from_ray_up_to_ray_down(tmp_path):
    here = ("--working-dir", ".")
    with cluster(tmp_path) as on:
        listening = on.head.run(["ss", "-Hltn", "sport = :8265"]).stdout.split()
        assert [word for word in listening if word.endswith(":8265")] == ["127.0.0.1:8265"]
        # Without the token, nothing is told even on the head itself.
        stranger = on.head.run(["env", "HOME=/tmp", "ray", "job", "list"], env=SUBMIT)
        assert stranger.returncode != 0 and "token" in stranger.stdout

        job = on.submit("python", "jobs/mnist.py", *small(on, "first"), options=here)
        assert job.returncode == 0, job.stdout
        result = json.loads((on.runs / "first/result.json").read_text())
        assert 0 <= result["test/accuracy"] <= 1
        assert [row["epoch"] for row in rows(on.runs / "first")] == [1, 2, 3]
        assert len(placed(on.head)) == 2

        # The literal command runs what is installed there, and starts in the home, where `ray start` ran.
        shutil.copytree(Path(__file__).parents[2] / "jobs", on.head.home / "jobs")
        literal = on.submit("jobs/mnist.py", *small(on, "literal"))
        assert literal.returncode == 0, literal.stdout
        assert (on.runs / "literal/result.json").exists()

        wrong = on.submit("python", "jobs/mnist.py", "--epochs", "0", options=here)
        assert wrong.returncode == 1 and "error: --epochs 0" in wrong.stdout

        down = on.desk.run(["ray", "down", "-y", on.file], env=TOKEN, timeout=120)
        assert down.returncode == 0, down.stdout
        # Of the others, `ray down` leaves the log monitor for good.
        stop = on.desk.run(["ssh", *UNASKED, on.worker.address, "bash -lc 'ray stop'"])
        assert stop.returncode == 0, stop.stdout
        wait_for(lambda: not on.rays(), 30)


@pytest.mark.faults
def test_uv_makes_the_environment_on_every_host(tmp_path):
    if not shutil.which("uv"):
        pytest.skip("uv isn't installed")
    # The hosts reach no package index: uv takes what it has in its cache, and links to it.
    cache = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True).stdout.strip()
    python = os.path.realpath(sys.executable)
    offline = {"UV_OFFLINE": "1", "UV_CACHE_DIR": cache, "UV_LINK_MODE": "symlink", "UV_PYTHON": python}
    environment = ("--runtime-env-json", json.dumps({"env_vars": offline}))
    uv = str(Path(sys.base_prefix, "bin/uv")) if Path(sys.base_prefix, "bin/uv").exists() else "uv"
    with cluster(tmp_path) as on:
        options = ("--working-dir", ".", *environment)
        job = on.submit(uv, "run", "jobs/mnist.py", *small(on, "uv"), options=options)
        if "not found in the cache" in job.stdout:
            pytest.skip("uv's cache doesn't hold all packages of this project")
        assert job.returncode == 0, job.stdout
        assert "Creating virtual environment" in job.stdout
        assert (on.runs / "uv/result.json").exists()
        assert len(placed(on.head)) == 2
