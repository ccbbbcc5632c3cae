"""The `chaos` command: trains a job twice, once in peace and once while breaking it, and compares what comes out.

The commands are those that a user would type, in processes of their own. One that was ended on purpose is given again,
as a user would. On the CPU, with the same number of workers, the weights must be equal to the last bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from crayon.config import fields
from crayon.config.names import as_flag, flatten
from crayon.config.settings import Experiment
from crayon.errors import BadInput, RunFailed, last_line
from crayon.launch import cluster
from crayon.ops.processes import ClusterTargets, OwnTargets, Targets
from crayon.ops.settings import ChaosConfig
from crayon.system import child
from crayon.system.runfolder import RunFolder

KINDS = ("worker", "pause", "driver", "stop", "node")
PAUSE_SECONDS = 10.0
LOOK_SECONDS = 0.1
RESUMED = "Going on from the checkpoint of step"


@dataclass
class Fault:
    """One thing that was broken."""

    kind: str
    at: float
    """Seconds since the disturbed run began."""
    step: int
    """The newest checkpoint's step then."""
    recovery: float | None = None
    """Seconds until the next checkpoint was there."""


@dataclass
class Verdict:
    """What a disturbed run came to, beside an undisturbed one."""

    complete: bool
    every_epoch_once: bool
    equal: bool | None
    """The weights, bit for bit; None where that can't be asked: on a GPU, or with a changing number of workers."""
    resumed: int
    commands: int
    faults: list[Fault] = field(default_factory=list)
    missed: int = 0
    """Faults that were asked for and had no time to happen."""

    @property
    def good(self) -> bool:
        return self.complete and self.every_epoch_once and self.equal is not False


def check(config: Experiment, chaos: ChaosConfig) -> list[str]:
    """The kinds of faults asked for. Raises BadInput."""
    kinds = [kind.strip() for kind in chaos.kill.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise BadInput(
                f"--kill {kind or 'nothing'}: there is no such fault; there are {', '.join(KINDS)}."
            )
    fields.check(chaos)
    needs_worker = [kind for kind in kinds if kind in ("worker", "pause", "node")]
    if needs_worker and config.max_workers == 0:
        raise BadInput(
            f"--kill {needs_worker[0]} needs --workers 1 or more; with 0 there is only the driver."
        )
    if "node" in kinds and not cluster.joins():
        raise BadInput(
            "--kill node needs a Ray cluster to join; set RAY_ADDRESS, or run `ray start` on each machine."
        )
    return kinds


def run(config: Experiment, chaos: ChaosConfig) -> Verdict:
    """Train `config` in peace as `<name>-calm` and disturbed as `<name>-chaos`, print the verdict and leave it as
    chaos.json in the latter. Raises BadInput, or RunFailed where the undisturbed run fails."""
    from crayon.launch import driver as launch
    from crayon.launch import preflight

    kinds = check(config, chaos)
    preflight.check(config, on_ray=config.workers != 0)
    name = config.name or launch.default_name(config)
    config = launch.with_absolute_paths(config, RunFolder(config.storage, name), on_ray=config.workers != 0)
    # Workers killed on purpose are no reason to give up.
    patient = dataclasses.replace(config.ray, max_failures=config.ray.max_failures + chaos.times)
    # A number of threads that is measured follows what else the machine does, and the weights' last bits follow it.
    config = dataclasses.replace(config, ray=patient, threads=config.threads or 1)
    calm, disturbed = (RunFolder(config.storage, f"{name}-{part}") for part in ("calm", "chaos"))
    console = Console(highlight=False)
    with _victims() as victims:
        performance = _Performance(config, disturbed, kinds, chaos, victims, console)
        _calm(config, calm, console)
        seconds = calm.read_rows("metrics.jsonl")[-1]["train_seconds"]
        verdict = performance.run(seconds)
    verdict = dataclasses.replace(
        verdict, equal=_equal(config, calm, disturbed) if verdict.complete else None
    )
    disturbed.write_json("chaos.json", dataclasses.asdict(verdict) | {"against": calm.uri})
    disturbed.push("chaos.json")
    for line in lines(verdict):
        console.print(line, soft_wrap=True)
    return verdict


def lines(verdict: Verdict) -> list[str]:
    """The verdict as text."""
    said = [""]
    for fault in verdict.faults:
        after = (
            "no checkpoint came after it"
            if fault.recovery is None
            else f"{fault.recovery:.1f} s to the next one"
        )
        said.append(
            f"{fault.kind:<10} at {fault.at:6.1f} s, after the checkpoint of step {fault.step:,}; {after}"
        )
    if verdict.missed:
        said.append(f"{'missed':<10} the run was over before {verdict.missed} more; give it more --epochs")
    again = verdict.commands - 1
    said.append(f"{'resumed':<10} {verdict.resumed} times; the command was given again {again} times")
    said.append(f"{'complete':<10} {'yes' if verdict.complete else 'NO'}")
    if verdict.complete:
        said.append(
            f"{'epochs':<10} {'each once, in order' if verdict.every_epoch_once else 'NOT each once'}"
        )
        weights = {
            True: "equal to the undisturbed run's, bit for bit",
            False: "NOT those of the undisturbed run",
            None: "not compared: on a GPU, or with a changing number of workers, they differ by rounding",
        }
        said.append(f"{'weights':<10} {weights[verdict.equal]}")
    return said


def command(config: Experiment, name: str) -> list[str]:
    """The command line that trains exactly `config` under `name`."""
    settings = flatten(dataclasses.replace(config, name=name))
    words = [w for key, value in settings.items() if key != "job" for w in as_flag(key, value)]
    return child.command("crayon.cli", config.job, *words)


@contextlib.contextmanager
def _victims() -> Iterator[Targets]:
    if not cluster.joins():
        yield OwnTargets()
        return
    with cluster.connected():
        yield ClusterTargets()


def _calm(config: Experiment, run: RunFolder, console: Console) -> None:
    """Train undisturbed."""
    console.print(f"In peace: {run.uri}")
    with console.status("training in peace"):
        end = subprocess.run(command(config, run.name), capture_output=True, text=True)
    if end.returncode:
        raise RunFailed(f"The undisturbed run failed: {last_line(end.stderr) or last_line(end.stdout)}")
    run.pull()


class _Performance:
    """The disturbed run."""

    def __init__(
        self,
        config: Experiment,
        run: RunFolder,
        kinds: list[str],
        chaos: ChaosConfig,
        victims: Targets,
        console: Console,
    ):
        self.config, self.folder, self.victims, self.console = config, run, victims, console
        self.plan = [kinds[i % len(kinds)] for i in range(chaos.times)]
        self.random = random.Random(chaos.chaos_seed)
        self.faults: list[Fault] = []
        self.commands = 0
        self.begun = 0.0
        self.process: subprocess.Popen[Any] | None = None

    def run(self, train_seconds: float) -> Verdict:
        self.console.print(f"Disturbed: {self.folder.uri}")
        self.begun = time.monotonic()
        log = Path(self.folder.path.parent if self.folder.store else self.folder.storage)
        log.mkdir(parents=True, exist_ok=True)
        log = log / f"{self.folder.name}.log"
        with log.open("w+") as file, self.console.status("training"):
            try:
                code = self._perform(train_seconds, file)
            finally:
                self._end()
            file.seek(0)
            said = file.read()
        self.folder.pull()
        result = self.folder.read_json("result.json")
        rows = [row["epoch"] for row in self.folder.read_rows("metrics.jsonl")]
        if code:
            self.console.print(f"The command ended with: {last_line(said)}", markup=False)
        return Verdict(
            complete=code == 0 and result is not None,
            every_epoch_once=rows == list(range(1, self.config.epochs + 1)),
            equal=None,
            resumed=said.count(RESUMED),
            commands=self.commands,
            faults=self.faults,
            missed=len(self.plan) - len(self.faults),
        )

    def _perform(self, train_seconds: float, log: Any) -> int:
        """Start it, break it as planned, and start it again whenever it was ended on purpose; its last exit code."""
        left = list(self.plan)
        self._start(log)
        assert self.process is not None
        while True:
            # All of them within the time that training takes in peace. Half of them come while it goes on, after a
            # checkpoint; the others whenever they come, be it in a start.
            until = -1 if self.random.random() < 0.5 else self.faults[-1].step if self.faults else 0
            pause = self.random.uniform(0.05, 0.7) * train_seconds / len(self.plan)
            due = None
            while not left or due is None or time.monotonic() < due:
                if due is None and self._newest() > until:
                    due = time.monotonic() + pause
                self._watch()
                if self.process.poll() is not None:
                    return self.process.returncode
                time.sleep(LOOK_SECONDS)
            kind = left.pop(0)
            if not self._break(kind):
                left.insert(0, kind)  # There was nothing of that kind to break at this moment.
            elif kind in ("driver", "stop"):
                self._end()
                self._start(log)

    def _start(self, log: Any) -> None:
        self.commands += 1
        self.process = subprocess.Popen(
            command(self.config, self.folder.name),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _break(self, kind: str) -> bool:
        assert self.process is not None
        fault = Fault(kind, round(time.monotonic() - self.begun, 1), self._newest())
        if kind in ("driver", "stop"):
            self.process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGINT)
        else:
            workers = self.victims.workers(self.process)
            if not workers:
                return False
            worker = self.random.choice(workers)
            if kind == "node":
                happened = self.victims.end_node(worker)
            elif kind == "worker":
                happened = self.victims.signal(worker, signal.SIGKILL)
            else:
                happened = self.victims.signal(worker, signal.SIGSTOP)
                if happened:
                    time.sleep(PAUSE_SECONDS)
                    self.victims.signal(worker, signal.SIGCONT)
            if not happened:
                return False
        self.faults.append(fault)
        self.console.print(
            f"{fault.at:7.1f} s  {kind}, after the checkpoint of step {fault.step:,}", soft_wrap=True
        )
        return True

    def _end(self) -> None:
        """Wait for the command, and kill it where it doesn't end."""
        if self.process is None:
            return
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _watch(self) -> None:
        """Note how long after the newest fault the next checkpoint was there."""
        if self.faults and self.faults[-1].recovery is None and self._newest() > self.faults[-1].step:
            self.faults[-1].recovery = round(time.monotonic() - self.begun - self.faults[-1].at, 1)

    def _newest(self) -> int:
        """The step of the newest checkpoint that is seen from here."""
        from crayon.training import checkpoint

        with contextlib.suppress(BadInput, OSError):
            entry = checkpoint.latest(self.folder)
            return 0 if entry is None else entry.step
        return 0


def _equal(config: Experiment, calm: RunFolder, disturbed: RunFolder) -> bool | None:
    """Whether both runs ended with the same tensors."""
    from crayon.training import checkpoint

    if isinstance(config.workers, str):
        return None
    digests = []
    for run in (calm, disturbed):
        run.pull()
        entry = checkpoint.latest(run)
        if entry is None:
            return False
        digests.append(entry.digests)
    result = calm.read_json("result.json") or {}
    if digests[0] != digests[1] and result.get("environment", {}).get("gpus") and config.device != "cpu":
        return None
    return digests[0] == digests[1]
