"""Whether a sweep that goes on has the images that its trials have learned from."""

from __future__ import annotations

import threading
from typing import Any

from crayon.config.settings import Experiment
from crayon.data.validate import brought
from crayon.errors import BadInput, CrayonError, Stopped
from crayon.launch import cluster
from crayon.launch.driver import preload
from crayon.report.contents import facts_of_images
from crayon.report.events import Emit, Message, ignore
from crayon.training import data_history
from crayon.tuning.study import Study

WAIT_SECONDS = 0.5
"""How often a driver that waits for a node looks whether it was interrupted."""


def checked(config: Experiment, study: Study, emit: Emit, interrupted: threading.Event) -> tuple[str, ...]:
    """What changed between a sweep's commands, as the study remembers it from now on; told where it is new.

    Raises BadInput where the images can't be had, or the sweep can't go on with them.
    """
    if cluster.joins():
        emit(Message("Looking at the images on a node."))
        seen = _on_a_node(config, interrupted)
    else:
        splits = preload(config, emit)
        seen = data_history.seen(config, splits)
        if brought(config.data):
            for name, text in facts_of_images(splits.about):
                emit(Message(f"{name}: {text}"))
    now: data_history.Known = {**seen, "at": len(study.records())}
    before, history, changed = study.images, [now], ""
    if before:
        data_history.check(before, now, config, f"Sweep {config.name!r}")
        history, changed = data_history.follow(before, now, "trial")
    if changed:
        emit(Message(f"{changed} Trials before and after that can't be compared.", warning=True))
    if history != before:
        study.images = history
    return tuple(data_history.notes(history, "trial"))


def _on_a_node(config: Experiment, interrupted: threading.Event) -> data_history.Known:
    """`data_history.seen` where the images are. Ray is connected."""
    import ray

    looking = ray.remote(num_cpus=1)(_look).remote(config)
    while not ray.wait([looking], timeout=WAIT_SECONDS)[0]:
        if interrupted.is_set():
            raise Stopped("Stopped before any trial; the same command goes on.")
    found: Any = ray.get(looking)
    if isinstance(found, str):
        raise BadInput(found)
    return found


def _look(config: Experiment) -> data_history.Known | str:
    """Returns what went wrong as a sentence."""
    try:
        return data_history.seen(config, preload(config, ignore))
    except CrayonError as error:
        return str(error)
