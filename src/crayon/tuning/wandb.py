"""A sweep on Weights & Biases: every trial a run of one group, and a run that sums them up.

One process follows the sweep's folder (`crayon.report.wandb`) and sends the trials while they train, from the files
that they leave. A trial that ended under a command which was killed is sent by the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from crayon.config.names import flatten
from crayon.config.settings import Experiment
from crayon.errors import CrayonError
from crayon.report.wandb import ABOUT, ID, SENT
from crayon.report.wandb_follower import Follower
from crayon.system.runfolder import RunFolder
from crayon.tuning.actor import trial_config
from crayon.tuning.records import Plan, SweepRecord, TrialRecord


class SweepFollower:
    """Writes into the trials' folders what they are called on W&B and how they ended, for the process that follows."""

    def __init__(self, config: Experiment, sweep: RunFolder, emit: Callable[[str], None]):
        self.config, self.sweep = config, sweep
        self._states: dict[int, str] = {}
        """By number of a trial, the state that its folder has."""
        for name in (ABOUT, SENT):  # an earlier command's: this one's are written at its end
            (sweep.path / name).unlink(missing_ok=True)
        self._follower = Follower(sweep, config.wandb, emit)

    def update(self, record: SweepRecord) -> None:
        """Note the trials that have begun or ended since."""
        for trial in (*record.trials, *record.confirming) if self._follower.on else ():
            if trial.state != "waiting" and self._states.get(trial.number) != trial.state:
                with contextlib.suppress(CrayonError):  # what needs the disk or the store says that it fails
                    self._note(trial, record.plan)

    def finish(self, record: SweepRecord, result: Mapping[str, Any]) -> str:
        """Send the run that sums the trials up. Returns the command that uploads what is offline, or ""."""
        if not self._follower.on:
            return ""
        rows = "".join(json.dumps(row) + "\n" for row in _summary_rows(record))
        self.sweep.write_bytes("metrics.jsonl", rows.encode())
        plan = record.plan
        space = {f"space.{name}": str(dimension) for name, dimension in plan.space.items()}
        asked = {name: getattr(plan, name) for name in ("objective", "sampler", "early_stopping")}
        config = flatten(self.config) | asked | {"trials": record.planned} | space
        end = {"summary": _summary(record, result), "failed": False}
        self.sweep.write_json(ABOUT, self._about(record.name, "sweep", config) | {"end": end})
        command = self._follower.finish()
        return f"{command} && wandb sync {_offline(self.sweep)}" if command else ""

    def _note(self, trial: TrialRecord, plan: Plan) -> None:
        config = trial_config(self.config, trial.number, trial.settings)
        run = RunFolder.of(config)
        over = trial.state != "running"
        if over:
            run.fetch("metrics.jsonl")
        if not run.path.is_dir() and not over:
            return  # it hasn't begun, or on another machine with an object store between: it is sent when it has ended
        self._states[trial.number] = trial.state
        if run.holds(SENT) or not run.path.is_dir():
            return
        settings = flatten(config) | {"wandb": self.config.wandb, "trial": trial.number}
        settings |= {"confirms": trial.confirms} if trial.confirms is not None else {}
        about = self._about(f"{self.sweep.name}-{trial.number:04d}", "trial", settings)
        about["monitor"] = (plan.metric, plan.direction)
        if over:
            value = {} if trial.value is None else {"value": trial.value, plan.metric: trial.value}
            tags = [trial.state, *(["confirmation"] if trial.confirms is not None else [])]
            summary = {"state": trial.state, "trial": trial.number, **trial.figures, **trial.metrics, **value}
            about["end"] = {"summary": summary, "failed": trial.state == "failed", "tags": tags}
        run.write_json(ABOUT, about)

    def _about(self, name: str, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
        group, project = self.sweep.name, self.config.wandb_project
        return {"project": project, "name": name, "group": group, "job_type": kind, "config": dict(config)}


def _offline(sweep: RunFolder) -> str:
    """A shell's pattern for the runs of the sweep's trials that are not uploaded yet."""
    place = os.environ.get("WANDB_DIR")
    if not place:
        return f"{shlex.quote(f'{sweep.path}/trials')}/*/wandb/offline-run-*"
    ids = sorted(
        path.read_text().strip() for path in sweep.path.glob(f"trials/*/{ID}")
    )  # others' lie there, too
    return " ".join(f"{shlex.quote(place)}/wandb/offline-run-*-{shlex.quote(own)}" for own in ids)


def _summary_rows(record: SweepRecord) -> list[dict[str, Any]]:
    """One row per trial: its value and parameters, and the best value so far."""
    rows: list[dict[str, Any]] = []
    plan = record.plan
    for step, trial in enumerate(sorted(record.ranked, key=lambda t: t.number)):
        best = plan.best([trial.reached, *(row[plan.metric] for row in rows)])
        row: dict[str, Any] = {"step": step, "trial": trial.number, plan.metric: trial.reached}
        row[f"best/{plan.metric}"] = best
        row |= {k: float(v) for k, v in trial.params.items() if isinstance(v, (int, float))}
        rows.append(row | {"train_seconds": trial.seconds})
    return rows


def _summary(record: SweepRecord, result: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        k: v for k, v in result.items() if isinstance(v, (int, float)) and k.count("/") < 2
    }
    if record.best is not None:
        figures |= {f"best/{k}": v for k, v in record.best.settings.items()}
        figures |= {"best/trial": record.best.number, "best/value": record.best.value}
    for c in record.verdict.comparisons if record.verdict else ():
        interval = {"difference": c.difference, "margin": c.margin, "seeds": c.seeds, "better": c.better}
        figures |= {f"confirmation/{c.trial}/{name}": v for name, v in interval.items() if v is not None}
    return figures
