"""What the workers of a run tell its driver (events, why they failed), and what the driver asks of them: an actor.

It is a process of its own, so whatever happens to a worker, what it told has arrived.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crayon.errors import RunFailed
from crayon.report.events import Event, Failed

Request = Literal["stop", "restart", ""]
POLL_SECONDS = 0.5
"""How often the driver asks what has happened."""


class Channel:
    """Both sides hold one: it can be pickled. Ray is connected. The actor ends with the last handle of it."""

    def __init__(self) -> None:
        # Beside its owner: it must not be lost with some other node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Ray's annotations leave this strategy out.
        remote = ray.remote(num_cpus=0, scheduling_strategy=here)  # type: ignore[call-overload]
        self._actor = remote(_State).remote()

    def put(self, event: Event) -> None:
        """Tell the driver. A `Failed` has arrived when this returns, and only the first is kept."""
        sent = self._actor.put.remote(event)
        if isinstance(event, Failed):
            ray.get(sent)

    def failed(self) -> bool:
        """Whether a worker has failed for good."""
        return ray.get(self._actor.failed.remote())

    def take(self) -> tuple[list[Event], Failed | None]:
        """The events since the last call, and the failure, if there is one. For the driver alone. Raises RunFailed."""
        try:
            return ray.get(self._actor.take.remote())
        except ray.exceptions.RayError as error:
            why = (
                "its machine ran out of memory" if "OutOfMemory" in repr(type(error)) else "its process died"
            )
            raise RunFailed(
                f"The actor through which the workers report was lost: {why}. The same command goes on from the last "
                "checkpoint."
            ) from error

    def request(self, what: Literal["stop", "restart"]) -> None:
        """Ask the workers to save and stop for good, or to be started anew."""
        self._actor.request.remote(what)

    def clear(self) -> None:
        """No restart is asked for any more: it has been made."""
        ray.get(self._actor.clear.remote())

    def wait(self) -> Request:
        """Wait until the driver asks for something; "" when it has gone without, whichever way."""
        try:
            return ray.get(self._actor.wait.remote())
        except Exception:  # the actor, its node, or this process's own connection has ended
            return ""


class _State:
    """The actor. Its methods run one at a time, in one event loop."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failure: Failed | None = None
        self.requested: Request = ""
        self.changed = asyncio.Event()

    async def put(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.failure = self.failure or event
        else:
            self.events.append(event)

    async def failed(self) -> bool:
        return self.failure is not None

    async def take(self) -> tuple[list[Event], Failed | None]:
        events, self.events = self.events, []
        return events, self.failure

    async def request(self, what: Literal["stop", "restart"]) -> None:
        if self.requested != "stop":
            self.requested = what
        self.changed.set()

    async def clear(self) -> None:
        if self.requested == "restart":
            self.requested = ""
            self.changed.clear()

    async def wait(self) -> Request:
        await self.changed.wait()
        return self.requested
