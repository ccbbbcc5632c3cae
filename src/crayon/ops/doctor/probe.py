"""The process that joins the cluster and asks its nodes, so that whatever Ray does when something is wrong (wait for
minutes, end its process, print) does not happen to the doctor. It answers on its output, one JSON message a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

from crayon.errors import CrayonError, last_line, one_line
from crayon.launch import cluster
from crayon.ops.doctor import node
from crayon.system import host

NODE_SECONDS = 100


def main() -> None:
    """Input: {"storage": ..., "name": of a folder to make and remove there, "here": file that the driver writes}."""
    asked = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    # What is installed on the nodes is what is asked for, not what `uv run` would install there.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    try:
        # Where the cluster went away meanwhile, `connected` must not start one.
        if not cluster.joins():
            raise ConnectionError("the cluster is gone")
        with cluster.connected(beside="json") as ray:
            for module in (node, host):
                ray.cloudpickle.register_pickle_by_value(module)
            ask(ray, asked, say)
    except CrayonError as error:
        say(failed=str(error))
    except Exception as error:
        say(failed=one_line(error))


def ask(ray: Any, asked: dict[str, Any], say: Any) -> None:
    """Say `joined`, then the facts of each node, then what each sees of the storage, then `done`."""
    alive = [n for n in ray.nodes() if n["Alive"]]
    head = next((n["NodeID"] for n in alive if "node:__internal_head__" in n["Resources"]), None)
    nodes = [
        {
            "id": n["NodeID"],
            "address": n["NodeManagerAddress"],
            "gpus": n["Resources"].get("GPU", 0),
            "cpus": n["Resources"].get("CPU", 0),
            "head": n["NodeID"] == head,
        }
        for n in alive
    ]
    nodes.sort(key=lambda n: (not n["head"], n["address"], n["id"]))
    dead = len(ray.nodes()) - len(alive)
    say(joined={"nodes": nodes, "dead": dead, "dashboard": _dashboard(ray)})
    ids = [n["id"] for n in nodes]
    for which, answer in on_nodes(ray, {i: (node.facts, ()) for i in ids}):
        say(node=which, facts=answer)
    say(storage=storage(ray, ids, **asked))
    say(done=True)


def storage(ray: Any, ids: list[str], storage: str, name: str, here: str) -> dict[str, Any]:
    """What the driver ("here") and each node see of each other's files in the storage."""
    mine = node.visit(storage, name, here, [])
    visits: dict[str, dict[str, Any]] = {}
    try:
        if "failed" in mine:
            return {"here": mine, "nodes": {}}
        calls = {i: (node.visit, (storage, name, f"node-{i}", [here])) for i in ids}
        visits = dict(on_nodes(ray, calls))
        seen = node.look(storage, name, [f"node-{i}" for i in ids])
        for i in ids:
            visits[i]["seen_here"] = f"node-{i}" in seen
        return {"here": mine, "nodes": visits}
    finally:
        leaving = {i: (node.leave, (storage, name, v.get("made", []))) for i, v in visits.items()}
        with contextlib.suppress(Exception):
            for _ in on_nodes(ray, leaving, seconds=20):
                pass
        node.leave(storage, name, mine["made"])


def on_nodes(ray: Any, calls: dict[str, tuple[Any, tuple[Any, ...]]], seconds: float = NODE_SECONDS) -> Any:
    """Call functions on nodes, each on its own, at the same time. Yields (node, what it returned) as they come; what
    raised or did not answer in time is {"failed": why}."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    running = {}
    for i, (function, arguments) in calls.items():
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        running[task.options(scheduling_strategy=Affinity(node_id=i, soft=False)).remote(*arguments)] = i
    end = time.monotonic() + seconds
    while running and (left := end - time.monotonic()) > 0:
        ready, _ = ray.wait(list(running), timeout=left)
        for reference in ready:
            which = running.pop(reference)
            try:
                yield which, ray.get(reference)
            except Exception as error:
                yield which, {"failed": last_line(error)}
    for which in running.values():
        yield which, {"failed": f"no answer within {seconds:.0f} s"}


def _dashboard(ray: Any) -> str:
    with contextlib.suppress(Exception):
        return ray._private.worker.global_worker.node.address_info.get("webui_url") or ""
    return ""


if __name__ == "__main__":
    main()
