"""`crayon doctor`: all checks, the slow ones beside each other, each within its time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crayon import __version__
from crayon.launch.address import address
from crayon.ops.doctor import clusterfile, login, machine, network, node, probe, storage
from crayon.ops.doctor.display import Display
from crayon.ops.doctor.findings import Finding, Pending, count, error, ok, reason
from crayon.ops.settings import DoctorConfig
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import find


class Doctor:
    """One examination. Starts no cluster, trains nothing, and removes the files that it writes to try the storage."""

    def __init__(self, config: DoctorConfig):
        """Raises BadInput where there is no such file, job or kind of storage."""
        self.config = config
        if config.job != "all":
            find(config.job).experiment(None if config.preset == "all" else config.preset)
        self.cluster = address()
        self._names = storage.probe_names()
        RunFolder(config.storage, self._names[0])
        self._file = clusterfile.read(Path(config.file)) if config.file else None
        self._facts: dict[str, Any] = {}
        self._report = probe.Report()

    def checks(self) -> Iterator[tuple[str, Pending]]:
        """(headline, check, which is running). What a check needs of those before it is there by then."""
        facts = Pending("this machine", lambda: self._facts.update(node.facts()))
        if self.cluster:
            asked = Pending("cluster", self._ask_cluster, probe.CLUSTER_SECONDS + 10)
        else:
            asked = Pending("storage", self._try_storage)
        text = self._file
        in_file = Pending("file", lambda: clusterfile.check(text)) if text is not None else None
        yield "", facts
        yield f"Cluster at {self.cluster}" if self.cluster else "Storage", asked
        here, nodes = self._facts, self._report.nodes
        if here:
            yield "Versions", Pending("versions", lambda: machine.versions(here, nodes))
            yield "GPUs", Pending("GPU", lambda: machine.gpus(here, nodes))
        yield "Network", Pending("network", self._network)
        yield "Storage", Pending("storage", self._storage)
        if here:
            yield "Weights & Biases", Pending("W&B", lambda: login.wandb(here, nodes))
        if in_file:
            yield f"Cluster file {self.config.file}", in_file

    def _try_storage(self) -> None:
        self._report.here = storage.from_here(self.config.storage, *self._names)

    def _ask_cluster(self) -> Iterator[Finding]:
        self._report = report = probe.ask(self.config.storage, *self._names)
        if report.failed:
            node.leave(self.config.storage, self._names[0], [])
        if report.nodes:
            cpus, gpus = (sum(n[what] for n in report.nodes) for what in ("cpus", "gpus"))
            gone = f"; {report.dead} have left it" if report.dead else ""
            yield ok(
                "cluster", f"{count(len(report.nodes), 'node')} with {cpus:g} CPUs and {gpus:g} GPUs{gone}"
            )
            if report.failed:
                yield error("cluster", report.failed, "ray status")
        else:
            yield error(
                "cluster",
                reason(report.failed),
                "start it, or unset RAY_ADDRESS; if it asks for a token: RAY_AUTH_MODE=token, and a copy of the head's "
                "~/.ray/auth_token with mode 600. The rest is about this machine alone",
            )

    def _network(self) -> Iterator[Finding]:
        if self._facts:
            yield from network.exposed(self._facts, self._report.nodes)
        yield network.token()

    def _storage(self) -> Iterator[Finding]:
        config, report = self.config, self._report
        if not report.here and report.failed:
            self._try_storage()
        if report.here:
            yield storage.writable(config.storage, report.here)
            if not report.failed and "failed" not in report.here:
                yield from storage.shared(config.storage, report.nodes)
            yield storage.room(config.storage, report.here, report.nodes, config.job, config.preset)


def examine(config: DoctorConfig) -> tuple[int, bool]:
    """Print everything that is found. Returns (1 if there is an error among it, else 0; whether a check hangs still).

    Raises BadInput for what can't be examined.
    """
    doctor = Doctor(config)
    checks: list[Pending] = []
    found: list[Finding] = []
    with Display() as display:
        display.line(f"crayon {__version__} on {socket.gethostname()}, {os.getcwd()}", "bold")
        if not doctor.cluster:
            display.line(
                "No Ray cluster to join (no RAY_ADDRESS, no ray start here): this machine alone is examined."
            )
        for headline, check in doctor.checks():
            checks.append(check)
            found += display.part(headline, check)
        display.total(found)
    return int(any(f.state == "error" for f in found)), any(check.hangs for check in checks)
