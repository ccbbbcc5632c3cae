"""What is asked of every machine. These functions are sent to the nodes as they stand, since Crayon may not be there:
nothing outside the standard library is imported before it is needed, and only plain values are returned.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from crayon.system.host import DISTRIBUTION, usable_cores

PACKAGES = ("crayon", "ray", "torch", "torchvision", "optuna", "wandb", "numpy")
ANSWER_SECONDS = 60
# `-c` and `-m` would take modules from the working directory.
ELSEWHERE = "import sys; sys.path[:] = filter(None, sys.path)"
TORCH = (
    f"{ELSEWHERE}; import json, torch"
    + """
on = torch.cuda.is_available()
print(json.dumps({
    "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if on else [],
}))
"""
)


def facts() -> dict:
    """Versions, GPUs, what Ray listens on, and where a W&B key is. No secret is among them."""
    asked = torch_process()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": versions(),
        "cores": usable_cores(),
        "driver": driver(),
        "listeners": listeners(),
        "torch": answer(asked),
        "wandb": wandb_key(),
    }


def versions() -> dict:
    """Versions by package, None where there is none."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(DISTRIBUTION if package == "crayon" else package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def torch_process() -> subprocess.Popen:
    """Answers with CUDA and NCCL of torch's build and the GPUs that it sees."""
    # Ray hides the GPUs from a task that asked for none.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    env = {k: v for k, v in os.environ.items() if not (hidden and k == "CUDA_VISIBLE_DEVICES")}
    return start([sys.executable, "-W", "ignore", "-c", TORCH], env)


def wandb_key() -> dict:
    """The place of a W&B key ("key", None = nowhere) and the server's address ("url")."""
    try:
        from crayon.report.wandb_login import credentials
    except ImportError:
        return {"failed": "crayon is not installed there"}
    return credentials()


def start(command: list, env: dict) -> subprocess.Popen:
    """A process for `answer`."""
    return subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def answer(process: subprocess.Popen) -> dict:
    """The JSON that the process prints, or {"failed": its last words}, or {"late": ...}."""
    try:
        out, err = process.communicate(timeout=ANSWER_SECONDS)
        if process.returncode == 0:
            return json.loads(out)
        return {"failed": (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:200]}
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"no answer within {ANSWER_SECONDS} s", "late": True}
    except ValueError as error:
        return {"failed": str(error)}


def driver() -> dict:
    """NVIDIA's driver as `nvidia-smi` tells it: "version" (None = no driver) and "gpus", or "failed"."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        end = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return {"version": None, "gpus": []}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"version": None, "gpus": [], "failed": str(error)[:200]}
    rows = [line.split(", ", 1) for line in end.stdout.splitlines() if ", " in line]
    if end.returncode or not rows:
        text = (end.stderr.strip() or end.stdout.strip() or f"exit code {end.returncode}").splitlines()[0]
        return {"version": None, "gpus": [], "failed": text[:200]}
    return {"version": rows[0][0], "gpus": [name for _, name in rows]}


def listeners() -> list:
    """What Ray's processes listen on, as far as this user may see it: (process, address, port, token asked for)."""
    try:
        import psutil

        found = psutil.net_connections("tcp")
    except Exception:  # not there, or not allowed
        return []
    listening = []
    for connection in found:
        if connection.status != psutil.CONN_LISTEN or not connection.pid:
            continue
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(connection.pid)
            what = kind(process.name(), " ".join(process.cmdline()))
            if what:
                token = process.environ().get("RAY_AUTH_MODE", "").lower() == "token"
                listening.append([what, connection.laddr.ip, connection.laddr.port, token])
    return sorted(listening, key=lambda entry: (entry[0], entry[2]))


def kind(name: str, command: str) -> str:
    """Which of Ray's processes this is, or ""."""
    if name in ("gcs_server", "raylet"):
        return {"gcs_server": "GCS", "raylet": "raylet"}[name]
    marks = {
        "ray/dashboard/dashboard.py": "dashboard",
        "ray::DashboardAgent": "agent",
        "ray/dashboard/agent.py": "agent",
        "ray/_private/runtime_env/agent": "agent",
        "ray::RuntimeEnvAgent": "agent",
        "ray/dashboard/": "dashboard",
        "ray.util.client.server": "client server",
        "default_worker.py": "worker",
        "ray::": "worker",
    }
    return next((what for mark, what in marks.items() if mark in command), "")


def visit(storage: str, name: str, me: str, others: list) -> dict:
    """Write the file `me` into the folder `name` under `storage`, and look for the files `others`.

    Returns "seen" (those of `others` that are there), "free" (bytes on the disk, or in the staging folder of an object
    store), "made" (folders that were not there before), and "failed" where it can't be written. `leave` undoes it.
    """
    try:
        from crayon.errors import CrayonError
        from crayon.system.runfolder import RunFolder
    except ImportError:
        return {"failed": "crayon is not installed there", "made": []}
    made: list = []
    try:
        run = RunFolder(storage, name)
        made += [str(p) for p in (run.path, *run.path.parents) if not p.exists()]
        run.create()
        run.write_bytes(me, me.encode())
        run.push(me)
        return {"seen": look(storage, name, others), "free": shutil.disk_usage(run.path).free, "made": made}
    except (CrayonError, OSError) as error:
        return {"failed": str(error), "made": made}


def look(storage: str, name: str, files: list) -> list:
    """Those of `files` that are in the folder and hold their own name."""
    from crayon.system.runfolder import RunFolder

    run = RunFolder(storage, name)
    seen = []
    for file in files:
        with contextlib.suppress(OSError):
            content = run.store.read(file) if run.store else (run.path / file).read_bytes()
            if content == file.encode():
                seen.append(file)
    return seen


def leave(storage: str, name: str, made: list) -> None:
    """Remove the folder `name`, and each folder in `made` that is empty then. Never raises."""
    with contextlib.suppress(Exception):
        from crayon.system.runfolder import RunFolder

        run = RunFolder(storage, name)
        shutil.rmtree(run.path, ignore_errors=True)
        for folder in sorted(made, key=len, reverse=True):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if run.store:
            run.store.remove()
