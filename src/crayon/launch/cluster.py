"""Reaching a Ray cluster: the one that exists, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from crayon.errors import BadInput, one_line
from crayon.fast.allocator import use_huge_pages_in_children
from crayon.launch import own_cluster, token
from crayon.launch.address import address, check, joins, temporary
from crayon.system import secrets
from crayon.system.files import cache_root, private_folder, user
from crayon.system.host import DISTRIBUTION, usable_cores
from crayon.tasks.jobs import local_modules

log = logging.getLogger("crayon")
MOST_FOR_SOCKETS = 42
"""Bytes of the path of a folder in which Ray can make its sockets, whose paths may have 107."""
_SCRATCH = f"crayon-ray-{user()}"

DEFAULTS = {
    # Ray repeats each line that a worker prints, once by itself and once through Train's patched print.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Of a node or a process that is lost Ray prints many lines. The run says what it means for it.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^Raylet is terminated|has been marked dead|PYTHON worker processes have been started"
    "|^A worker died or was killed|^Task \\w+ failed. There are",
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
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The controller may run in the driver (`fast.ray_train`), whose terminal is ours.
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
    # On a busy machine each of Ray's processes can take minutes to start. A node's entry is asked for again and again.
    "RAY_raylet_start_wait_time_s": "1",
    **{
        name: f"{own_cluster.START_SECONDS:.0f}"
        for name in ("RAY_gcs_server_port_wait_time_s", "RAY_worker_register_timeout_seconds")
    },
    "RAY_agent_register_timeout_ms": f"{1000 * own_cluster.START_SECONDS:.0f}",
    # Between workers of one machine.
    **({"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK} if _LOOPBACK else {}),
}


def prepare_environment() -> None:
    """Settle what Ray reads from the environment when it is imported. Nothing that the user set is changed."""
    joined = joins()
    for name, value in (DEFAULTS if joined else DEFAULTS | OWN_CLUSTER).items():
        os.environ.setdefault(name, value)
    if not joined:
        use_huge_pages_in_children()
        os.environ["CRAYON_CACHE"] = str(cache_root())  # absolute: workers have another working directory


@contextlib.contextmanager
def connected(
    beside: str = "ray.train.torch", tell: Callable[[str], None] = lambda text: None, instead: str = ""
) -> Iterator[ModuleType]:
    """The `ray` module, connected to the cluster there is, else to one of our own that ends with this block.

    The module `beside`, which will be needed next, is imported meanwhile. `tell` gets a sentence now and then while
    Ray takes long to start, and `instead` says what works without it. A cluster of our own listens on loopback only.
    Raises BadInput where RAY_ADDRESS can't be reached.
    """
    prepare_environment()
    check()
    import ray

    for module in local_modules:
        ray.cloudpickle.register_pickle_by_value(module)
    # Takes as long as starting Ray does, which mostly waits for its processes.
    threading.Thread(target=importlib.import_module, args=(beside,), daemon=True).start()
    if ray.is_initialized():
        yield ray
        return
    # What goes wrong is said by us, in a sentence.
    for library in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    quiet = {"configure_logging": True, "logging_level": logging.ERROR, "log_to_driver": False}
    place = address()
    if "://" not in place:
        quiet["job_config"] = _job(ray)
    if place:
        tell(_joining(place))
        if "://" not in place and (warning := token.check(place)):
            tell(warning)
        with own_cluster.telling(tell, f"{place} answers slowly; it, or this machine, is busy."):
            _join(ray, quiet | {"address": place} | _own_code())
    else:
        token.settle()
        own_cluster.start(ray, quiet | _own_settings(), tell, instead)
    try:
        yield ray
    finally:
        ending = [] if place else own_cluster.processes()
        ray.shutdown()
        own_cluster.end(ending)


def _joining(place: str) -> str:
    """
    >>> _joining("127.0.0.1:6379")
    'Joining the Ray cluster at 127.0.0.1:6379 (RAY_ADDRESS=local starts one of its own here).'
    """
    return (
        f"Joining the Ray cluster at {secrets.shown(place)} (RAY_ADDRESS=local starts one of its own here)."
    )


def _join(ray: ModuleType, settings: dict[str, Any]) -> None:
    try:
        with own_cluster.own_signals():
            ray.init(**settings)
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise
        if "AuthToken" in f"{error.__cause__}{error.__context__}":
            raise BadInput(f"The Ray cluster asks for a token: {token.MEND}") from None
        raise BadInput(f"The Ray cluster can't be joined ({one_line(error, 300)}).") from None
    secrets.check_shown("runtime_env", ray.get_runtime_context().runtime_env)


def _own_settings() -> dict[str, Any]:
    """Of `ray.init`, for a cluster of our own."""
    return {
        "address": "local",
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(_session_folder()),
        # Ray itself rounds a container's quota down, half a core to none.
        "num_cpus": usable_cores(),
    }


class _Paths(list[str]):
    """Where workers look for modules first: as Ray has it, but for the working directory, unless this process looks
    there itself. A types.py that lies there would be taken for Python's own."""

    def extend(self, paths: Iterable[str]) -> None:
        super().extend(path for path in paths if path in sys.path or "" in sys.path)


def _job(ray: ModuleType) -> Any:
    config = ray.job_config.JobConfig()
    if hasattr(config, "_py_driver_sys_path"):  # Ray has no setting for it
        config._py_driver_sys_path = _Paths()
    else:
        log.warning("Ray %s makes workers look for modules in the working directory first.", ray.__version__)
    return config


def _own_code() -> dict[str, Any]:
    """What makes the workers of a cluster find this package, where it isn't installed and came with the job."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return {"runtime_env": {"py_modules": [str(Path(__file__).parents[1])]}}
    return {}


def scratch() -> Path:
    """Where Ray Train keeps notes of its own about a run, for this user alone. Checkpoints and results don't go there.

    Raises BadInput where someone else made that folder.
    """
    return private_folder(temporary() / _SCRATCH)


def _session_folder() -> Path:
    """Where Ray keeps the logs and sockets of our own cluster: nobody else can read or replace them there.

    Ray opens its folder to everyone, wherever that is: so it lies in one that is closed. Where that has too long a path
    for sockets, as batch systems give, it is another one. Raises BadInput where there is none.
    """
    for place in (temporary(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"):
        folder = Path(place, _SCRATCH, "ray")
        if len(os.fsencode(folder)) <= MOST_FOR_SOCKETS:
            with contextlib.suppress(BadInput):
                return private_folder(folder.parent) / folder.name
    raise BadInput(
        f"Ray's sockets need a folder with a short path, and none can be made in {temporary()}, /tmp, /var/tmp or "
        f"/dev/shm; set RAY_TMPDIR to one of at most {MOST_FOR_SOCKETS - len(_SCRATCH) - 5} bytes."
    )
