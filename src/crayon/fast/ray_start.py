"""The start of Ray on this machine with fewer processes, below Ray's public interface.

Every process of Ray's takes a second or more to start, and wakes up a hundred times a second on the cores that are
training, where the threads of a step all wait for the one that was put aside (benchmarks/LOG.md). Ray has no settings
for what is left out. With a version of Ray that wasn't tried, its public interface is used, and the log says so.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from crayon.fast import enabled

log = logging.getLogger("crayon")
TRIED = ("2.60",)
"""Minor versions of Ray whose private parts are those that are used here and in `ray_train`."""
SPARED = ("start_monitor", "start_api_server", "start_log_monitor")
"""Of a node: the autoscaler, the dashboard and the log monitor, each a Python process of its own, which a cluster of
one machine whose workers' output nobody prints has no use for."""


@functools.cache
def tried(version: str) -> bool:
    """Whether this version of Ray was tried; where not, one line in the log says what follows."""
    if version.rpartition(".")[0] in TRIED:
        return True
    log.warning(
        "Ray %s: started by its public interface alone, some seconds slower than %s.", version, TRIED[-1]
    )
    return False


def trainer_class() -> Any:
    """Ray Train's TorchTrainer, or one for our own cluster whose controller is no process of its own."""
    import ray
    from ray.train.torch import TorchTrainer

    if enabled() and tried(ray.__version__):
        try:
            from crayon.fast.ray_train import InProcessTrainer

            return InProcessTrainer
        except (ImportError, AttributeError) as error:
            log.warning("Ray Train's controller gets a process of its own: %s", error)
    return TorchTrainer


def few_processes(ray: Any) -> AbstractContextManager[None]:
    """While Ray starts a node in this block, it starts none of `SPARED`."""
    if not enabled() or not tried(ray.__version__):
        return contextlib.nullcontext()
    return _replaced(ray._private.node.Node, dict.fromkeys(SPARED, lambda self, **ignored: None))


def patience(ray: Any, deadline: float, lives: Callable[[], bool]) -> AbstractContextManager[None]:
    """While Ray starts a node in this block, it waits for it until `deadline` (time.monotonic()) as long as it
    `lives()`: on a busy machine that can take minutes. Ray itself gives it half a minute, and has no setting for
    that."""
    if not tried(ray.__version__):
        return contextlib.nullcontext()
    services = ray._private.services
    ask: Any = getattr(services, "get_node", None)

    def get_node(*arguments: Any) -> Any:
        """The node's entry, for which Ray asks until it is there. Raises TimeoutError where it won't come."""
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline or not lives():
                    raise TimeoutError("timed out") from None
                time.sleep(0.1)

    return _replaced(services, {"get_node": get_node})


@contextlib.contextmanager
def _replaced(owner: Any, new: dict[str, Any]) -> Iterator[None]:
    """Attributes of `owner` replaced within this block; none of them where one isn't there."""
    missing = [name for name in new if not hasattr(owner, name)]
    if missing:
        log.warning("Ray has no %s any more: it starts as it does by itself.", ", ".join(missing))
        new = {}
    kept = {name: getattr(owner, name) for name in new}
    try:
        for name, value in new.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)
