"""A sweep on Weights & Biases: every trial a run of one group, and a run that sums them up.

A trial is sent when it has ended, from the files it has left, by one W&B process for all: starting one for each would
cost more than a short trial trains. A trial that ended under a command which was killed is sent by the next.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from crayon.config.names import flatten
from crayon.config.settings import Experiment
from crayon.report import plots
from crayon.report.wandb import Process, Tracker
from crayon.system.runfolder import RunFolder
from crayon.tune.actor import trial_config
from crayon.tune.records import SweepRecord, TrialRecord

SENT = "wandb_sent"
"""A trial's folder holds this file once the trial was sent."""
PATIENCE_SECONDS = 60.0
"""How long the end of a sweep waits for trials that are still being sent."""


class SweepLog:
    """Sends trials in a thread of its own. No method raises, and none waits but `finish`."""

    def __init__(self, config: Experiment, sweep: RunFolder, warn: Callable[[str], None]):
        self.config, self.sweep, self.warn = config, sweep, warn
        self.on = config.wandb != "off"
        self.sync_command = ""
        self._seen: set[int] = set()
        self._ended: queue.Queue[TrialRecord | None] = queue.Queue()
        self._process = Process()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if self.on:
            self._thread.start()

    def look(self, record: SweepRecord) -> None:
        """Queue the trials that have ended and weren't sent."""
        if not self.on:
            return
        for trial in record.trials:
            if trial.state in ("complete", "pruned", "failed") and trial.number not in self._seen:
                self._seen.add(trial.number)
                self._ended.put(trial)

    def finish(self, record: SweepRecord, result: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        """Wait for the trials, then send the run that sums them up."""
        if not self.on:
            return
        self._ended.put(None)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self.warn(
                "W&B: not all trials were sent in time; the next command on this sweep sends the others."
            )
            self._process.kill()
            return
        with contextlib.suppress(Exception):
            tracker = self._tracker(record.name, "sweep", self._settings(record), self.sweep.path)
            for step, row in enumerate(_summary_rows(record)):
                tracker.log(row, step)
            tracker.pictures(pictures, len(record.trials))
            best = self.sweep.path / "best" / "checkpoints"
            if best.is_dir() and (newest := sorted(best.glob("step-*"))):
                tracker.artifact(newest[-1], f"{record.name}-model", {"metric": record.metric})
            tracker.finish(_summary(record, result), failed=False)
            if tracker.sync_command:
                trials = f"{self.sweep.path}/trials/*/wandb/offline-run-*"
                self.sync_command = f"{tracker.sync_command} && wandb sync {trials}"
        self._process.close()

    def _serve(self) -> None:
        while (trial := self._ended.get()) is not None:
            if not self.on:
                continue
            try:
                self._send(trial)
            except Exception as error:
                self.on = False
                self.warn(f"W&B: trial {trial.number} could not be sent ({error}); it is off for this sweep.")

    def _send(self, trial: TrialRecord) -> None:
        config = trial_config(self.config, self.sweep, trial.number, trial.params)
        run = RunFolder(config.storage, str(config.name))
        run.fetch("metrics.jsonl")
        if not run.path.is_dir() or run.holds(SENT):
            return
        rows = run.read_rows("metrics.jsonl")
        name = f"{self.sweep.name}-{trial.number:04d}"
        tracker = self._tracker(name, "trial", flatten(config) | {"trial": trial.number}, run.path)
        for row in rows:
            tracker.log(row, int(row["step"]))
        if rows:
            shown: dict[str, Image.Image | Path] = {"learning_curves": plots.learning_curves(rows)}
            if frames := sorted((run.path / "pictures" / "over_time").glob("epoch-*.png")):
                shown["snapshot"] = frames[-1]
            tracker.pictures(shown, int(rows[-1]["step"]))
        summary: dict[str, Any] = {"state": trial.state, "trial": trial.number}
        if trial.value is not None:
            summary["value"] = trial.value
        tracker.finish(summary, failed=trial.state == "failed")
        self.on = self.on and tracker.on
        if tracker.on:
            run.write_bytes(SENT, str(time.time()).encode())

    def _tracker(self, name: str, kind: str, config: Mapping[str, Any], folder: Path) -> Tracker:
        return Tracker(
            mode=self.config.wandb,
            project=self.config.wandb_project,
            name=name,
            config=config,
            folder=folder,
            group=self.sweep.name,
            job_type=kind,
            warn=self.warn,
            process=self._process,
        )

    def _settings(self, record: SweepRecord) -> dict[str, Any]:
        space = {f"space.{name}": str(dimension) for name, dimension in record.space.items()}
        return flatten(self.config) | dict(record.settings) | space


def _summary_rows(record: SweepRecord) -> list[dict[str, float]]:
    """One row per trial: its value and parameters, and the best value so far."""
    rows, best = [], None
    for trial in record.finished:
        if best is None or record.better(trial.value, best):
            best = trial.value
        row = {"trial": float(trial.number), record.metric: trial.value, f"best/{record.metric}": best}
        row |= {k: float(v) for k, v in trial.params.items() if isinstance(v, (int, float))}
        if trial.seconds is not None:
            row["train_seconds"] = trial.seconds
        rows.append(row)
    return rows


def _summary(record: SweepRecord, result: Mapping[str, Any]) -> dict[str, Any]:
    plots = {k: v for k, v in result.items() if isinstance(v, (int, float)) and k.count("/") < 2}
    if record.best is not None:
        plots |= {f"best/{k}": v for k, v in record.best.params.items()}
        plots |= {"best/trial": record.best.number, "best/value": record.best.value}
    return plots
