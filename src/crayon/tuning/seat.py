"""Which process runs a sweep, as its study has it: the lock on the sweep's folder doesn't reach another machine, which
may use the same database."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any

import optuna
import psutil

from crayon.errors import BadInput, CrayonError
from crayon.system.lease import BEAT_SECONDS, DEAD_SECONDS
from crayon.system.secrets import shown
from crayon.tuning.database import errors

DRIVER = "crayon:driver"


class Seat:
    """The driver's place in the study `url`, taken until `leave`. Raises BadInput where another process has it."""

    def __init__(self, study: optuna.Study, url: str):
        self._study, self._url, self._over = study, url, threading.Event()
        began = psutil.Process().create_time()
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "began": began}
        self._thread: threading.Thread | None = None
        self._lost = ""
        if taken := self._company():
            raise BadInput(taken)
        self._announce()

    def keep(self) -> None:
        """Say from now on that this process lives, whatever it is doing."""
        self._thread = threading.Thread(target=self._beat, name="crayon-seat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise BadInput once another process has taken over from this one, which was not heard of for too long."""
        if self._lost:
            raise BadInput(self._lost)

    def leave(self) -> None:
        """This process no longer runs the sweep."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(BEAT_SECONDS)
        with contextlib.suppress(CrayonError), errors(self._url):
            if self._mine(self._study.user_attrs.get(DRIVER)):
                self._study.set_user_attr(DRIVER, None)

    def _beat(self) -> None:
        while not (self._lost or self._over.wait(BEAT_SECONDS)):
            with contextlib.suppress(CrayonError), errors(self._url):  # it may be away for a moment
                self._lost = self._company()
                if not self._lost:
                    self._announce()

    def _announce(self) -> None:
        self._study.set_user_attr(DRIVER, self._me | {"at": time.time()})

    def _mine(self, note: dict[str, Any] | None) -> bool:
        return note is not None and {key: note.get(key) for key in self._me} == self._me

    def _company(self) -> str:
        """What is to be said of another process that runs the sweep; empty where there is none."""
        other = self._study.user_attrs.get(DRIVER)
        if not other or self._mine(other) or time.time() - other["at"] > DEAD_SECONDS:
            return ""
        if other["host"] == self._me["host"] and not _lives(other["pid"], other["began"]):
            return ""
        return (
            f"The sweep {self._study.study_name!r} in {shown(self._url)} is being run by process {other['pid']} on "
            f"{other['host']}; end that one and wait {DEAD_SECONDS:g} s, or choose another --name."
        )


def _lives(pid: int, began: float) -> bool:
    """Whether that process is there, and no later one of the same number."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - began) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
