"""Whether runs will be on Weights & Biases while they train."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlparse

from crayon.errors import first_line
from crayon.ops.doctor.findings import Finding
from crayon.ops.doctor.machine import node_name

ANSWER_SECONDS = 5.0


def wandb(here: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """Where a key was found, never the key, and whether its server answers. Only names of variables and files are told.

    On a cluster it is a node that sends the run: the key must be there.
    """
    mode = os.environ.get("WANDB_MODE", "")
    answer = here["wandb"]
    if mode in ("offline", "disabled", "dryrun"):
        yield Finding("W&B", "note", f"WANDB_MODE={mode}: nothing is sent", "unset WANDB_MODE to log online")
        return
    if "failed" in answer:
        yield Finding(
            "W&B", "warning", f"can't be asked ({first_line(answer['failed'])}); runs go on without it"
        )
        return
    host = urlparse(answer["url"]).hostname or ""
    if not answer["key"]:
        text = "not logged in: runs are logged offline, and the line that uploads one is printed at its end"
        yield Finding("W&B", "note", text, "wandb login")
    elif reason := unreachable(answer["url"]):
        yield Finding(
            "W&B",
            "warning",
            f"key from {answer['key']}, but {host} does not answer ({reason}); runs are logged offline",
            "open the way to it (HTTPS_PROXY, firewall), or --wandb offline",
        )
    else:
        yield Finding("W&B", "ok", f"key from {answer['key']}; {host} answers")
    without = [n for n in nodes if (n.get("facts") or {}).get("wandb", {}).get("key", "?") is None]
    if answer["key"] and without:
        names = ", ".join(map(node_name, without))
        yield Finding(
            "W&B on nodes",
            "warning",
            f"no key on {names}: a run whose first worker is there is logged offline",
            "copy ~/.netrc there (file_mounts in the cluster file), with mode 600",
        )


def unreachable(url: str) -> str:
    """Why the server doesn't answer, or "". Any HTTP status is an answer. No key is sent."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return first_line(getattr(error, "reason", None) or error)
    return ""
