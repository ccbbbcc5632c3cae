"""How many cores are ours to use, whatever the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crayon.system.host import environment, memory_kills, usable_cores

HERE = len(os.sched_getaffinity(0))
ONE = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"


def tree(root: Path, cgroup: str, **files: str) -> Path:
    """A machine whose kernel says this; `__` for a slash, in names of files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = (
            root
            / "sys/fs/cgroup"
            / name.replace("__", "/").replace("cpu_", "cpu.").replace("memory_", "memory.")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "4:memory:/\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu_max": "50000 100000\n"}, 1),  # half a core
        ("0::/\n", {"cpu_max": "150000 100000\n"}, min(HERE, 2)),
        ("0::/\n", {"cpu_max": "max 100000\n"}, HERE),
        ("0::/slurm/job/step\n", {"slurm__job__cpu_max": "100000 100000\n"}, 1),  # of a group around it
        ("0::/slurm/job/step\n", {"slurm__other__cpu_max": "100000 100000\n"}, HERE),
        ("0::/\n", {"cpu_max": "99900000 100000\n"}, HERE),  # more than there are
        ("0::/\n", {"cpu_max": "\n"}, HERE),
        (V1, {"cpu__job__cpu_cfs_quota_us": "50000\n", "cpu__job__cpu_cfs_period_us": "100000\n"}, 1),
        (V1, {"cpu__job__cpu_cfs_quota_us": "-1\n", "cpu__job__cpu_cfs_period_us": "100000\n"}, HERE),
        # In a container the paths are those outside, and what is mounted is its own group.
        (V1, {"cpu__cpu_cfs_quota_us": "50000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 1),
        ("", {}, HERE),
    ],
)
def test_a_quota_counts_as_cores_rounded_up(tmp_path, cgroup, files, cores):
    assert usable_cores(tree(tmp_path, cgroup, **files)) == cores


def test_processes_that_the_kernel_killed_for_want_of_memory_are_counted(tmp_path):
    root = tree(tmp_path / "v2", "0::/job/step\n", job__memory_events="oom 3\noom_kill 2\n")
    assert memory_kills(root) == 2
    files = {"memory__memory_oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}
    assert memory_kills(tree(tmp_path / "v1", V1, **files)) == 1
    assert memory_kills(tmp_path) == 0


def test_a_machine_that_tells_nothing_has_the_cores_it_counts(tmp_path, monkeypatch):
    assert usable_cores(tmp_path) == HERE
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    assert usable_cores(tmp_path) == os.cpu_count()


def test_cores_that_taskset_takes_away_are_not_counted():
    code = ONE + "from crayon.system.host import usable_cores; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
    # Everything that asks for as many workers as there are cores goes by it.
    code = ONE + "from crayon.cli import main as cli; cli.main('mnist', ['--workers', '2'])"
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert end.returncode == 2
    assert "--workers 2 is more than this machine's 1 CPU cores" in end.stderr


def test_the_environment_is_plain_values_that_need_no_library_to_be_read():
    """torch.__version__ is not: the actor that passes a result on to the driver would import torch for it."""
    assert {type(value) for value in environment().values()} <= {str, int, float, list, type(None)}
