"""NVIDIA's Multi-Process Service: trials on one GPU run their kernels at the same time, not in turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from crayon.errors import BadInput, last_line
from crayon.launch import cluster
from crayon.tuning.settings import SweepConfig

CONTROL = "nvidia-cuda-mps-control"
NO_TOOL = f"--mps needs {CONTROL}, a part of NVIDIA's driver for Linux, which isn't on the PATH of"


def folder() -> Path:
    """Where this user's daemon listens."""
    return Path(tempfile.gettempdir(), f"crayon-mps-{os.getuid()}")


def check(sweep: SweepConfig) -> None:
    """Raises BadInput where trials have nothing to share, or this machine can't."""
    if sweep.mps and sweep.gpus_per_trial == 1:
        raise BadInput("--mps is for trials that share a GPU; add a share, such as --gpus-per-trial 0.25.")
    if sweep.mps and not cluster.joins() and shutil.which(CONTROL) is None:
        raise BadInput(f"{NO_TOOL} this machine; leave it out.")


def use() -> None:
    """Have this process, which didn't use its GPU yet, share it through the daemon of its node and user, which is
    started where there is none. Raises BadInput."""
    folder().mkdir(mode=0o700, exist_ok=True)
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": str(folder()), "CUDA_MPS_LOG_DIRECTORY": str(folder())}
    if shutil.which(CONTROL) is None:
        raise BadInput(f"{NO_TOOL} a node; leave it out.")
    # The daemon serves all GPUs of the node, not those that Ray shows this process.
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([CONTROL, "-d"], env=seen, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode and "already running" not in said:
        raise BadInput(f"--mps: {CONTROL} -d failed ({last_line(said)}); leave it out.")


def end() -> None:
    """End the daemons of the connected cluster's nodes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    task = ray.remote(num_cpus=0, max_retries=0)(_quit)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    asked = [task.options(scheduling_strategy=Affinity(node, soft=True)).remote() for node in nodes]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=20)


def _quit() -> None:
    if shutil.which(CONTROL):
        env = os.environ | {"CUDA_MPS_PIPE_DIRECTORY": str(folder())}
        subprocess.run([CONTROL], input="quit\n", env=env, text=True, check=False, capture_output=True)
