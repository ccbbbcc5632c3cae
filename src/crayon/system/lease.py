"""Who trains a run in an object store, across machines: a note beside the run, renewed while its command lives.

A store has no lock that ends with its holder. So the note says until when to keep off: a command that was killed keeps
others out for `DEAD_SECONDS`, but not the same machine, where the lock file tells that it is gone. Two commands that
start within the same second or two on two machines can still both get in: stores offer no exchange that would decide.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from crayon.errors import BadInput
from crayon.system.objectstore import ObjectStore

NAME = "driver.json"
BEAT_SECONDS = 15.0
"""How often a command says that it lives, here and in a sweep's study."""
DEAD_SECONDS = 60.0
"""A note that old is a dead command's. Machines whose clocks differ by more than the difference defeat this."""


@contextlib.contextmanager
def held(store: ObjectStore) -> Iterator[None]:
    """Hold the run in `store` for this process, which has its lock on this machine. Raises BadInput where another
    machine's command trains it."""
    mine = secrets.token_hex(8)
    note = _read(store)
    if note is not None and note["host"] != socket.gethostname():
        age = time.time() - note["time"]
        if age < DEAD_SECONDS:
            raise BadInput(
                f"A command on {note['host']} is training {store.uri}: its last sign of life is {max(age, 0):.0f} s "
                f"old. Wait for it (a dead one is forgotten after {DEAD_SECONDS:.0f} s), or choose another --name."
            )
    over = threading.Event()

    def beat() -> None:
        while True:
            note = {"host": socket.gethostname(), "pid": os.getpid(), "token": mine, "time": time.time()}
            with contextlib.suppress(OSError):  # the workers' own writes tell when the store is away
                store.write(NAME, json.dumps(note).encode())
            if over.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="crayon-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT_SECONDS)
        with contextlib.suppress(OSError):
            if (_read(store) or {}).get("token") == mine:
                store.delete(NAME)


def _read(store: ObjectStore) -> dict | None:
    try:
        note = json.loads(store.read(NAME))
        return {"host": str(note["host"])[:100], "time": float(note["time"]), "token": str(note["token"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
