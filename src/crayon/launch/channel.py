"""What the workers of a run tell its driver, and what the driver asks of them: an actor.

It is a process of its own, so whatever happens to a worker, what it told has arrived.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crayon.errors import RunFailed
from crayon.report.events import Event, Finished

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
        self._sent: ray.ObjectRef | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sent": None}

    def put(self, event: Event) -> None:
        """Tell the driver, in order. `Finished`, the last of all, has arrived when this returns."""
        # An actor with coroutines may run a later call first, but none before what it is given is there.
        self._sent = self._actor.put.remote(event, self._sent)
        if isinstance(event, Finished):
            ray.get(self._sent)

    def take(self) -> list[Event]:
        """The events since the last call. For the driver alone. Raises RunFailed."""
        try:
            return ray.get(self._actor.take.remote())
        except ray.exceptions.RayError as error:
            memory = "OutOfMemory" in repr(type(error))
            why = "its machine ran out of memory" if memory else "its process died"
            raise RunFailed(
                f"The actor through which the workers report was lost: {why}. The same command goes on from the last "
                "checkpoint."
            ) from error

    def request(self, what: Request) -> None:
        """Ask the workers to save and stop for good, or to be started anew; "" takes the latter back at once."""
        sent = self._actor.request.remote(what)
        if not what:
            ray.get(sent)  # The actor may run a later call first.

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
        self.requested: Request = ""
        self.changed = asyncio.Condition()

    async def put(self, event: Event, before: None) -> None:
        self.events.append(event)

    async def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    async def request(self, what: Request) -> None:
        async with self.changed:
            if self.requested != "stop":
                self.requested = what
            self.changed.notify_all()

    async def wait(self) -> Request:
        async with self.changed:
            await self.changed.wait_for(lambda: self.requested)
            return self.requested
