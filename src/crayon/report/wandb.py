"""The run's copy on Weights & Biases. The run folder is the record; nothing that happens here touches training.

W&B lives in a process of its own (`crayon.report.wandb_process`), which this module starts and feeds through a pipe:
training never waits for its import, its network or its end, prints nothing of it, and a process can be killed when
it hangs, which a thread can't. The API key reaches it through the environment or the user's netrc, as W&B itself
reads it, and is never passed on, logged or stored.

A resumed run continues the same W&B run, whose id lies in the run folder as `wandb_id`. Before its first row an
attempt sends all rows of `metrics.jsonl` up to there, and rows that the server has already are left out, by their
`step`, which is also the x axis. So a run killed at any moment ends up with every row once. Offline, the newest
attempt's folder holds the whole history and replaces those of earlier attempts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from crayon.system import child

ONLINE_SECONDS = 18.0
"""How long W&B may take to come up online before the run goes on offline."""
OFFLINE_SECONDS = 60.0
FINISH_SECONDS = 45.0
"""How long the end of a run waits for what is still to be written or uploaded."""


class Tracker:
    """Sends one run to W&B. No method raises or waits, but `finish`: `FINISH_SECONDS` at most for what is still to be
    sent, and where that didn't suffice, or W&B had died, until all of the run is written down for `wandb sync`.

    Args:
        mode: online, offline, off, or auto = what WANDB_MODE says, else online where an API key is configured,
            else offline.
        project, name, group, job_type: as W&B shows the run.
        config: settings by dotted name.
        folder: the run folder; W&B's files go to `wandb/` in it.
        warn: receives a sentence when something doesn't work.
        process: serves several runs, one after the other, since its import takes longer than a short run; the caller
            closes it. None = one of its own.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        group: str | None = None,
        job_type: str | None = None,
        warn: Callable[[str], None] = lambda text: None,
        process: Process | None = None,
    ):
        if mode == "auto":
            mode = _MODES.get(os.environ.get("WANDB_MODE", ""), "auto")
            if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
                mode = "off"
        self.on = mode != "off"
        self.sync_command = ""
        """What uploads the run later; empty when it is online, or off. Known after `finish`."""
        self._warn, self._folder = warn, Path(folder).absolute()
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self._shared = process
        self._process: Process | None = None
        self._pictures: Path | None = None
        self._replayed = False
        self._told: list[str] = []
        """What a process was told, to tell another one all of it should the first fail."""
        self._ended, self._late = False, ""
        self._over = threading.Event()
        if not self.on:
            return
        try:
            (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
            hello = {
                "project": project,
                "name": name,
                "group": group,
                "job_type": job_type,
                "config": dict(config),
                "folder": str(self._folder),
                "id": run_id(self._folder),
                "parent": os.getpid(),
            }
            # Started by the first message, the end of the first epoch: its import would slow down the first steps.
            self._thread = threading.Thread(target=self._serve, args=(mode, hello), daemon=True)
        except Exception as error:
            self._give_up(f"could not start ({error})")

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """One row of metrics; what isn't a finite number is left out."""
        self._replay(before=step)
        self._put({"do": "log", "row": _numbers(row) | {"step": step}})

    def pictures(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        """Images, or paths of PNG or GIF files, by name."""
        self._put_pictures(pictures, step)

    def confusion_matrix(self, counts: Sequence[Sequence[int]], classes: Sequence[str], step: int) -> None:
        """W&B's own interactive confusion matrix; `counts[i][j]` = images of class i predicted as j."""
        rows = [
            [true, predicted, int(n)]
            for true, line in zip(classes, counts, strict=False)
            for predicted, n in zip(classes, line, strict=False)
        ]
        self._put({"do": "confusion_matrix", "rows": rows, "step": step})

    def artifact(self, path: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """The file `path`, a checkpoint, as an artifact of type model. It is read when the run ends or is synced."""
        self._put({"do": "artifact", "path": str(path), "name": name, "metadata": dict(metadata)})

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """End the run with these final figures. `step` and `epoch` among them are the selected model's."""
        if not self.on:
            return
        self._replay(before=math.inf)
        renamed = {f"selected/{k}" if k in ("step", "epoch") else k: v for k, v in summary.items()}
        self._put({"do": "finish", "summary": renamed, "failed": failed})
        if not self._over.wait(FINISH_SECONDS):
            self._late = f"not all was sent within {FINISH_SECONDS:.0f} s of the end of the run"
            if self._process is not None:
                self._process.kill()  # so that the run is written down for later, which waits for no network
            if not self._over.wait(OFFLINE_SECONDS):
                self._give_up(self._late)
        if self._pictures is not None:
            shutil.rmtree(self._pictures, ignore_errors=True)

    def _put(self, message: dict[str, Any]) -> None:
        if self.on:
            if self._thread.ident is None:
                self._thread.start()
            self._queue.put(message)

    def _replay(self, before: float) -> None:
        """Queue the rows of earlier attempts, once. The trainer has by now dropped those after its checkpoint."""
        if not self.on or self._replayed:
            return
        self._replayed = True
        with contextlib.suppress(Exception):
            from crayon.system.runfolder import RunFolder

            for row in RunFolder.at(self._folder).read_rows("metrics.jsonl"):
                if row.get("step", math.inf) < before:
                    self._put({"do": "log", "row": _numbers(row)})

    def _put_pictures(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        if not self.on:
            return
        try:
            # Elsewhere than in the run folder, where a killed run would leave them.
            self._pictures = self._pictures or Path(tempfile.mkdtemp(prefix="crayon-"))
            files = {}
            for name, picture in pictures.items():
                path = picture
                if isinstance(picture, Image.Image):
                    path = self._pictures / f"{secrets.token_hex(8)}.png"
                    picture.save(path)
                files[name] = str(path)
            self._put({"do": "pictures", "files": files, "step": step})
        except Exception as error:
            self._warn(f"W&B: the pictures could not be sent ({error}).")

    # In a thread of its own: the other process from start to end.

    def _serve(self, mode: str, hello: dict[str, Any]) -> None:
        try:
            reason = self._attempt(hello | {"mode": mode})
            if reason and self.on and mode != "offline":
                self._warn(f"W&B: {reason}; going on offline.")
                reason = self._attempt(hello | {"mode": "offline"})
            if reason and self.on:
                self._give_up(reason)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")
        finally:
            self._over.set()

    def _attempt(self, hello: dict[str, Any]) -> str:
        """Start the process, feed it until `finish` and see it off. Returns why it did not come up, or ""."""
        process = self._shared or Process()
        held: list[str] = []  # what couldn't be sent; it doesn't matter where all is written anew afterwards
        process.warn = held.append
        process.start()
        self._process = process
        patience = OFFLINE_SECONDS if hello["mode"] == "offline" else ONLINE_SECONDS
        done = False
        try:
            with contextlib.suppress(OSError):  # it has ended already, and its answer says why
                process.say(json.dumps(hello, default=str))
            try:
                answer = process.answer(patience)
            except queue.Empty:
                return f"no answer within {patience:.0f} s"
            if "ready" not in answer:
                return self._late or answer.get("failed", "it ended at its start")
            self.sync_command = _sync(answer["ready"])
            for line in self._told:
                process.say(line)
            while not self._ended:
                message = self._queue.get()
                self._ended = message["do"] == "finish"
                self._told.append(json.dumps(message, default=str))
                process.say(self._told[-1])
            answer = process.answer()
            done = "finished" in answer
            if not done:
                return self._late or answer.get("failed", "it ended before all was sent")
            if answer.get("finished") == "online":
                self.sync_command = ""
            for text in held:
                self._warning(text)
            return ""
        except OSError:
            return self._late or "its process ended"
        finally:
            if not (self._shared and done):
                process.close()

    def _warning(self, text: str) -> None:
        key = os.environ.get("WANDB_API_KEY")
        self._warn(f"W&B: {text.replace(key, '***') if key else text}")

    def _give_up(self, reason: str) -> None:
        self.on = False
        if self._process is not None:
            self._process.kill()
        self._warning(f"{reason}; it is off for the rest of this run, which is whole on disk.")


class Process:
    """`crayon.report.wandb_process`: takes one run after the other."""

    def __init__(self) -> None:
        self.warn: Callable[[str], None] = lambda text: None
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start it, unless it runs. Raises OSError."""
        if self._process is not None:
            return
        env = {name: value for name, value in os.environ.items() if name not in _ANOTHER_RUN}
        self._process = child.start(
            "crayon.report.wandb_process",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env | {"WANDB_SILENT": "true"},
            start_new_session=True,  # Ctrl-C is for training, and the group can be killed as a whole
        )
        self._answers = queue.Queue()
        self._reader = threading.Thread(
            target=self._listen, args=(self._process.stdout, self._answers), daemon=True
        )
        self._reader.start()

    def say(self, message: str) -> None:
        """One message, as JSON. Raises OSError where it has ended."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(message + "\n")
        self._process.stdin.flush()

    def answer(self, patience: float | None = None) -> dict[str, Any]:
        """Its next answer; empty when it has ended. Raises queue.Empty after `patience` seconds."""
        return self._answers.get(timeout=patience)

    def kill(self) -> None:
        """At once, with W&B's own helper processes, which are in the same group."""
        if process := self._process:
            with contextlib.suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:  # Windows
                    process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)

    def close(self) -> None:
        if self._process is None:
            return
        self.kill()
        assert self._process.stdin and self._process.stdout and self._reader
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._reader.join(5)
        self._process.stdout.close()
        self._process = None

    def _listen(self, pipe: Any, answers: queue.Queue[dict[str, Any]]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in pipe:
                answer = json.loads(line)
                self.warn(answer["warning"]) if "warning" in answer else answers.put(answer)
        answers.put({})  # the end


def run_id(folder: Path) -> str:
    """The W&B id of the run in `folder`: made once, and the same for every later attempt."""
    path = folder / "wandb_id"
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(secrets.token_hex(6) + "\n")
    found = path.read_text().strip()
    # Folders are looked for by it, and deleted.
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else "crayon" + secrets.token_hex(6)


_MODES = {
    "online": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}

_ANOTHER_RUN = (
    "WANDB_SERVICE",
    "WANDB_RESUME",
    "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM",
    "WANDB_RUN_FORKED_FROM",
)
"""Variables that would have us go on with something else than our run: W&B leaves the first behind for programs started
from a notebook or script that uses it."""


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _sync(ready: Mapping[str, str]) -> str:
    return f"wandb sync {shlex.quote(ready['directory'])}"
