"""The `chaos` command: trains a job twice, once undisturbed and once while breaking it, and compares what comes out.

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
from dataclasses import dataclass, field
from typing import Any

from crayon.config import fields
from crayon.config.names import as_flag, flatten
from crayon.config.settings import Experiment
from crayon.errors import BadInput, RunFailed, last_line
from crayon.launch import cluster, fitting
from crayon.ops.processes import ClusterProcesses, OwnProcesses
from crayon.ops.settings import ChaosConfig
from crayon.report.terminal import Terminal
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
            raise fields.refuse("--kill", kind or "nothing", KINDS)
        if kind in ("worker", "pause", "node") and config.max_workers == 0:
            raise BadInput(f"--kill {kind} needs --workers 1 or more; with 0 there is only the driver.")
    if "node" in kinds and not cluster.joins():
        raise BadInput(
            "--kill node needs a Ray cluster to join; set RAY_ADDRESS, or run `ray start` on each machine."
        )
    return kinds


def run(config: Experiment, chaos: ChaosConfig) -> Verdict:
    """Train `config` undisturbed as `<name>-calm` and disturbed as `<name>-chaos`, print the verdict and leave it as
    chaos.json in the latter. Raises BadInput, or RunFailed where the undisturbed run fails."""
    from crayon.launch import driver as launch
    from crayon.launch import preflight

    kinds = check(config, chaos)
    preflight.check(config, on_ray=config.workers != 0)
    config = fitting.fitted(config, on_ray=config.workers != 0)
    name = config.name or launch.default_name(config)
    config = launch.with_absolute_paths(config, RunFolder(config.storage, name), on_ray=config.workers != 0)
    # Workers killed on purpose are no reason to give up.
    patient = dataclasses.replace(config.ray, max_failures=config.ray.max_failures + chaos.times)
    # A number of threads that is measured follows what else the machine does, and the weights' last bits follow it.
    config = dataclasses.replace(config, ray=patient, threads=config.threads or 1)
    baseline, disturbed = (RunFolder(config.storage, f"{name}-{part}") for part in ("calm", "chaos"))
    with contextlib.ExitStack() as stack:
        terminal, processes = stack.enter_context(Terminal()), OwnProcesses()
        if cluster.joins():
            stack.enter_context(cluster.connected())
            processes = ClusterProcesses()
        seconds = _train_baseline(config, baseline, terminal)
        plan = [kinds[i % len(kinds)] for i in range(chaos.times)]
        verdict = _DisturbedRun(config, disturbed, plan, chaos.chaos_seed, processes, terminal).run(seconds)
        if verdict.complete:
            verdict.equal = _equal(config, baseline, disturbed)
        disturbed.write_json("chaos.json", dataclasses.asdict(verdict) | {"against": baseline.uri})
        disturbed.push("chaos.json")
        terminal.line()
        terminal.pairs(lines(verdict))
    return verdict


def lines(verdict: Verdict) -> list[tuple[str, str]]:
    """The verdict as text, by what it is about."""
    said = []
    for fault in verdict.faults:
        after = f"{fault.recovery:.1f} s to the next one" if fault.recovery else "no checkpoint came after it"
        said.append(
            (fault.kind, f"at {fault.at:6.1f} s, after the checkpoint of step {fault.step:,}; {after}")
        )
    if verdict.missed:
        said.append(("missed", f"the run was over before {verdict.missed} more; give it more --epochs"))
    again = verdict.commands - 1
    said.append(("resumed", f"{verdict.resumed} times; the command was given again {again} times"))
    said.append(("complete", "yes" if verdict.complete else "NO"))
    if verdict.complete:
        said.append(("epochs", "each once, in order" if verdict.every_epoch_once else "NOT each once"))
        weights = {
            True: "equal to the undisturbed run's, bit for bit",
            False: "NOT those of the undisturbed run",
            None: "not compared: on a GPU, or with a changing number of workers, they differ by rounding",
        }
        said.append(("weights", weights[verdict.equal]))
    return said


def command(config: Experiment, name: str) -> list[str]:
    """The command line that trains exactly `config` under `name`."""
    settings = flatten(dataclasses.replace(config, name=name))
    words = [w for key, value in settings.items() if key != "job" for w in as_flag(key, value)]
    return child.command("crayon.cli", config.job, *words)


def _train_baseline(config: Experiment, run: RunFolder, terminal: Terminal) -> float:
    """Train undisturbed. The seconds that this took, without starting."""
    terminal.line(f"Undisturbed: {run.uri}")
    with terminal.waiting("training undisturbed"):
        end = subprocess.run(command(config, run.name), capture_output=True, text=True)
    if end.returncode:
        raise RunFailed(f"The undisturbed run failed: {last_line(end.stderr) or last_line(end.stdout)}")
    run.pull()
    seconds: float = run.read_rows("metrics.jsonl")[-1]["train_seconds"]
    return seconds


class _DisturbedRun:
    """A command that is broken as planned, and given again whenever it was ended on purpose."""

    def __init__(
        self,
        config: Experiment,
        folder: RunFolder,
        plan: list[str],
        seed: int,
        processes: OwnProcesses,
        terminal: Terminal,
    ):
        self.folder, self.plan, self.processes, self.terminal = folder, plan, processes, terminal
        self.epochs, self.command = config.epochs, command(config, folder.name)
        self.random = random.Random(seed)
        self.faults: list[Fault] = []
        self.commands = 0
        self.begun = time.monotonic()

    def run(self, train_seconds: float) -> Verdict:
        """train_seconds: within which the faults happen."""
        self.terminal.line(f"Disturbed: {self.folder.uri}")
        path = self.folder.path.with_name(f"{self.folder.name}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+") as log, self.terminal.waiting("training"):
            while (code := self._train(train_seconds, log)) is None:
                pass
            log.seek(0)
            said = log.read()
        if code:
            self.terminal.line(f"The command ended with: {last_line(said)}")
        self.folder.pull()
        epochs = [row["epoch"] for row in self.folder.read_rows("metrics.jsonl")]
        return Verdict(
            complete=code == 0 and self.folder.holds("result.json"),
            every_epoch_once=epochs == list(range(1, self.epochs + 1)),
            equal=None,
            resumed=said.count(RESUMED),
            commands=self.commands,
            faults=self.faults,
            missed=len(self.plan) - len(self.faults),
        )

    def _train(self, train_seconds: float, log: Any) -> int | None:
        """Start the command and break it as planned. Its exit code, None where it was ended on purpose."""
        self.commands += 1
        process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                # All of them within the time that undisturbed training takes. Half of them come while it goes on,
                # after a checkpoint; the others whenever they come, be it in a start.
                until = -1 if self.random.random() < 0.5 else self.faults[-1].step if self.faults else 0
                pause = self.random.uniform(0.05, 0.7) * train_seconds / len(self.plan)
                due, planned = None, self.plan[len(self.faults) :]
                while not planned or due is None or time.monotonic() < due:
                    newest = self._newest()
                    if due is None and newest > until:
                        due = time.monotonic() + pause
                    if self.faults and self.faults[-1].recovery is None and newest > self.faults[-1].step:
                        self.faults[-1].recovery = round(self._seconds() - self.faults[-1].at, 1)
                    if process.poll() is not None:
                        return process.returncode
                    time.sleep(LOOK_SECONDS)
                # Where there is nothing of that kind to break at this moment, it is tried again at another one.
                if self.break_one(planned[0], process) and planned[0] in ("driver", "stop"):
                    return None
        finally:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def break_one(self, kind: str, process: subprocess.Popen[Any]) -> bool:
        """Whether there was something of that kind to break."""
        fault = Fault(kind, round(self._seconds(), 1), self._newest())
        if kind in ("driver", "stop"):
            process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGINT)
        else:
            workers = self.processes.workers(process.pid)
            if not workers or not self._break_worker(kind, self.random.choice(workers)):
                return False
        self.faults.append(fault)
        self.terminal.line(f"{fault.at:7.1f} s  {kind}, after the checkpoint of step {fault.step:,}")
        return True

    def _break_worker(self, kind: str, worker: Any) -> bool:
        if kind == "node":
            return self.processes.end_node(worker)
        happened = self.processes.signal(worker, signal.SIGKILL if kind == "worker" else signal.SIGSTOP)
        if happened and kind == "pause":
            time.sleep(PAUSE_SECONDS)
            self.processes.signal(worker, signal.SIGCONT)
        return happened

    def _seconds(self) -> float:
        return time.monotonic() - self.begun

    def _newest(self) -> int:
        """The step of the newest checkpoint that is seen from here."""
        from crayon.training import checkpoint

        with contextlib.suppress(BadInput, OSError):
            entry = checkpoint.latest(self.folder)
            return 0 if entry is None else entry.step
        return 0


def _equal(config: Experiment, baseline: RunFolder, disturbed: RunFolder) -> bool | None:
    """Whether both runs ended with the same tensors."""
    from crayon.training import checkpoint

    if isinstance(config.workers, str):
        return None
    before, after = (checkpoint.latest(run) for run in (baseline, disturbed))
    if before is None or after is None:
        return False
    if before.digests == after.digests:
        return True
    result = baseline.read_json("result.json") or {}
    return None if result.get("environment", {}).get("gpus") and config.device != "cpu" else False
