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
from typing import Any

from crayon.report.wandb import ABOUT, GO_OFFLINE, SENT
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

    mode: online, offline, off, or auto = what WANDB_MODE says, else online where a key is configured, else offline.
    tell: receives a sentence when something doesn't work.
    about: project, name, group, job_type and config as W&B shows the run; None = as they lie in the folder.
    """

    def __init__(
        self, run: RunFolder, mode: str, tell: Callable[[str], None], about: Mapping[str, Any] | None = None
    ):
        self.run, self.tell, self.mode = run, tell, wanted(mode)
        self.on = self.mode != "off"
        self._told: set[str] = set()
        self._left = STARTS
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._attend, daemon=True)
        if not self.on:
            return
        # What the processes read: it ends when training does, also when that is killed.
        self._input, self._training = os.pipe()
        try:
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
        os.close(self._training)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._say(f"W&B: not all was sent within {FINISH_SECONDS:.0f} s of the end; going on offline.")
            self.mode, self._left = "offline", 1
            self._kill()
            self._thread.join(OFFLINE_SECONDS)
        if self._thread.is_alive():
            self._give_up("it hangs")
            self._kill()
        sent = self.run.read_json(SENT) if self.run.holds(SENT) else {}
        return f"wandb sync {shlex.quote(sent['directory'])}" if sent.get("mode") == "offline" else ""

    def _attend(self) -> None:
        """See the process off, and start another one when it has died."""
        reason = "its process kept dying"
        while self.on and self._left > 0:
            self._left -= 1
            begun = time.monotonic()
            try:
                code = self._follow()
            except OSError as error:
                code, reason = 1, f"its process could not start ({error})"
            if code == 0:
                break
            if code == GO_OFFLINE:
                self.mode = "offline"
            if code == GO_OFFLINE or time.monotonic() - begun > 60:
                self._left = STARTS
        else:
            self._give_up(reason)
        os.close(self._input)

    def _follow(self) -> int:
        self._process = process = child.start(
            "crayon.report.wandb",
            str(self.run.path),
            f"--mode={self.mode}",
            stdin=self._input,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for training, and the group can be killed as a whole
        )
        with process:
            for line in process.stdout or ():
                self._say(line.strip())
        self._kill()
        return process.returncode

    def _kill(self) -> None:
        """The process with W&B's own helpers, which are in the same group."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.tell(text)

    def _give_up(self, reason: str) -> None:
        if self.on:
            self.on = False
            self._say(f"W&B: {reason}; it is off for the rest of this run, which is whole on disk.")


def catch_up(run: RunFolder, mode: str, tell: Callable[[str], None]) -> str:
    """Send what an earlier command didn't of a run that is complete. Returns what `Follower.finish` does."""
    return Follower(run, mode, tell).finish() if run.holds(ABOUT) and not run.holds(SENT) else ""
