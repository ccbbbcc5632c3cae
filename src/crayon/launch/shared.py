"""Whether the nodes of a cluster see the folder that the driver writes to, and have its versions.

Each is asked before it trains.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from importlib import metadata
from secrets import token_hex

from crayon.errors import BadInput
from crayon.system.files import atomic
from crayon.system.runfolder import RunFolder

NAME = ".driver"
CONSTRAINTS = (
    "uv export -q --no-dev --no-emit-project --no-hashes --no-annotate --no-header -o constraints.txt"
)
TRIES = 5
"""A second apart: a network file system may show a new file late."""


def mark(run: RunFolder, own: bool) -> str:
    """Leave a token in a run's folder, which `check` takes. Empty where all see the same: in an object store, or on a
    cluster of our `own`."""
    if run.store or own:
        return ""
    token = token_hex(8)
    with run.guard(run.path), atomic(run.path / NAME) as temporary:
        temporary.write_text(token)
    return token


def check(run: RunFolder, token: str) -> None:
    """Raise BadInput where this machine doesn't see the folder in which the driver has left `token`."""
    if not token:
        return
    found = ""
    for attempt in range(TRIES):
        time.sleep(min(attempt, 1))
        try:
            os.listdir(run.path)  # or else NFS remembers for a while that something wasn't there
            if (run.path / NAME).read_text() == token:
                return
            found = "has another folder of that name"
        except PermissionError:
            found = "may not read it"
        except (OSError, ValueError):
            found = f"has no {run.path} of the driver's"
    raise BadInput(
        f"--storage {run.storage} is not shared between the machines of this cluster: {_here()} {found}. Use a "
        "folder on a disk that all of them mount there, or an s3:// or gs:// URI."
    )


def versions() -> dict[str, str]:
    """Here, of what should be the same on all machines."""
    from crayon import __version__

    return {"crayon": __version__, "torch": metadata.version("torch").partition("+")[0]}  # of any CUDA


def compare(driver: Mapping[str, str]) -> str:
    """What is to be said where this machine's versions aren't the driver's; empty where they are. Raises BadInput where
    it is Crayon's."""
    found = versions()
    others = [
        f"{name} {found[name]}, the driver {theirs}"
        for name, theirs in driver.items()
        if found[name] != theirs
    ]
    if not others:
        return ""
    text = (
        f"{_here()} has {'; '.join(others)}. `{CONSTRAINTS}` on the driver, and then installing anew, has the nodes "
        "take its versions (cluster/README.md)"
    )
    if found["crayon"] != driver["crayon"]:
        raise BadInput(f"{text}.")
    return f"{text}; different ones give other results, and on GPUs may not find together."


def _here() -> str:
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
