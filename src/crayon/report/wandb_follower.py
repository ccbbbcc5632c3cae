"""Starts the process that sends a run to Weights & Biases (`crayon.report.wandb`), beside training."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from crayon.report.wandb import ABOUT, GO_OFFLINE, PID, SENT
from crayon.report.wandb_login import wanted
from crayon.system import child
from crayon.system.runfolder import RunFolder

FINISH_SECONDS = 45.0
"""How long the end of a run waits for what is still to be uploaded."""
OFFLINE_SECONDS = 60.0
"""How long it then waits until the run is written down for later."""
STARTS = 3
"""How often in a row the process is started when it dies within a minute."""


class Follower:
    """Starts the process that sends the run in a folder and the trials in its `trials/`, and again when it dies.

    No method raises or waits but `finish`, for `FINISH_SECONDS`, and `OFFLINE_SECONDS` more where those didn't suffice.

    Args:
        run: the run folder.
        mode: online, offline, off, or auto = what WANDB_MODE says, else online where an API key is configured,
            else offline.
        tell: receives a sentence when something doesn't work.
        about: project, name, group, job_type and config as W&B shows the run; None = as they lie in the folder.
    """

    def __init__(
        self,
        run: RunFolder,
        mode: str,
        tell: Callable[[str], None],
        about: Mapping[str, Any] | None = None,
    ):
        self.run, self.tell, self.mode = run, tell, wanted(mode)
        self.on = self.mode != "off"
        self._told: set[str] = set()
        self._left = STARTS
        self._process: subprocess.Popen[str] | None = None
        self._ending = threading.Event()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._attend, daemon=True)
        if not self.on:
            return
        try:
            _end_earlier(run.path)
            if about is not None:
                (run.path / SENT).unlink(missing_ok=True)
                run.write_json(ABOUT, about)
            self._thread.start()
        except Exception as error:
            self._give_up(f"could not start ({error})")

    def finish(self) -> str:
        """Wait until all is sent. A run that has no result.json by now has failed.

        Returns the command that uploads what was written down instead, or ""."""
        if not self.on:
            return ""
        self._ending.set()
        self._close_input()
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._say(f"W&B: not all was sent within {FINISH_SECONDS:.0f} s of the end; going on offline.")
            self.mode, self._left = "offline", 1
            self._kill()
            self._thread.join(OFFLINE_SECONDS)
        if self._thread.is_alive():
            self._left = 0
            self._kill()
            self._give_up("it hangs")
        sent = self.run.read_json(SENT) if self.run.holds(SENT) else {}
        return f"wandb sync {shlex.quote(sent['directory'])}" if sent.get("mode") == "offline" else ""

    def _attend(self) -> None:
        """See the process off, and start another one when it has died."""
        reason = ""
        while self._left > 0:
            self._left -= 1
            begun = time.monotonic()
            try:
                code = self._follow()
            except OSError as error:
                code, reason = 1, f"its process could not start ({error})"
            if code == 0:
                return
            if code == GO_OFFLINE:
                self.mode, self._left = "offline", STARTS
            if time.monotonic() - begun > 60 and not self._ending.is_set():
                self._left = STARTS
        if self.on:
            self._give_up(reason or "its process kept dying")

    def _follow(self) -> int:
        with self._changing:
            self._process = process = child.start(
                "crayon.report.wandb",
                str(self.run.path),
                f"--mode={self.mode}",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for training, and the group can be killed as a whole
            )
        if self._ending.is_set():
            self._close_input()
        with process.stdout:  # type: ignore[union-attr]
            for line in process.stdout:  # type: ignore[union-attr]
                self._say(line.strip())
        code = process.wait()
        self._kill()  # W&B's own helpers, which are in the same group
        self._close_input()
        return code

    def _close_input(self) -> None:
        with self._changing, contextlib.suppress(OSError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()

    def _kill(self) -> None:
        if self._process is not None:
            _kill(self._process.pid)

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.tell(text)

    def _give_up(self, reason: str) -> None:
        self.on = False
        self._say(f"W&B: {reason}; it is off for the rest of this run, which is whole on disk.")


def catch_up(run: RunFolder, mode: str, tell: Callable[[str], None]) -> str:
    """Send what an earlier command didn't of a run that is complete. Returns what `Follower.finish` does."""
    return Follower(run, mode, tell).finish() if run.holds(ABOUT) and not run.holds(SENT) else ""


def _end_earlier(folder: Path) -> None:
    """Kill the process that still sends this run for a command that was killed: what it hadn't sent is sent anew."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        pid = int((folder / PID).read_text())
        words = psutil.Process(pid).cmdline()
        if "crayon.report.wandb" in words and str(folder) in words:
            _kill(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL) if hasattr(os, "killpg") else os.kill(pid, signal.SIGTERM)
