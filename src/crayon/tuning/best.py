"""The best trial becomes a run of its own, `<sweep>/best`, and is measured on the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crayon.config.names import flatten
from crayon.config.settings import Experiment, Scalar
from crayon.errors import CrayonError, RunFailed
from crayon.launch import cluster, memory, shared
from crayon.system.runfolder import CHECKPOINTS, RunFolder
from crayon.tuning.actor import trial_config
from crayon.tuning.records import TrialRecord
from crayon.tuning.slots import Slots

NOTE = "trial.json"
"""Which trial `best` was made from; written last."""


def measured(config: Experiment, best: TrialRecord, slots: Slots, command: str) -> dict[str, Any]:
    """The content of `<sweep>/best/result.json`, made for this unless it is there already. Ray is connected.

    Measured as a Ray task, on what a trial gets. Raises RunFailed.
    """
    import ray

    home = RunFolder(RunFolder.of(config).inside(), "best")
    home.pull()
    note = {"trial": best.number, "value": best.value}
    if not home.holds(NOTE) or home.read_json(NOTE) != note:
        task = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_make)
        token = shared.mark(RunFolder.of(config), own=not cluster.joins())
        try:
            failure = ray.get(task.remote(config, best.settings, note, slots.cpus, command, token))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            failure = _lost(best.number, error)
        if failure:
            raise RunFailed(failure)
        home.pull()
    return home.read_json("result.json")


def _lost(number: int, error: Exception) -> str:
    """What is said where the process that measures dies again and again."""
    why = "its machine ran out of memory" if memory.ended(repr(error)) else "its process died"
    return f"The model of trial {number} was not measured: {why}. Everything is kept; the same command measures it."


def _make(
    sweep: Experiment,
    params: Mapping[str, Scalar],
    note: Mapping[str, Any],
    threads: int,
    command: str,
    token: str,
) -> str:
    """Returns what went wrong, or ""."""
    import torch

    from crayon.system import devices
    from crayon.training import checkpoint, worker
    from crayon.training.collectives import Group

    torch.set_num_threads(threads)
    config = trial_config(sweep, note["trial"], params)
    trial, home = RunFolder.of(config), RunFolder(RunFolder.of(sweep).inside(), "best")
    try:
        shared.check(RunFolder.of(sweep), token)
        trial.pull()
        if not trial.holds(CHECKPOINTS):
            return (
                f"The model of trial {note['trial']} isn't in {trial.uri}: run the command with the --storage, "
                "and on the machine, where that trial was trained."
            )
        home.create()
        # What another trial has left here goes; it is whole in that trial's own folder.
        for name in (NOTE, "result.json", "report.html", "pictures", CHECKPOINTS):
            home.remove(name)
        checkpoint.fork(trial, home)
        workers = min(config.max_workers, 1)
        config = dataclasses.replace(config, name=home.name, storage=home.storage, workers=workers)
        home.write_json("config.json", flatten(config))
        group = Group(device=devices.chosen(config.device))
        trainer = worker.build(config, worker.load_data(config), home, group=group)
        trainer.restore()
        worker.conclude(trainer, command)
        home.write_json(NOTE, note)
        home.push()
        home.push(CHECKPOINTS)
    except CrayonError as error:
        return str(error)
    return ""
