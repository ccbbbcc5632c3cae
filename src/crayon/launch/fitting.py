"""What follows from the images where they are: on this machine, or on the nodes of the cluster that is joined."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from crayon import data
from crayon.config.settings import Experiment
from crayon.data.validate import brought, is_own
from crayon.errors import BadInput, CrayonError, Stopped
from crayon.launch import capacity, cluster
from crayon.report.events import Emit, Event, Message, ignore
from crayon.tasks import recipe

WAIT_SECONDS = 0.5
"""How often a driver that waits for a node looks whether it was interrupted."""


def ask(
    config: Experiment, look: Callable[..., Any], *args: Any, emit: Emit, interrupted: threading.Event
) -> Any:
    """What `look(config, *args)` returns on a node. Ray is connected. Raises BadInput where it raises a CrayonError."""
    import ray

    gpu = capacity.use_gpu(config)
    # A little of a GPU, so that an autoscaler starts a node of the kind that the run needs.
    looking = ray.remote(num_cpus=1, num_gpus=0.01 if gpu else 0)(_answer).remote(look, config, *args)
    told = False
    while not ray.wait([looking], timeout=WAIT_SECONDS)[0]:
        if not told and not capacity.total_slots(1, gpu):
            told = True
            emit(Message(f"Waiting for a node with a CPU core{' and a GPU' if gpu else ''}."))
        if interrupted.is_set():
            raise Stopped("Stopped before anything was trained; the same command goes on.")
    found, problem = ray.get(looking)
    if problem:
        raise BadInput(problem)
    return found


def _answer(look: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """What `look` returns, or what went wrong as a sentence."""
    try:
        return look(*args), ""
    except CrayonError as error:
        return None, str(error)


def fitted(
    config: Experiment, kept: Mapping[str, Any] | None = None, emit: Emit = ignore, *, on_ray: bool
) -> Experiment:
    """As `recipe.fitted`, wherever the images are. In a cluster that is joined, the preset isn't fitted to a source of
    one's own, which would have to be read."""
    if kept is not None or not (on_ray and brought(config.data) and cluster.joins()):
        return recipe.fitted(config, kept, emit)
    if is_own(config.data):
        return config

    def counted() -> int | None:
        with cluster.connected(tell=lambda text: emit(Message(text))):
            images, told = ask(config, _count, emit=emit, interrupted=threading.Event())
        for event in told:
            emit(event)
        return images

    return recipe.fitted(config, kept, emit, counted)


def _count(config: Experiment) -> tuple[int | None, list[Event]]:
    told: list[Event] = []
    return data.training_images(config.data, labels=config.needs_labels, emit=told.append), told
