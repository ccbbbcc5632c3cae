"""What the doctor's tests examine: facts of nodes, as they would be found there."""

from __future__ import annotations

import sys

from crayon.ops.doctor import node
from crayon.ops.doctor.findings import Finding

CANARY = "c0ffee00" * 5
"""Looks like a W&B key. No output may contain it."""


def by_name(findings) -> dict[str, Finding]:
    found = {f.name: f for f in findings}
    assert all(f.mend for f in found.values() if f.state == "error")
    return found


def facts(**changes) -> dict:
    """This machine's versions, without the processes that `node.facts` starts."""
    found = {
        "host": "here",
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": node.versions(),
        "cores": 2,
        "torch": {"cuda": "12.8", "nccl": "2.27.3", "gpus": []},
        "driver": {"version": None, "gpus": []},
        "listeners": [],
        "wandb": {"key": None, "url": "http://127.0.0.1:9"},
    }
    return found | changes


def on_node(number: int = 1, gpus: float = 0, **changes) -> dict:
    return {
        "id": f"{number}" * 56,
        "name": f"10.0.0.{number} {number * 111111}",
        "cpus": 2.0,
        "gpus": gpus,
        "head": number == 1,
        "facts": changes if "failed" in changes else facts(host=f"node{number}", **changes),
    }


def packages(**changes) -> dict:
    return {"packages": node.versions() | changes}
