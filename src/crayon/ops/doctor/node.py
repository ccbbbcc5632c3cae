"""What is asked of every machine. These functions are sent to the nodes as they stand, since Crayon may not be there:
nothing outside the standard library is imported before it is needed, and only plain values are returned.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from crayon.system.host import DISTRIBUTION, usable_cores

PACKAGES = ("crayon", "ray", "torch", "torchvision", "optuna", "wandb", "numpy")
TORCH_SECONDS, DRIVER_SECONDS = 55, 15
"""Within which they answer, one after the other."""
# `-c` and `-m` would take modules from the working directory.
TORCH = """
import sys
sys.path[:] = filter(None, sys.path)
import json, torch
on = torch.cuda.is_available()
print(json.dumps({
    "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if on else [],
}))
"""
RAY_PROCESSES = {
    "GCS": r"^gcs_server ",
    "raylet": r"^raylet ",
    "dashboard": r"ray/dashboard/dashboard\.py",
    "other processes": r"ray::|ray/dashboard/|/ray/_private/|ray\.util\.client\.server",
}
"""By what stands in their names and command lines; the first that fits."""


def facts() -> dict:
    """Versions, GPUs, what Ray listens on, and where a W&B key is. No secret is among them."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": versions(),
        "cores": usable_cores(),
        "driver": driver(),
        "listeners": listeners(),
        "torch": torch_and_gpus(),
        "wandb": wandb_key(),
    }


def versions() -> dict:
    """Versions by package, None where there is none."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(DISTRIBUTION if package == "crayon" else package)
    return found


def torch_and_gpus() -> dict:
    """CUDA and NCCL of torch's build and the GPUs that it sees, or "failed"; also "late" where it didn't answer."""
    # Ray hides the GPUs from a task that asked for none.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    env = {k: v for k, v in os.environ.items() if not (hidden and k == "CUDA_VISIBLE_DEVICES")}
    try:
        out = _output([sys.executable, "-W", "ignore", "-c", TORCH], TORCH_SECONDS, env)
        return json.loads(out)
    except TimeoutError as error:
        return {"failed": str(error), "late": True}
    except (OSError, ValueError) as error:
        return {"failed": str(error)}


def driver() -> dict:
    """NVIDIA's driver as `nvidia-smi` tells it: "version" (None = no driver) and "gpus", or "failed"."""
    none: dict = {"version": None, "gpus": []}
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
        out = _output(command, DRIVER_SECONDS)
    except FileNotFoundError:
        return none
    except OSError as error:
        return none | {"failed": str(error)}
    rows = [line.split(", ", 1) for line in out.splitlines() if ", " in line]
    return {"version": rows[0][0], "gpus": [name for _, name in rows]} if rows else none | {"failed": out}


def _output(command: list, seconds: float, env: dict | None = None) -> str:
    """What a command prints. Raises OSError with its last words, TimeoutError where it takes too long."""
    try:
        end = subprocess.run(
            command, env=env, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no answer within {seconds} s") from None
    if end.returncode:
        said = (end.stderr.strip() or end.stdout.strip()).splitlines() or [f"exit code {end.returncode}"]
        raise OSError(said[-1][:200])
    return end.stdout


def wandb_key() -> dict:
    """The place of a W&B key ("key", None = nowhere) and the server's address ("url")."""
    try:
        from crayon.report.wandb_login import credentials
    except ImportError:
        return {}
    return credentials()


def listeners() -> list:
    """What Ray's processes listen on, as far as this user may see it: [which, address, port, token asked for]."""
    found = []
    with contextlib.suppress(Exception):  # psutil is not there, or not allowed
        import psutil

        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(connection.pid)
                    shown = " ".join([process.name(), *process.cmdline()])
                    which = next((w for w, mark in RAY_PROCESSES.items() if re.search(mark, shown)), "")
                    if which:
                        token = process.environ().get("RAY_AUTH_MODE", "").lower() == "token"
                        found.append([which, *connection.laddr, token])
    return sorted(found, key=lambda entry: (entry[0], entry[2]))


def visit(storage: str, name: str, me: str, others: list) -> dict:
    """Write the file `me` into the folder `name` under `storage`, and look for the files `others`.

    Returns "seen" (those of `others` that are there), "free" (bytes on the disk, or in the staging folder of an object
    store), "made" (folders that were not there before), and "failed" where it can't be written. `leave` undoes it.
    """
    made: list = []
    try:
        from crayon.errors import CrayonError
        from crayon.system.runfolder import RunFolder
    except ImportError:
        return {"failed": "crayon is not installed there", "made": made}
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
