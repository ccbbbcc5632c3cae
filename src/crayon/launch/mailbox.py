"""What the workers of a run tell its driver (events, why they failed), and the driver's wish to stop.

On a cluster of our own, which is one machine, that goes through a folder: an actor would be one more process, and wake
up a hundred times a second on the cores that are training (benchmarks/LOG.md). In a cluster that was joined it is an
actor, since a worker may sit on another machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from crayon.errors import RunFailed
from crayon.launch import cluster

Event = dict[str, Any]
LOOK_SECONDS = 0.5
"""How often each side looks for what the other has put there."""


class Mailbox(Protocol):
    """Both sides hold one: it can be pickled."""

    def put(self, event: Event) -> None:
        """Tell the driver. An event of kind `failed` has arrived when this returns, and only the first is kept."""
        ...

    def failed(self) -> bool:
        """Whether a worker has failed for good."""
        ...

    def take(self) -> tuple[list[Event], Event | None]:
        """The events since the last call, and the failure, if there is one. For the driver alone. Raises RunFailed."""
        ...

    def halt(self) -> None:
        """The driver wants the workers to stop."""
        ...

    def leave(self) -> None:
        """The controller wants the workers to save and leave, to start them anew."""
        ...

    def forget(self) -> None:
        """They have left."""
        ...

    def until_asked(self) -> Literal["halt", "leave", ""]:
        """Wait for `halt` or `leave`; "" when the driver has gone without one, whichever way."""
        ...

    def close(self) -> None:
        """No more is told or taken."""
        ...


def create(own: bool) -> Mailbox:
    """A mailbox for a run on a cluster of our own, or on one that was joined (then Ray is connected)."""
    return FolderMailbox() if own else ActorMailbox()


class FolderMailbox:
    """One line of JSON per event, appended in one write each, so that the writer may be killed at any moment."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mailbox-", dir=cluster.scratch()))
        self._events, self._failure, self._halt, self._leave = (
            self.folder / n for n in ("events.jsonl", "failure", "halt", "leave")
        )
        self._read = 0

    def put(self, event: Event) -> None:
        if event["kind"] == "failed":
            with tempfile.NamedTemporaryFile("w", dir=self.folder) as file:
                file.write(json.dumps(event))
                file.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, self._failure)
            return
        # The line begins afresh, should another writer have been killed within its own.
        with contextlib.suppress(FileNotFoundError), self._events.open("ab", buffering=0) as file:
            file.write(f"\n{json.dumps(event)}\n".encode())

    def failed(self) -> bool:
        return self._failure.exists()

    def take(self) -> tuple[list[Event], Event | None]:
        events = []
        with contextlib.suppress(FileNotFoundError), self._events.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")
            self._read += len(whole[0]) + len(whole[1])
            for line in whole[0].splitlines():
                with contextlib.suppress(ValueError):
                    events += [json.loads(line)] if line else []
        return events, json.loads(self._failure.read_text()) if self.failed() else None

    def halt(self) -> None:
        self._halt.touch()

    def leave(self) -> None:
        self._leave.touch()

    def forget(self) -> None:
        self._leave.unlink(missing_ok=True)

    def until_asked(self) -> Literal["halt", "leave", ""]:
        while self.folder.exists():
            if self._halt.exists():
                return "halt"
            if self._leave.exists():
                return "leave"
            time.sleep(LOOK_SECONDS)
        return ""

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class ActorMailbox:
    """The same through an actor."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Beside its owner: it must not be lost with some other node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Letters).remote()

    def put(self, event: Event) -> None:
        import ray

        sent = self.actor.put.remote(event)
        if event["kind"] == "failed":
            ray.get(sent)

    def failed(self) -> bool:
        import ray

        return ray.get(self.actor.failed.remote())

    def take(self) -> tuple[list[Event], Event | None]:
        import ray

        try:
            return ray.get(self.actor.take.remote())
        except ray.exceptions.RayError as error:
            why = (
                "its machine ran out of memory" if "OutOfMemory" in repr(type(error)) else "its process died"
            )
            raise RunFailed(
                f"The actor through which the workers report was lost: {why}. The same command goes on from the last "
                "checkpoint."
            ) from error

    def halt(self) -> None:
        self.actor.ask.remote("halt")

    def leave(self) -> None:
        self.actor.ask.remote("leave")

    def forget(self) -> None:
        import ray

        ray.get(self.actor.forget.remote())

    def until_asked(self) -> Literal["halt", "leave", ""]:
        import ray

        try:
            return ray.get(self.actor.until_asked.remote())
        except Exception:  # the actor, its node, or this process's own connection has ended
            return ""

    def close(self) -> None:
        """The actor ends with the last handle of it."""


class _Letters:
    """The actor. Its methods run one at a time, in one event loop."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failure: Event | None = None
        self.wish: Literal["halt", "leave", ""] = ""
        self.asked = asyncio.Event()

    async def put(self, event: Event) -> None:
        if event["kind"] == "failed":
            self.failure = self.failure or event
        else:
            self.events.append(event)

    async def failed(self) -> bool:
        return self.failure is not None

    async def take(self) -> tuple[list[Event], Event | None]:
        events, self.events = self.events, []
        return events, self.failure

    async def ask(self, wish: Literal["halt", "leave"]) -> None:
        if self.wish != "halt":
            self.wish = wish
        self.asked.set()

    async def forget(self) -> None:
        if self.wish == "leave":
            self.wish = ""
            self.asked.clear()

    async def until_asked(self) -> Literal["halt", "leave", ""]:
        await self.asked.wait()
        return self.wish
