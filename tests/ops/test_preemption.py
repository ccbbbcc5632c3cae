"""A cloud's notice that a node will go. What follows from it is in test_nodes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from metadata import cloud

from crayon.ops.preemption import CLOUDS


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("notice", [False, True])
def test_a_notice_is_seen_and_nothing_else_is_one(name, notice):
    noticed, _ = CLOUDS[name]
    with cloud(name, notice=notice) as metadata:
        assert noticed(metadata) is notice


def test_elsewhere_it_says_so_once_and_goes_on():
    command = [sys.executable, "-m", "crayon.ops.preemption", "gcp", "--metadata", "http://127.0.0.1:9"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert "doesn't answer as gcp does" in process.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
    finally:
        process.kill()
        assert process.communicate()[1] == ""
