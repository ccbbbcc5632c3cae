"""The images of a sweep, and whether one that goes on has those that its trials have learned from."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from crayon.config.settings import Experiment
from crayon.data.types import DataInfo
from crayon.data.validate import brought
from crayon.errors import BadInput
from crayon.launch import cluster, fitting, shared
from crayon.launch.driver import preload
from crayon.report.contents import facts_of_images
from crayon.report.events import Emit, Message, ignore
from crayon.system.runfolder import RunFolder
from crayon.training import data_history
from crayon.tuning.study import Study


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
        token = shared.mark(RunFolder.of(config), own=False)
        looked = fitting.ask(config, _look_there, token, emit=emit, interrupted=interrupted)
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


def _look_there(config: Experiment, token: str) -> Looked:
    shared.check(RunFolder.of(config), token)
    return _look(config, ignore)


def _look(config: Experiment, emit: Emit) -> Looked:
    splits = preload(config, emit)
    return Looked(data_history.seen(config, splits), splits.info(), splits.about)
