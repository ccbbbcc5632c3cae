"""Trials that share a GPU, by a stand-in for NVIDIA's daemon that writes down what it is asked."""

from __future__ import annotations

import os

import pytest

from crayon.errors import BadInput
from crayon.tuning import mps
from crayon.tuning.settings import SweepConfig

DAEMON = """#!/bin/sh
echo "$*:$(test -n "$1" || cat):$CUDA_MPS_PIPE_DIRECTORY:$CUDA_VISIBLE_DEVICES" >> CALLS
test -z "$FAILS" || { echo "$FAILS"; exit 1; }
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A folder for the tool, the only one on the PATH beside the system's, and the file of its calls."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.setenv(name, "")  # what is set is taken back
    return tmp_path / mps.CONTROL, tmp_path / "calls"


def test_the_daemon_is_started_for_all_gpus_and_ended(tool, monkeypatch):
    program, calls = tool
    check = SweepConfig(mps=True, gpus_per_trial=0.5)
    with pytest.raises(BadInput, match=r"needs nvidia-cuda-mps-control,.* this machine; leave it out"):
        mps.check(check)
    with pytest.raises(BadInput, match="isn't on the PATH of a node"):
        mps.use()
    program.write_text(DAEMON.replace("CALLS", str(calls)))
    program.chmod(0o755)
    mps.check(check)
    with pytest.raises(BadInput, match=r"such as --gpus-per-trial 0.25"):
        mps.check(SweepConfig(mps=True))
    mps.use()
    folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
    assert os.stat(folder).st_mode & 0o777 == 0o700
    monkeypatch.setenv("FAILS", "An instance of this daemon is already running")
    mps.use()
    monkeypatch.setenv("FAILS", "no driver")
    with pytest.raises(BadInput, match=r"-d failed \(no driver\)"):
        mps.use()
    mps._quit()
    assert calls.read_text().splitlines() == [f"-d::{folder}:"] * 3 + [f":quit:{folder}:1"]
