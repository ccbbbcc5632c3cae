"""The images of a sweep, and whether one that goes on has those that its trials have learned from."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from crayon.config.settings import Experiment
from crayon.data.types import DataInfo
from crayon.data.validate import brought
from crayon.errors import BadInput, CrayonError, Stopped
from crayon.launch import capacity, cluster, shared
from crayon.launch.driver import preload
from crayon.report.contents import facts_of_images
from crayon.report.events import Emit, Message, ignore
from crayon.system.runfolder import RunFolder
from crayon.training import data_history
from crayon.tuning.study import Study

WAIT_SECONDS = 0.5
"""How often a driver that waits for a node looks whether it was interrupted."""


class Looked(NamedTuple):
    """What the trials will see."""

    known: data_history.Known
    info: DataInfo
    about: dict[str, Any]
    """As of `crayon.data.Splits`."""


def look(config: Experiment, emit: Emit, interrupted: threading.Event) -> Looked:
    """The images, looked at where trials run. In a cluster that is joined, Ray is connected.

    Raises BadInput where they can't be had, or leave nothing to compare trials by."""
    if cluster.joins():
        emit(Message("Looking at the images on a node."))
        looked = _on_a_node(config, interrupted, emit)
    else:
        looked = _look(config, emit)
    if "val" not in looked.about["splits"]:
        raise BadInput(
            f"--data.val-fraction {config.data.val_fraction:g} leaves nothing to compare trials by; hold out a share, "
            "such as 0.08."
        )
    return looked


def checked(config: Experiment, study: Study, looked: Looked, emit: Emit) -> tuple[str, ...]:
    """What changed between a sweep's commands, as the study remembers it from now on; told where it is new.

    Raises BadInput where the sweep can't go on with the images.
    """
    if brought(config.data):
        for name, text in facts_of_images(looked.about):
            emit(Message(f"{name}: {text}"))
    now: data_history.Known = {**looked.known, "at": len(study.records())}
    before, history, changed = study.images, [now], ""
    if before:
        data_history.check(before, now, config, f"Sweep {config.name!r}")
        history, changed = data_history.follow(before, now, "trial")
    if changed:
        emit(Message(f"{changed} Trials before and after that can't be compared.", warning=True))
    if history != before:
        study.images = history
    return tuple(data_history.notes(history, "trial"))


def _on_a_node(config: Experiment, interrupted: threading.Event, emit: Emit) -> Looked:
    import ray

    gpu = capacity.use_gpu(config)
    # A little of a GPU, so that an autoscaler starts a node of the kind that the trials need.
    looking = ray.remote(num_cpus=1, num_gpus=0.01 if gpu else 0)(_look_there).remote(
        config, shared.mark(_folder(config), own=False)
    )
    told = False
    while not ray.wait([looking], timeout=WAIT_SECONDS)[0]:
        if not told and not capacity.total_slots(1, gpu):
            told = True
            emit(Message(f"Waiting for a node with a CPU core{' and a GPU' if gpu else ''}."))
        if interrupted.is_set():
            raise Stopped("Stopped before any trial; the same command goes on.")
    found: Any = ray.get(looking)
    if isinstance(found, str):
        raise BadInput(found)
    return found


def _folder(config: Experiment) -> RunFolder:
    # Not the actor's: Ray, which that imports, reads its settings when it is imported, and they aren't made yet.
    return RunFolder(config.storage, str(config.name))


def _look_there(config: Experiment, token: str) -> Looked | str:
    """Returns what went wrong as a sentence."""
    try:
        shared.check(_folder(config), token)
        return _look(config, ignore)
    except CrayonError as error:
        return str(error)


def _look(config: Experiment, emit: Emit) -> Looked:
    splits = preload(config, emit)
    return Looked(data_history.seen(config, splits), splits.info(), splits.about)
