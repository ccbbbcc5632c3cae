"""Whether runs will be on Weights & Biases while they train."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlparse

from crayon.errors import first_line
from crayon.ops.doctor.findings import Finding, note, ok, warning

ANSWER_SECONDS = 5.0


def wandb(here: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """Where a key was found, never the key, and whether its server answers. Only names of variables and files are told.

    On a cluster it is a node that sends the run: the key must be there.
    """
    mode, key, url = os.environ.get("WANDB_MODE", ""), here["wandb"]["key"], here["wandb"]["url"]
    if mode in ("offline", "disabled", "dryrun"):
        yield note("W&B", f"WANDB_MODE={mode}: nothing is sent", "unset WANDB_MODE to log online")
        return
    host = urlparse(url).hostname or ""
    if not key:
        text = "not logged in: runs are logged offline, and the line that uploads one is printed at its end"
        yield note("W&B", text, "wandb login")
        return
    if why := unreachable(url):
        text = f"key from {key}, but {host} does not answer ({why}); runs are logged offline"
        yield warning("W&B", text, "open the way to it (HTTPS_PROXY, firewall), or --wandb offline")
    else:
        yield ok("W&B", f"key from {key}; {host} answers")
    without = [n["name"] for n in nodes if n["facts"].get("wandb", {}).get("key", "?") is None]
    if without:
        yield warning(
            "W&B on nodes",
            f"no key on {', '.join(without)}: a run whose first worker is there is logged offline",
            "copy ~/.netrc there (file_mounts in the cluster file), with mode 600",
        )


def unreachable(url: str) -> str:
    """Why the server doesn't answer, or "". Any HTTP status is an answer. No key is sent."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as problem:
        return first_line(getattr(problem, "reason", None) or problem)
    return ""
