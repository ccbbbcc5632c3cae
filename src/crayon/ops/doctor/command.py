"""`crayon doctor`: all checks, the slow ones beside each other, each within its time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from crayon import __version__
from crayon.launch.address import address
from crayon.ops.doctor import clusterfile, joined, login, machine, network, node, storage
from crayon.ops.doctor.display import Display
from crayon.ops.doctor.findings import Finding, Pending
from crayon.ops.settings import DoctorConfig
from crayon.system.runfolder import RunFolder

CHECK_SECONDS = 75.0
"""For what is asked of this machine alone."""


class Doctor:
    """One examination. Starts no cluster, trains nothing, and removes the files that it writes to try the storage."""

    def __init__(self, config: DoctorConfig, file: str | None = None):
        """file: a cluster file. Raises BadInput where there is no such file or kind of storage."""
        self.config = config
        self._name, self._here = storage.probe_names()
        RunFolder(config.storage, self._name)
        self._file = clusterfile.read(Path(file)) if file else None
        self._path = file
        self._facts: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._report: joined.Report | None = None
        self.late = False
        """Whether a check was given up; its thread may be waiting still."""

    def findings(self) -> Iterator[tuple[str, Iterable[Pending]]]:
        """(headline, checks, which are running) by part. What a part needs of those before it is there by then."""
        facts = Pending("this machine", self._ask_here, CHECK_SECONDS)
        known = address()
        report = Pending("cluster", self._ask_cluster, joined.CLUSTER_SECONDS + 10) if known else None
        text = self._file
        in_file = (
            Pending("file", lambda: clusterfile.check(text), CHECK_SECONDS) if text is not None else None
        )
        if not known:
            place = Pending("storage", self._storage_here, CHECK_SECONDS)
        yield "", [facts]
        if report:
            yield f"Cluster at {known}", [report]
        nodes = self._report.nodes if self._report else []
        here = self._facts
        if here:
            yield "Versions", [_now("versions", lambda: machine.versions(here, nodes))]
            yield "GPUs", [_now("GPU", lambda: machine.gpus(here, nodes))]
        yield "Network", [_now("network", lambda: self._network(here, nodes))]
        yield "Storage", [*([] if known else [place]), Pending("storage", self._storage, CHECK_SECONDS)]
        if here:
            yield "Weights & Biases", [_now("W&B", lambda: login.wandb(here, nodes))]
        if in_file:
            yield f"Cluster file {self._path}", [in_file]

    def _ask_here(self) -> list[Finding]:
        self._facts = node.facts()
        return []

    def _ask_cluster(self) -> list[Finding]:
        report = joined.ask(self.config.storage, self._name, self._here)
        if report.failed:
            node.leave(self.config.storage, self._name, [])
        self._report = report
        self._seen = report.storage or {}
        return list(_cluster(report))

    def _network(self, here: dict[str, Any], nodes: list[dict[str, Any]]) -> Iterator[Finding]:
        if here:
            yield from network.exposed(here, nodes)
        if not address():
            yield network.free_ports()
        yield network.token()
        yield from network.dashboard(self._report.dashboard if self._report else "")

    def _storage_here(self) -> list[Finding]:
        self._seen = {"here": storage.from_here(self.config.storage, self._name, self._here), "nodes": {}}
        return []

    def _storage(self) -> Iterator[Finding]:
        config, report = self.config, self._report
        if report and not self._seen:  # the cluster could not be asked
            self._storage_here()
        here, nodes = self._seen.get("here"), self._seen.get("nodes", {})
        if here is None:
            return
        yield storage.writable(config.storage, here)
        if report and not report.failed and "failed" not in here:
            yield from storage.shared(config.storage, report.nodes, nodes)
        yield storage.room(config.storage, here, nodes, config.job, config.preset)


def _now(name: str, check: Any) -> Pending:
    return Pending(name, check, CHECK_SECONDS)


def _cluster(report: joined.Report) -> Iterator[Finding]:
    if report.failed and not report.nodes:
        text = report.failed.partition("; ")[0].partition(". ")[0].rstrip(".")
        mend = "start it, or unset RAY_ADDRESS; the rest is about this machine alone"
        if "authentication" in text:
            mend = "copy ~/.ray/auth_token from the cluster's head, with mode 600"
        elif "can't be joined" in text or "did not answer" in text:
            mend = f"{mend} (if it asks for a token: RAY_AUTH_MODE=token and the head's ~/.ray/auth_token)"
        yield Finding("cluster", "error", text, mend)
        return
    cpus, gpus = (sum(n[what] for n in report.nodes) for what in ("cpus", "gpus"))
    gone = f"; {report.dead} have left it" if report.dead else ""
    text = f"{len(report.nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs{gone}"
    if len(report.nodes) == 1:
        text = text.replace("1 nodes", "1 node", 1)
    yield Finding("cluster", "ok", text)
    if report.failed:
        yield Finding("cluster", "error", report.failed, "ray status")


def examine(config: DoctorConfig, file: str | None = None) -> tuple[int, bool]:
    """Print everything that is found. Returns (1 if there is an error among it, else 0; whether a check hangs still).

    Raises BadInput for what can't be examined.
    """
    doctor = Doctor(config, file)
    found: list[Finding] = []
    with Display() as display:
        display.line(f"crayon {__version__} on {socket.gethostname()}, {os.getcwd()}", "bold")
        if not address():
            display.line(
                "No Ray cluster to join (no RAY_ADDRESS, no ray start here): this machine alone is examined."
            )
        for headline, checks in doctor.findings():
            display.part(headline)
            for check in checks:
                with display.waiting(check.name):
                    new = check.findings()
                doctor.late |= check.late
                for finding in new:
                    found.append(finding)
                    display.finding(finding)
        display.total(found)
    return int(any(f.state == "error" for f in found)), doctor.late
