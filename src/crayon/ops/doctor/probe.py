"""What the nodes of a cluster say of themselves and of the storage.

A process of its own joins the cluster, so that whatever Ray does when something is wrong (wait for minutes, end its
process, print) does not happen to the doctor. It answers on its output, one JSON message a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crayon.errors import last_line, one_line
from crayon.launch import cluster
from crayon.ops.doctor import node
from crayon.ops.nodes import on_nodes
from crayon.system import child, host

CLUSTER_SECONDS = 150.0
"""For all that is asked of a cluster."""


@dataclass
class Report:
    """What the cluster's nodes said, as far as they did."""

    failed: str = ""
    """Why nothing more was learnt, or ""."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """id, name, whether it is the head, cpus and gpus as Ray counts them; `node.facts` and (as "storage", with
    "seen_here": whether the driver sees its file) `node.visit` of each, or "failed" in these."""
    dead: int = 0
    """Nodes that have left."""
    here: dict[str, Any] = field(default_factory=dict)
    """What the driver's `node.visit` returned."""


def ask(storage: str, name: str, here: str, seconds: float = CLUSTER_SECONDS) -> Report:
    """Join the cluster that there is and ask its nodes; never waits longer than `seconds`.

    name: of a folder to make and remove in the storage, here: file that the driver writes there.
    """
    report, address = Report(), cluster.address()
    # Files, since what the process starts may hold a pipe longer than it lives.
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+", errors="replace") as errors:
        # Named, so that this cluster is joined or none is.
        env = os.environ | {"RAY_ADDRESS": address}
        streams = {"stdin": subprocess.PIPE, "stdout": told, "stderr": errors}
        process = child.start("crayon.ops.doctor.probe", env=env, text=True, **streams)
        late = False
        try:
            process.communicate(json.dumps([storage, name, here]), timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            process.kill()
            process.wait()
        for file in (told, errors):
            file.seek(0)
        for text in told:
            if text.endswith("\n"):  # else it was killed meanwhile
                vars(report).update(json.loads(text))
        if late:
            who = "not all nodes" if report.nodes else f"Ray at {address}"
            report.failed = f"{who} did not answer within {seconds:.0f} s"
        elif not report.here and not report.failed:
            report.failed = f"the process that joined it ended: {last_line(errors.read(), 200)}"
    return report


def main() -> None:
    """In the process: reads what is asked from its input."""
    asked = json.loads(sys.stdin.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints

    def say(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    # What is installed on the nodes is what is asked for, not what `uv run` would install there.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    try:
        # Where the cluster went away meanwhile, `connected` must not start one.
        if not cluster.joins():
            raise ConnectionError("the cluster is gone")
        with cluster.connected(beside="json") as ray:
            for module in (node, host):
                ray.cloudpickle.register_pickle_by_value(module)
            _ask_nodes(ray, say, *asked)
    except Exception as error:
        say(failed=one_line(error, 300))


def _ask_nodes(ray: Any, say: Callable[..., None], storage: str, name: str, here: str) -> None:
    """Say which nodes there are, then their facts, then what each sees of the storage."""
    everything = ray.nodes()
    silent = {"failed": "it did not answer"}
    nodes = [
        {
            "id": n["NodeID"],
            # An address is not enough: several nodes can be on one machine.
            "name": f"{n['NodeManagerAddress']} {n['NodeID'][:6]}",
            "head": "node:__internal_head__" in n["Resources"],
            "cpus": n["Resources"].get("CPU", 0),
            "gpus": n["Resources"].get("GPU", 0),
            "facts": silent,
            "storage": silent,
        }
        for n in everything
        if n["Alive"]
    ]
    nodes.sort(key=lambda n: (not n["head"], n["name"]))
    say(nodes=nodes, dead=len(everything) - len(nodes))
    answers = on_nodes(node.facts, {n["id"]: () for n in nodes})
    for n in nodes:
        n["facts"] = answers[n["id"]]
    say(nodes=nodes)
    mine = node.visit(storage, name, here, [])
    visits: dict[str, dict[str, Any]] = {}
    try:
        if "failed" not in mine:
            files = {n["id"]: f"node-{n['id']}" for n in nodes}
            calls = {which: (storage, name, file, [here]) for which, file in files.items()}
            visits = on_nodes(node.visit, calls)
            seen = node.look(storage, name, list(files.values()))
            for n in nodes:
                n["storage"] = visits[n["id"]] | {"seen_here": files[n["id"]] in seen}
        say(nodes=nodes, here=mine)
    finally:
        leaving = {which: (storage, name, visit.get("made", [])) for which, visit in visits.items()}
        with contextlib.suppress(Exception):
            on_nodes(node.leave, leaving, 20)
        node.leave(storage, name, mine["made"])


if __name__ == "__main__":
    main()
