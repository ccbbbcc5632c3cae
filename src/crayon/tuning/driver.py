"""The `tune` command: what a sweep is checked for and begins or goes on with, and the order of its steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from crayon.config import changes, fields
from crayon.config.names import identity, override, with_defaults
from crayon.config.settings import Experiment
from crayon.errors import BadInput, RunFailed, Stopped
from crayon.launch import cluster, preflight
from crayon.launch.driver import default_name, interrupts, with_absolute_paths
from crayon.report.events import Emit, Event, Message, Progress
from crayon.system.runfolder import SWEEP, RunFolder
from crayon.system.secrets import shown
from crayon.tasks import recipe
from crayon.tuning import mps, requirements
from crayon.tuning.command import Command
from crayon.tuning.records import Plan
from crayon.tuning.settings import SweepConfig
from crayon.tuning.space import Dimension, clipped, points

if TYPE_CHECKING:
    from crayon.tuning.images import Looked
    from crayon.tuning.study import Study
    from crayon.tuning.terminal import SweepDisplay


def tune(
    config: Experiment,
    sweep: SweepConfig,
    space: Mapping[str, Dimension],
    *,
    display: SweepDisplay,
    started: float,
    program: str,
    command: str = "",
) -> dict[str, Any]:
    """Search `space` around `config`; returns the content of the sweep's result.json.

    `program` is how the user calls this job, `command` what follows it. The test split is measured once, with the best
    trial's weights, at the sweep's end or where `sweep.finish` asks for it. Raises BadInput before any worker starts
    wherever the mistake can be seen from here, RunFailed, or Stopped when it was interrupted.
    """
    name = config.name or default_name(config, "-sweep")
    again = "the same command"
    if not config.name:
        command, again = f"{command} --name {name}".lstrip(), f"the same command with --name {name}"
    config = dataclasses.replace(config, name=name)
    check(config, sweep, space)
    if sweep.objective == "pbt":
        from crayon.tuning import population

        sweep = population.sized(config, sweep)
    run = RunFolder(config.storage, name)
    config = with_absolute_paths(config, run, on_ray=True)
    run.create()
    with run.lock(), interrupts() as stop, contextlib.ExitStack() as ended:
        from crayon.tuning import start
        from crayon.tuning.images import look

        show = _once(display)
        connect = functools.partial(cluster.connected, beside="ray.tune", tell=display.message)
        if cluster.joins():  # whose nodes have the images
            ended.enter_context(connect())
        study, config, looked = _study(run, config, sweep, space, lambda: look(config, show, stop))
        ended.callback(study.close)
        study.seat.keep()
        display.message(f"{shown(run.uri)}  (--name {name} goes on with it when it is interrupted)")
        begun = start.begin(study, config, sweep, space, looked.info, shown(run.uri))
        for text in filter(None, [recipe.told(config, looked.info.train_size), *begun]):
            display.message(text)
        part = Command(config, sweep, run, study, looked, display, show, program, command)
        with connect():
            part.search(stop)
            if sweep.confirm and not (stop.is_set() or part.problem):
                part.confirm(stop)
            if sweep.finish or not (stop.is_set() or part.problem):
                part.measure()
        result = part.conclude(started)
        if stop.is_set():
            raise Stopped(f"The sweep was interrupted; everything is kept, and {again} goes on with it.")
        if part.problem:
            raise RunFailed(part.problem)
        return result


def check(config: Experiment, sweep: SweepConfig, space: Mapping[str, Dimension]) -> None:
    """Raises BadInput for the first thing that can't work; every end of the space is tried."""
    fields.check(sweep)
    if sweep.study is not None:
        from crayon.tuning.database import check_url

        check_url(sweep.study)
    preflight.check(config, on_ray=True)
    mps.check(sweep)
    if isinstance(config.workers, str):
        raise BadInput(
            f"--workers {config.workers}: the trials of a sweep each need the same number of workers; give one number."
        )
    if sweep.objective == "pbt":
        from crayon.tuning import population

        population.check(config, sweep, space)
    elif sweep.population or sweep.round_epochs:
        flag = "--population" if sweep.population else "--round-epochs"
        raise BadInput(f"{flag} is for --objective pbt; add that, or leave it out.")
    for name, dimension in space.items():
        for value in dimension.choices or (dimension.low, dimension.high):
            fields.check(override(config, {name: value}))
    last = max((after for after, _, _ in changes.parsed(config)), default=0)
    epochs: Any = space.get("epochs")
    if epochs and min(epochs.choices or epochs.ends) <= last:
        raise BadInput(
            f"--changes: something changes after {last} epochs, when trials of --space.epochs {epochs} may be over; "
            f"begin that above {last}, or give it one value."
        )
    clipped(config, space)
    points(sweep.try_, config, space)
    if sweep.confirm == 1:
        raise BadInput("--confirm 1: one seed tells nothing apart; give 3 or more, or 0 for none.")
    if sweep.objective == "pareto" and (sweep.pruner != "asha" or sweep.patience or sweep.confirm):
        flag = "--confirm" if sweep.confirm else "--patience"
        flag = f"--pruner {sweep.pruner}" if sweep.pruner != "asha" else flag
        raise BadInput(f"{flag} compares one value; leave it out with --objective pareto.")
    for text in sweep.require:
        requirements.parse(text)
    from crayon.tuning import samplers

    samplers.check(sweep.sampler, sweep.objective, space)


def _once(display: SweepDisplay) -> Emit:
    """Shows what is said while the data are prepared, each line once."""
    shown: set[str] = set()

    def show(event: Event) -> None:
        match event:
            case Progress(what=text) | Message(text=text) if text not in shown:
                shown.add(text)
                display.message(text)

    return show


def _study(
    run: RunFolder,
    config: Experiment,
    sweep: SweepConfig,
    space: Mapping[str, Dimension],
    look: Callable[[], Looked],
) -> tuple[Study, Experiment, Looked]:
    """The study that is, or goes on, in `run`, `config` with what its trials are compared by, wherever they run, and
    what `look` sees.

    Raises BadInput where something else lies there."""
    from crayon import tasks
    from crayon.tuning.study import Study

    run.fetch(SWEEP, "study.db", "config.json")
    kept = run.read_json(SWEEP)
    if kept is None and (run.holds("config.json") or run.holds("checkpoints")):
        raise BadInput(f"{run.uri} holds a training run; choose another --name for the sweep.")
    if kept is not None and not (isinstance(kept, dict) and isinstance(kept.get("study"), str | None)):
        raise BadInput(
            f"{run.path / SWEEP} is no sweep's; put a copy in its place, or choose another --name."
        )
    if kept is not None and kept.get("study") != sweep.study:
        place = f"--study {shown(kept['study'])}" if kept.get("study") else "its own folder"
        raise BadInput(
            f"The sweep {run.name!r} has its study in {place}; go on with that, or choose another --name."
        )
    settings = identity(config)
    measured = str((kept or {}).get("metric", "")).removeprefix("val/")
    looked = look()
    config, (metric, direction) = tasks.kind(config).comparable(config, measured, lambda: looked.info)
    plan = Plan(
        settings=settings,
        before=with_defaults({}, config),
        space=space,
        metric=f"val/{metric}",
        direction=direction,
        objective=sweep.objective,
        sampler=sweep.sampler,
        early_stopping=sweep.early_stopping,
        pruner=sweep.pruner,
        seed=config.seed,
        population=sweep.population or 0,
        round_epochs=sweep.round_epochs or 0,
    )
    study = Study(sweep.study or f"sqlite:///{run.path / 'study.db'}", run.name, plan)
    about = {"job": config.job, "preset": config.preset, "study": sweep.study}
    run.write_json(SWEEP, about | plan.as_json())
    run.push()
    return study, config, looked
