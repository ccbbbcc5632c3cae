"""A job that is submitted to a cluster with a dashboard, as users do."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers import flags, tiny
from test_secrets_cluster import Head


@pytest.mark.slow
@pytest.mark.again
def test_a_submitted_job_trains_and_its_exit_code_is_the_runs():
    script = Path(__file__).parents[2] / "jobs" / "mnist.py"
    with tempfile.TemporaryDirectory(prefix="cj-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder), watched=False)
        try:
            config = tiny("mnist", name="run", storage=f"{folder}/runs", workers=1, ray__cpus_per_worker=1)
            submit = ["job", "submit", "--", sys.executable, str(script)]
            job, wrong = head.ray(*submit, *flags(config)), head.ray(*submit, "--epochs", "0")
            out = job.communicate(timeout=240)[0]
            assert job.returncode == 0, out
            assert "report" in out and "Traceback" not in out
            assert (head.place / "runs" / "run" / "result.json").exists()
            out = wrong.communicate(timeout=120)[0]
            assert wrong.returncode == 1 and "error: --epochs 0 is out of range" in out
            deadline = time.monotonic() + 60
            while not (answer := head.get("/api/jobs/")):
                assert time.monotonic() < deadline
            assert {j["driver_exit_code"] for j in json.loads(answer)} == {0, 2}
        finally:
            head.close()
