"""Output that outlives the terminal or the program that reads it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import Any, TextIO


class ClosableOutput:
    """A text stream that says no more, rather than fail, once nobody is there to hear it.

    A closed terminal sends SIGHUP as well, before or after writing to it fails: who handles that decides what happens.
    Where the reader of a pipe has ended, as `tee` has when the terminal was closed, it is as if SIGHUP had come, or
    BrokenPipeError where nothing handles it.
    """

    hung_up = False
    """Whether a reader's end was taken for SIGHUP: then the command's last words need no reader either."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unheard():
            self._stream.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Any:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            hangup: Any = getattr(signal, "SIGHUP", None)
            unhandled = hangup is None or signal.getsignal(hangup) == signal.SIG_DFL
            if error.errno == errno.EPIPE and unhandled and not ClosableOutput.hung_up:
                raise
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if error.errno == errno.EPIPE and not unhandled and callable(signal.getsignal(hangup)):
                ClosableOutput.hung_up = True
                signal.raise_signal(hangup)
