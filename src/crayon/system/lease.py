"""Who trains a run in an object store, across machines: a note beside the run, renewed while its command lives.

A store has no lock that ends with its holder. So a note says that its command lives, as long as it is new: a command
that was killed keeps others out for `DEAD_SECONDS`, but not on the same machine, where the lock file tells that it is
gone. How old a note is the store says, by its own clock: those of the machines don't matter. Each command writes one
before it looks for others', so of two that start at once none overlooks the other (S3 and Google's store show at once
what was written); both may be refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator

from crayon.errors import BadInput
from crayon.system.objectstore import ObjectStore

FOLDER = "driver"
"""Beside the run's files: of a note for each command."""
BEAT_SECONDS = 15.0
"""How often a command says that it lives, here and in a sweep's study."""
DEAD_SECONDS = 60.0
"""A note that old is a dead command's."""


@contextlib.contextmanager
def held(store: ObjectStore) -> Iterator[None]:
    """Hold the run in `store` for this process, which has its lock on this machine. Raises BadInput where another
    machine's command trains it, OSError where the store can't be reached."""
    mine = f"{FOLDER}/{secrets.token_hex(8)}.json"
    note = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    store.write(mine, note)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the workers' own writes tell when the store is away
                store.write(mine, note)

    thread = threading.Thread(target=beat, name="crayon-lease", daemon=True)
    try:
        _refuse_others(store, mine)
        thread.start()
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join(BEAT_SECONDS)
        with contextlib.suppress(OSError):
            store.delete(mine)


def _refuse_others(store: ObjectStore, mine: str) -> None:
    written = store.times(FOLDER)
    now = written.get(mine)
    for name, time in written.items():
        if name == mine:
            continue
        host, age = _host(store, name), (now or time) - time
        if host == socket.gethostname() or age >= DEAD_SECONDS:
            with contextlib.suppress(OSError):
                store.delete(name)
        elif host is not None:
            raise BadInput(
                f"A command on {host} is training {store.uri}: its last sign of life is {max(age, 0):.0f} s old. Wait "
                f"for it (a dead one is forgotten after {DEAD_SECONDS:.0f} s), or choose another --name."
            )


def _host(store: ObjectStore, name: str) -> str | None:
    """Of the machine whose note it is; None where it is gone meanwhile."""
    try:
        return str(json.loads(store.read(name))["host"])[:100]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "another machine"
