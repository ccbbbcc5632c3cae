"""A cluster that has no worker nodes until a run asks for them: Ray's own autoscaler, with nodes that are processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import flags, rows, tiny
from test_sweep import result, sweep

pytestmark = pytest.mark.faults

CONFIG = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 20,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 80_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    **{name: {} for name in ("auth", "docker", "head_node", "worker_nodes", "file_mounts")},
    "file_mounts_sync_continuously": False,
    **{
        name: []
        for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")
    },
    **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
}
SCRIPT = """
set -e
ip link set lo up
ip address add 10.9.9.9/32 dev lo
ray get-auth-token --generate > /dev/null
RAY_OVERRIDE_NODE_ID_FOR_TESTING=fffffffffffffffffffffffffffffffffffffffffffffffffff00000 RAY_FAKE_CLUSTER=1 \\
  ray start --head --port=6379 --num-cpus=0 --include-dashboard=false --autoscaling-config=$CONFIG > /dev/null
export RAY_ADDRESS=127.0.0.1:6379
"""


def in_a_cluster(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """`script`, with the cluster's processes in namespaces of their own: nothing of them stays."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    config = folder / "cluster.json"
    config.write_text(json.dumps(CONFIG))
    (folder / "ray").mkdir()
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder / "ray"),
        "CONFIG": str(config),
        "RAY_AUTH_MODE": "token",
        "RAY_enable_autoscaler_v2": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["unshare", "-pfn", "--mount-proc", "--kill-child", "bash", "-c", SCRIPT + script],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture
def folder():
    """With a short path: Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        yield Path(name)


def test_nodes_come_when_a_run_asks_for_them(folder):
    train = shlex.join(["crayon", "mnist", *flags(tiny("mnist", workers=2, storage=str(folder), name="run"))])
    end = in_a_cluster(folder, train)
    assert end.returncode == 0, end.stdout + end.stderr
    assert [row["epoch"] for row in rows(folder / "run")] == [1, 2, 3]
    assert json.loads((folder / "run" / "result.json").read_text())["workers"] == 2


def test_nodes_come_when_a_sweep_asks_for_them(folder):
    """One for the first look at the images, and a second one since a third of the trials are to run at once."""
    arguments = sweep(folder, "--trials", "6", "--no-early-stopping", "--space.epochs", "100")
    del arguments[(at := arguments.index("--concurrent")) : at + 2]
    end = in_a_cluster(folder, shlex.join(["crayon", *arguments]))
    assert end.returncode == 0, end.stdout + end.stderr
    assert "Waiting for a node with a CPU core." in end.stdout
    assert "The cluster has room for 2 trials at once now (1 before)." in end.stdout
    assert result(folder)["trials"]["complete"] == 6
    assert result(folder)["this_command"]["concurrent"] == 2
