"""One command's part of a sweep: trials, then what confirms the best, its test figures, and the report."""

from __future__ import annotations

import dataclasses
import shlex
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crayon.config.names import as_flag, flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import RunFailed
from crayon.report.events import Emit
from crayon.report.style import png
from crayon.report.words import SPLITS, headlines, metric_text, plain
from crayon.system.runfolder import RunFolder
from crayon.system.secrets import shown
from crayon.tasks import recipe
from crayon.tasks.jobs import get
from crayon.tuning.records import OVER, STATES, SweepRecord
from crayon.tuning.settings import SweepConfig
from crayon.tuning.words import confirming_text, verdict_text

if TYPE_CHECKING:
    from crayon.tuning.images import Looked
    from crayon.tuning.study import Study
    from crayon.tuning.terminal import SweepDisplay


def retrain(config: Experiment, params: Mapping[str, Scalar], program: str, name: str) -> str:
    """The command that trains `config` with `params` from the start.

    >>> retrain(get("mnist"), {"lr": 0.01}, "crayon mnist", "again")
    'crayon mnist --lr 0.01 --name again'
    """
    default = flatten(get(config.job, config.preset)) | {"preset": get(config.job).preset}
    words = [program]
    # Written out, what could be fitted to images of one's own, or to workers, stays as it is.
    fits = config.data.source == "folder" or config.data.own or config.max_workers > 1
    fixed = {*params, *(recipe.FITTED if fits else ())}
    for key, value in flatten(override(config, params)).items():
        if key in ("job", "name") or (value == default[key] and key not in fixed):
            continue
        words += map(shlex.quote, as_flag(key, value))
    return " ".join([*words, "--name", name])


def go_on(record: SweepRecord, limit: str = "") -> str:
    """How a sweep that is over would go on: with another value of the setting that has stopped it, which is `limit`, or
    the number of trials."""
    if not limit and len(record.trials) >= record.planned and not record.plan.population:
        limit = "trials"
    way = "lowering" if limit == "target" and record.plan.direction == "min" else "raising"
    return f"go on, {way} --{limit}" if limit else "go on"


@dataclasses.dataclass
class Command:
    """One command's part of a sweep, whose steps `crayon.tuning.driver.tune` calls in order."""

    config: Experiment
    sweep: SweepConfig
    run: RunFolder
    study: Study
    looked: Looked
    display: SweepDisplay
    show: Emit
    """Shows what is said while the data are prepared."""
    program: str
    command: str
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """How the images changed between the sweep's commands."""
    problem: str = ""
    """What the command ends with once the report is written."""
    looks: list[int] = dataclasses.field(default_factory=list)
    """The trials whose models the test split was shown."""
    pushed: int = 0
    """How many trials were over when the study was copied to the object store."""
    searched: bool = False
    """Whether the search is over, and the best is confirmed (`SweepConfig.confirm`)."""

    def search(self, interrupted: threading.Event) -> None:
        """Run trials until the budget is spent."""
        from crayon.tuning.images import checked
        from crayon.tuning.population import Population
        from crayon.tuning.slots import slots
        from crayon.tuning.state import SweepState
        from crayon.tuning.trials import run_trials
        from crayon.tuning.wandb import SweepFollower

        config, sweep = self.config, self.sweep
        shares = slots(config, sweep)
        self.notes = checked(config, self.study, self.looked, self.show)
        self.wandb = SweepFollower(config, self.run, self.display.message)
        deadline = None if sweep.minutes is None else time.monotonic() + 60 * sweep.minutes
        kind = Population if sweep.population else SweepState
        self.state = kind(config, sweep, self.study, shares, self.display.message, deadline)
        self.refresh()
        if self.study.confirmations() and not sweep.confirm:
            self.display.message("What earlier commands confirmed doesn't count without --confirm.")
        if sweep.finish:
            self.state.request_stop("No more trials, as asked.")
        if not self.state.stop.is_set() and (
            len(self.study.records()) < sweep.trials or self.study.unfinished()
        ):
            self.run.keep()
            run_trials(self.state, self.refresh, interrupted)
        self.problem = self.state.fault

    def confirm(self, interrupted: threading.Event) -> None:
        """Train the preset and the best trials with other seeds, as far as they are to be (crayon.tuning.winner)."""
        from crayon.tuning.confirm import Confirming
        from crayon.tuning.trials import run_trials

        self.searched, state = True, self.state
        record = self.record()
        if record.verdict is None:
            self.notes += (
                "Nothing was confirmed: it takes the preset and another trial that ran to their ends.",
            )
            self.display.message(self.notes[-1])
        elif record.verdict.missing and not self.sweep.finish:
            last = Confirming(self.config, self.sweep, self.study, state.slots, state.emit, state.deadline)
            self.display.message(confirming_text(record))
            run_trials(last, self.refresh, interrupted)
            self.problem = last.fault
            state.reason = " ".join(dict.fromkeys(filter(None, [state.reason, last.reason])))

    def refresh(self) -> None:
        """Show how it stands, and keep a copy of the study where the storage is an object store."""
        self.study.seat.check()
        record, deadline = self.record(), self.state.deadline
        self.display.show(record, None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.wandb.update(record)
        ended = sum(trial.state in OVER for trial in (*record.trials, *record.confirming))
        if self.run.store and ended > self.pushed:
            self.pushed = ended
            self.run.push("study.db")

    def measure(self) -> None:
        """Measure the best trial's model, if that hasn't been done. Where it can't be had, the report is still made."""
        from crayon.tuning.best import measured

        best = self.record().best
        if best is None:
            return
        self.display.message(f"Measuring the model of trial {best.number}.")
        self.looks = self.study.look(best.number)
        if len(self.looks) > 1:
            others = ", ".join(f"trial {number}" for number in self.looks[:-1])
            text = f"The test split was looked at before, for {others}: to what was chosen after that it isn't new."
            self.notes += (text,)
            self.display.message(self.notes[-1])
        try:
            self.measured = measured(self.config, best, self.state.slots, self._retrain(best.settings))
        except RunFailed as error:
            self.problem = str(error)

    def conclude(self, started: float) -> dict[str, Any]:
        """Pictures, report, result.json and the last words."""
        from crayon.tuning import page, plots
        from crayon.tuning.effects import with_effects

        self.display.message("Drawing the report.")
        record = with_effects(self.record())
        commands = self._commands(record)
        for name, picture in plots.all_pictures(record).items():
            self.run.write_bytes(f"pictures/{name}.png", png(picture))
        result = self._result(record, commands, started)
        self.run.write_json("result.json", result)
        page.write(self.run.path, record, commands, self.measured)
        upload = self.wandb.finish(record, result)
        self.run.push()
        if self.state.reason:
            self.display.message(self.state.reason)
        figures = [f"{plain(k)} {metric_text(k, self.measured[k])}" for k in headlines(self.measured)]
        lines = {"confirmed": verdict_text(record)} if record.verdict else {}
        lines |= {"its model": "   ".join(figures)} if figures else {}
        if record.best and not self.looks:
            lines["test split"] = "waits for the end of the sweep, or for --finish"
        lines |= {"report": f"{self.run.uri}/report.html"}
        self.display.result(record, lines, commands | ({"upload to W&B": upload} if upload else {}))
        return result

    def record(self) -> SweepRecord:
        from crayon import tasks
        from crayon.tuning import winner

        trials, runs = self.study.records(), self.study.confirmations()
        verdict = None
        if self.searched:
            verdict = winner.verdict(trials, runs, self.study.plan, self.sweep.confirm)
            those = winner.candidates(trials, self.study.plan)
            runs = tuple(winner.asked(those, runs, self.study.plan, self.sweep.confirm))
        return SweepRecord(
            name=self.run.name,
            job=self.config.job,
            about={"preset": self.config.preset, "data": self.config.data.source},
            plan=self.study.plan,
            trials=trials,
            planned=self.sweep.trials,
            confirming=runs,
            verdict=verdict,
            notes=self.notes,
            beside=tuple(f"val/{name}" for name in tasks.kind(self.config).secondary_metrics),
        )

    def _retrain(self, params: Mapping[str, Scalar]) -> str:
        return retrain(self.config, params, self.program, f"{self.run.name[:95]}-best")

    def _commands(self, record: SweepRecord) -> dict[str, str]:
        best, over = record.best, bool(self.looks)
        return {
            **({"retrain the best": self._retrain(best.settings)} if best else {}),
            go_on(record, self.state.limit)
            if over
            else "go on": f"{self.program} {self.command.replace(' --finish', '')}".rstrip(),
            "look at the study": f"uvx optuna-dashboard {shlex.quote(shown(self.study.url))}",
        }

    def _result(self, record: SweepRecord, commands: Mapping[str, str], started: float) -> dict[str, Any]:
        from crayon.system.host import environment

        best, state = record.best, self.state
        result: dict[str, Any] = {
            "job": self.config.job,
            "preset": self.config.preset,
            "name": self.run.name,
            "metric": record.plan.metric,
            "objective": record.plan.objective,
            "trials": {s: sum(t.state == s for t in record.trials) for s in STATES},
            "best": best
            and {"trial": best.number, "value": best.value, "params": dict(best.settings), **best.figures},
            "preset_value": record.preset and record.preset.value,
            "confirmation": record.verdict and dataclasses.asdict(record.verdict),
            "front": [t.number for t in record.front],
            "lineage": [t.number for t in record.line],
            "importances": dict(record.importances),
            "importances_margin": dict(record.margins),
            "importances_basis": record.basis,
            "data_changes": list(record.notes),
            "epochs": sum(t.part[0] for t in record.trials),
            "train_seconds": sum(t.seconds for t in record.trials),
            "stopped": state.reason,
            "test_looks": self.looks,
            "commands": dict(commands),
            "this_command": {
                "seconds": time.time() - started,
                "search_seconds": state.seconds,
                "trials": state.ended,
                "concurrent": state.slots.most,
                "overhead_seconds": state.overhead(),
            },
            "environment": environment(),
        }
        return result | {k: v for k, v in self.measured.items() if k.partition("/")[0] in SPLITS}
