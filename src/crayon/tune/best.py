"""The best trial becomes a run of its own, `<sweep>/best`, and is measured on the test split."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from typing import Any

from crayon.config.names import flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import CrayonError, RunFailed
from crayon.system.runfolder import CHECKPOINTS, RunFolder
from crayon.tasks.jobs import get
from crayon.tune.actor import inside, trial_config
from crayon.tune.records import TrialRecord

NOTE = "trial.json"
"""Which trial `best` was made from; written last."""


def measured(
    config: Experiment, sweep: RunFolder, best: TrialRecord, *, cpus: int, gpus: float, command: str
) -> dict[str, Any]:
    """The content of `<sweep>/best/result.json`, made for this unless it is there already. Ray is connected.

    Measured as a Ray task, on what a trial gets. Raises RunFailed.
    """
    import ray

    home = RunFolder(inside(sweep), "best")
    home.pull()
    note = {"trial": best.number, "value": best.value}
    if home.holds(NOTE) and home.read_json(NOTE) == note:
        return home.read_json("result.json")
    payload = {
        "job": config.job,
        "preset": config.preset,
        "config": flatten(config),
        "storage": sweep.storage,
        "name": sweep.name,
        "params": dict(best.params),
        "note": note,
        "threads": cpus,
        "command": command,
    }
    failure = ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus)(_task).remote(payload))
    if failure:
        raise RunFailed(failure)
    home.pull()
    return home.read_json("result.json")


def _task(payload: dict[str, Any]) -> str:
    """Returns what went wrong, or ""."""
    base = override(get(payload["job"], payload["preset"]), payload["config"])
    try:
        _make(base, RunFolder(payload["storage"], payload["name"]), **{k: payload[k] for k in _PARTS})
    except CrayonError as error:
        return str(error)
    return ""


_PARTS = ("params", "note", "threads", "command")


def _make(
    base: Experiment,
    sweep: RunFolder,
    params: Mapping[str, Scalar],
    note: Mapping[str, Any],
    threads: int,
    command: str,
) -> None:
    import torch

    from crayon.system import devices
    from crayon.training import worker
    from crayon.training.collectives import Group

    torch.set_num_threads(threads)
    config = trial_config(base, sweep, note["trial"], params)
    trial = RunFolder(config.storage, str(config.name))
    trial.pull()
    home = RunFolder(inside(sweep), "best")
    home.create()
    # What another trial has left here goes; it is whole in that trial's own folder.
    for name in (NOTE, "result.json", "report.html", "pictures", CHECKPOINTS):
        home.remove(name)
    with home.guard(home.path):
        shutil.copytree(trial.path / CHECKPOINTS, home.path / CHECKPOINTS)
        shutil.copy(trial.path / "metrics.jsonl", home.path / "metrics.jsonl")
        if (trial.path / "pictures").is_dir():
            shutil.copytree(trial.path / "pictures", home.path / "pictures")
    config = dataclasses.replace(
        config, name=home.name, storage=home.storage, workers=min(config.max_workers, 1)
    )
    home.write_json("config.json", flatten(config))
    group = Group(device=devices.chosen(config.device))
    trainer = worker.build(config, worker.load_data(config), home, group=group)
    trainer.restore()
    worker.conclude(trainer, command)
    home.write_json(NOTE, note)
    home.push()
    home.push(CHECKPOINTS)
