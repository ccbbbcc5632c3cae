"""The cluster there is, as `crayon.ops.doctor.probe` tells it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from crayon.launch.address import address
from crayon.system import child

CLUSTER_SECONDS = 150.0
"""For all that is asked of a cluster."""
JOIN_SECONDS = 45.0
"""For joining it: Ray itself would wait for minutes for an address that takes connections and says nothing."""


@dataclass
class Report:
    """What the cluster's nodes said, as far as they did."""

    address: str
    failed: str = ""
    """Why nothing more was learnt, or ""."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """id, address, cpus, gpus, head; and facts as `node.facts` has them, or "failed"."""
    dead: int = 0
    """Nodes that have left."""
    dashboard: str = ""
    """host:port of the dashboard."""
    storage: dict[str, Any] | None = None
    """As `probe.storage` has it."""


def ask(
    storage: str, name: str, here: str, seconds: float = CLUSTER_SECONDS, join_seconds: float = JOIN_SECONDS
) -> Report:
    """Join the cluster that `cluster.joins()` means and ask its nodes; never waits longer than `seconds`."""
    report = Report(address())
    process = child.start(
        "crayon.ops.doctor.probe",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Named, so that this cluster is joined or none is.
        env=os.environ | {"RAY_ADDRESS": report.address},
    )
    lines: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    told = threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True)
    told.start()
    said = threading.Thread(target=_read, args=(process.stderr, errors.append), daemon=True)
    said.start()
    assert process.stdin and process.stdout and process.stderr
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps({"storage": storage, "name": name, "here": here}) + "\n")
        process.stdin.close()
    begin = time.monotonic()
    try:
        done = False
        while not done:
            limit = seconds if report.nodes else join_seconds
            text = lines.get(timeout=max(0.0, begin + limit - time.monotonic()))
            if text:
                done = _take(report, text)
            else:
                said.join(2)
                last = [e.strip() for e in errors if e.strip()] or ["it said nothing"]
                report.failed = f"the process that joined it ended: {last[-1][:200]}"
                done = True
        process.wait(5)
    except queue.Empty:
        what = "not all nodes answered" if report.nodes else f"Ray at {report.address} did not answer"
        report.failed = f"{what} within {limit:.0f} s"
    except subprocess.TimeoutExpired:
        pass  # it has said all
    finally:
        process.kill()
        process.wait()
        for reader, stream in ((told, process.stdout), (said, process.stderr)):
            reader.join(2)
            if not reader.is_alive():  # else something that it started still holds the pipe
                stream.close()
    return report


def _take(report: Report, text: str) -> bool:
    """Add a message to the report; whether it was the last."""
    message = json.loads(text)
    if "joined" in message:
        report.nodes = message["joined"]["nodes"]
        report.dead, report.dashboard = message["joined"]["dead"], message["joined"]["dashboard"]
    elif "node" in message:
        next(n for n in report.nodes if n["id"] == message["node"])["facts"] = message["facts"]
    elif "storage" in message:
        report.storage = message["storage"]
    report.failed = message.get("failed", "")
    return "done" in message or "failed" in message


def _read(stream: Any, put: Any) -> None:
    for text in stream:
        put(text)
    put("")  # the process has ended
