"""Reaching a Ray cluster: the one that exists, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from crayon import private, secrets
from crayon.errors import BadInput, RunFailed

LINGER_SECONDS = 3.0
"""How long the processes of our own cluster may take to end."""
MOST_FOR_SOCKETS = 42
"""Characters of a folder in which Ray can make its sockets, whose paths may have 107."""

DEFAULTS = {
    # Ray repeats each line that a worker prints, once by itself and once through Train's patched print.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How often the controller looks at its workers; a worker's report waits for that look (2 s by default).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray runs workers at niceness 15. Beside any other busy process the threads of a CPU worker would then wait for
    # each other at every barrier: seen here, 20 times slower than alone.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tune's own tables, log files and snapshots: a sweep has a display and a record of its own.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}

_LOOPBACK = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)

OWN_CLUSTER = {
    # Ray replaces a loopback address by the machine's own, and then listens on all interfaces, unless it is told that
    # there is to be no cluster of several machines. The name is for the systems on which that is the default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Other users of this machine reach loopback, too. Ray asks for it by itself from 2.59 on.
    "RAY_AUTH_MODE": "token",
    # On one machine Ray's processes and the training share the cores, and threads that compute together all wait for
    # the one that was put aside. So what serves dashboards, accounting and other nodes is off or rare.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # The controller runs in the driver (`lean.py`), whose terminal is ours.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    # Workers for whatever may come, one per core. Ray Train's come with an environment of their own and can't use them.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_open_telemetry": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    # Under `uv run` Ray would copy the working directory and rebuild the environment for every worker. On this machine
    # they can share ours; in a cluster that hook is what installs the project, and it stays on.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Between workers of one machine.
    **({"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK} if _LOOPBACK else {}),
}


def joins() -> bool:
    """Whether there is a cluster to join: RAY_ADDRESS names one, as it does inside a submitted job, or `ray start`
    ran on this machine and its cluster still answers."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address != "local" if address else _answers(_started_here())


def address() -> str:
    """Of the cluster to join, as RAY_ADDRESS or `ray start` has it; "" where `joins()` is false."""
    return (os.environ.get("RAY_ADDRESS") or _started_here()) if joins() else ""


def _started_here() -> str:
    """The address that `ray start` left on this machine, or ""."""
    note = _temporary() / "ray" / "ray_current_cluster"
    return note.read_text().strip() if note.exists() else ""


def _answers(address: str, seconds: float = 5.0) -> bool:
    """Whether something listens at host:port. Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError:
        return False
    return True


def prepare_environment() -> None:
    """Settle what Ray reads from the environment when it is imported. Nothing that the user set is changed."""
    for name, value in (DEFAULTS if joins() else DEFAULTS | OWN_CLUSTER).items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def connected(beside: str = "ray.train.torch") -> Iterator[ModuleType]:
    """The `ray` module, connected to the cluster there is, else to one of our own that ends with this block.

    The module `beside`, which will be needed next, is imported meanwhile. A cluster of our own listens on loopback
    only. Raises BadInput where RAY_ADDRESS can't be reached.
    """
    prepare_environment()
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local", "auto") and not _answers(address):
        raise BadInput(
            f"No Ray cluster answers at RAY_ADDRESS={address}; start it, or unset RAY_ADDRESS to train on this machine."
        )
    import ray

    # Takes as long as starting Ray does, which mostly waits for its processes.
    threading.Thread(target=importlib.import_module, args=(beside,), daemon=True).start()
    if ray.is_initialized():
        yield ray
        return
    # What goes wrong is said by us, in a sentence.
    for library in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    quiet = {"configure_logging": True, "logging_level": logging.ERROR, "log_to_driver": False}
    own = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"} | quiet
    own |= _session_folder()
    joined = joins()
    if not joined:
        private.ray_token()
    try:
        with contextlib.nullcontext() if joined else _few_processes(ray), _own_signals():
            ray.init(**(quiet | _own_code() if joined else own))
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise
        if "AuthToken" in f"{error.__cause__}{error.__context__}":
            raise BadInput(
                "The Ray cluster asks for a token: set RAY_AUTH_MODE=token here, with the cluster's token in "
                "~/.ray/auth_token."
            ) from None
        raise BadInput(f"The Ray cluster can't be joined ({' '.join(str(error).split())[:300]}).") from None
    except Exception as error:  # Ray has no other name for it
        if "timed out during startup" not in str(error):
            raise
        raise RunFailed(
            "Ray's processes did not start in time; this machine may be too busy. Try again."
        ) from None
    if joined:
        secrets.check_runtime_env(ray.get_runtime_context().runtime_env)
    try:
        yield ray
    finally:
        ending = [] if joined else _processes()
        ray.shutdown()
        for process in psutil.wait_procs(ending, timeout=LINGER_SECONDS)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _own_code() -> dict[str, Any]:
    """What makes the workers of a cluster find this package, where it isn't installed and came with the job."""
    try:
        importlib.metadata.distribution("crayon")
    except importlib.metadata.PackageNotFoundError:
        return {"runtime_env": {"py_modules": [str(Path(__file__).parent)]}}
    return {}


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts handlers of its own in place, which end the process at once. Ours stop the run with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _few_processes(ray: ModuleType) -> Iterator[None]:
    """Start no autoscaler, no dashboard and no log monitor, each a Python process of its own, for a cluster that is one
    machine and whose workers' output nobody prints. Ray has no settings for that."""
    node = getattr(ray._private.node, "Node", None)
    spared = ("start_monitor", "start_api_server", "start_log_monitor")
    kept = {name: getattr(node, name) for name in spared if hasattr(node, name)}
    for name in kept:
        setattr(node, name, lambda self, **ignored: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(node, name, method)


def _processes() -> list[psutil.Process]:
    """The actors and workers of the cluster that this process started.

    Some of them don't survive their cluster's end as they should: seen here, a controller that waits for ever for a
    lock in Ray's own clean-up, with all its memory.
    """
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(child.cmdline()).startswith("ray::"):
                found.append(child)
    return found


def scratch() -> Path:
    """Where Ray Train keeps notes of its own about a run, for this user alone. Checkpoints and results don't go there.

    Raises BadInput where someone else made that folder.
    """
    return private.folder(_temporary() / f"crayon-ray-{os.getuid()}")


def _session_folder() -> dict[str, str]:
    """What makes Ray keep the logs and sockets of our own cluster where nobody else can read or replace them.

    Ray opens its folder to everyone, wherever that is: so it lies in one that is closed. A path that is too long for
    sockets leaves Ray's usual place.
    """
    folder = scratch() / "ray"
    return {"_temp_dir": str(folder)} if len(str(folder)) <= MOST_FOR_SOCKETS else {}


def _temporary() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
