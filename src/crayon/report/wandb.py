"""A run's copy on Weights & Biases, sent by a process of its own: `python -m crayon.report.wandb RUN`.

The process follows the run folder, which is the record: it reads `metrics.jsonl` while that grows and, once the run
has ended, its figures, pictures, confusion matrix and model. Training hands it nothing and waits for nothing of it, so
it may hang or be killed at any moment, and the next one goes on. In the run folder lie

    wandb.json   what the run is called on W&B and its settings; what a trial is compared by; and, of a trial or a sweep
                 that is over, `end`
    wandb_id     its id there, the same for every attempt
    wandb_sent   that all was sent, or written down for `wandb sync`

Nothing is sent twice: W&B counts steps, tells a resumed run how far it had come, and rows before that are left out.
Offline, a new process writes everything anew in place of what an earlier one has written. The API key reaches it by
the environment or the user's netrc, as W&B itself reads it, and is never passed on, logged or stored.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crayon.report.wandb_login import credentials
from crayon.report.words import name_text
from crayon.system.files import fingerprint
from crayon.system.lock import Held, locked
from crayon.system.runfolder import CHECKPOINTS, RESULT, RunFolder

ABOUT, ID, SENT = "wandb.json", "wandb_id", "wandb_sent"
GO_OFFLINE = 3
"""The exit code that asks for the same with `--mode offline`."""
POLL_SECONDS = 1.0
INIT_SECONDS = 12.0
"""How long W&B may take to come up online before the run goes on offline."""
ORPHAN_SECONDS = 60.0
"""How long this process outlives the one that started it."""
_ANOTHER_RUN = ("SERVICE", "RESUME", "RESUME_FROM", "FORK_FROM", "RUN_FORKED_FROM")
"""Variables WANDB_... that would have us go on with something else than our run: W&B leaves the first behind for
programs started from a notebook or script that uses it."""


class NotStarted(Exception):
    """W&B didn't come up. In this process it wouldn't any more, offline either."""


class Sender:
    """Sends runs, of which several may be open at once. mode: online or offline."""

    def __init__(self, mode: str, tell: Callable[[str], None]):
        self.tell, self.mode = tell, mode
        self._open: dict[Path, tuple[Any, tuple[int, int]]] = {}
        """By folder: the W&B run, and which metrics.jsonl it has seen."""

    def look(self, folder: Path) -> None:
        """Send what is new in `folder`. Raises NotStarted, and what W&B does where its own process has died."""
        kept = RunFolder.at(folder)
        about = kept.read_json(ABOUT)
        if about is None or kept.holds(SENT):
            return
        end = about.get("end") or _end(kept)
        written = fingerprint(folder / "metrics.jsonl") if kept.holds("metrics.jsonl") else (0, 0)
        run, seen = self._open.get(folder, (None, (0, 0)))
        if end is None and written == seen:
            return
        run = run or _init(folder, about, self.mode)
        self._open[folder] = run, written
        rows = [row for row in kept.read_rows("metrics.jsonl") if isinstance(row.get("step"), int)]
        next_step = before = run.step
        for row in rows:
            if _wandb_step(row) >= next_step:
                next_step = _wandb_step(row) + 1
                run.log(_numbers(row), step=next_step - 1, commit=True)
        if next_step > before:
            run.summary.update(_so_far(about, rows))
        if end is not None:
            self._conclude(run, kept, about, end, rows[-1] if rows else {"step": 0})

    def close(self) -> None:
        """End the runs that are still open as failed: whatever trained them has ended. Then all is on the disk: what
        `finish` returns before, W&B's own process writes until it ends."""
        for run, _ in self._open.values():
            run.finish(exit_code=1)
        if wandb := sys.modules.get("wandb"):
            wandb.teardown()

    def _conclude(self, run: Any, kept: RunFolder, about: Any, end: Any, last: Any) -> None:
        home = RunFolder.at(kept.path / "best") if kept.holds("best") else kept  # a sweep's model

        def log_media() -> None:
            media = _pictures(kept.path) | _confusion_matrix(kept)
            if media:  # all in one row, which ends with the run
                run.log(media | {"step": last["step"]}, step=_wandb_step(last) + 1)

        def log_model() -> None:
            if result := home.read_json(RESULT):
                run.log_artifact(_artifact(home, result, f"{about['name']}-model"))

        for what, send in (("the pictures", log_media), ("the model", log_model)):
            try:
                send()
            except Exception as error:
                self.tell(f"{what} could not be sent ({_sentence(error)}).")
        run.summary.update(_so_far(about, ()) | end["summary"])
        if tags := end.get("tags"):
            run.tags = (*(run.tags or ()), *tags)
        directory = str(Path(run.dir).parent)
        run.finish(exit_code=1 if end["failed"] else 0)
        kept.write_json(SENT, {"mode": self.mode, "directory": directory})
        del self._open[kept.path]


def _init(folder: Path, about: Mapping[str, Any], mode: Any) -> Any:
    """The W&B run, begun or gone on with. Raises NotStarted."""
    place = Path(os.environ.get("WANDB_DIR") or folder)
    # Offline there is nobody to wait for but this machine, which may be busy, and nothing to fall back on.
    patience = INIT_SECONDS if mode == "online" else 10 * INIT_SECONDS
    try:
        for before in (place / "wandb").glob(f"*run-*-{run_id(folder)}"):
            shutil.rmtree(before, ignore_errors=True)  # all that the server doesn't have is sent anew
        (place / "wandb").mkdir(parents=True, exist_ok=True)
        import wandb

        run = wandb.init(
            **{key: about.get(key) for key in ("project", "name", "job_type", "config")},
            group=os.environ.get("WANDB_RUN_GROUP") or about.get("group"),
            dir=place,
            id=run_id(folder),
            resume="allow",
            reinit="create_new",
            mode=mode,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, init_timeout=patience
            ),
        )
    except Exception as error:
        raise NotStarted(_sentence(error)) from error
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _wandb_step(row: Mapping[str, Any]) -> int:
    """W&B's own count, which must rise with every row: the pictures of a step have their place after its row."""
    return 2 * row["step"]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _so_far(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the summary has otherwise than the newest row: `lr` as it was set, not as it has fallen, and of a trial the
    best value of what it is compared by."""
    metric, direction = about.get("monitor") or ("", "max")
    values = [row[metric] for row in map(_numbers, rows) if metric in row]
    best = {metric: (max if direction == "max" else min)(values)} if values else {}
    return best | {k: v for k, v in about.get("config", {}).items() if k == "lr"}


def _end(kept: RunFolder) -> dict[str, Any] | None:
    """How a run ended that has its result. `step` and `epoch` in the summary are the selected model's."""
    result = kept.read_json(RESULT)
    if result is None:
        return None
    scores = {k: v for k, v in result.items() if isinstance(v, (int, float, str))}
    renamed = {f"selected/{k}" if k in ("step", "epoch") else k: v for k, v in scores.items()}
    return {"summary": renamed, "failed": False}


def _pictures(run: Path) -> dict[str, Any]:
    """The pictures of a run, or of a trial, which draws none, the newest of those over time."""
    import wandb

    paths = {path.stem: path for path in sorted(run.glob("pictures/*.*"))}
    frames = sorted(run.glob("pictures/over_time/epoch-*.png"))
    if frames and not paths:
        paths = {"snapshot": frames[-1]}
    return {
        f"pictures/{name}": wandb.Video(str(path), format="gif")
        if path.suffix == ".gif"
        else wandb.Image(str(path))
        for name, path in paths.items()
    }


def _confusion_matrix(kept: RunFolder) -> dict[str, Any]:
    """W&B's own, interactive one."""
    import numpy as np
    import wandb

    found = kept.read_json("confusion.json")
    if not found:
        return {}
    counts = np.array(found["counts"])
    true, predicted = np.repeat(np.argwhere(counts >= 0), counts.ravel(), axis=0).T.tolist()
    chart = wandb.plot.confusion_matrix(
        y_true=true, preds=predicted, class_names=found["classes"], title="Confusion matrix"
    )
    return {"confusion_matrix": chart}


def _artifact(home: RunFolder, result: Mapping[str, Any], name: str) -> Any:
    import wandb

    # W&B takes at most 100 keys here, so what is per class stays out; the settings are the run's config.
    headline = {k: v for k, v in result.items() if isinstance(v, (int, float, str)) and k.count("/") < 2}
    headline |= {
        k: name_text(v) for k, v in headline.items() if isinstance(v, str)
    }  # a command has names of files
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model", metadata=headline)
    path = home.path / CHECKPOINTS / f"step-{result['step']:09d}.safetensors"
    # Immutable and uncached: read from the run folder when uploaded, not copied to another place first.
    artifact.add_file(str(path), policy="immutable", skip_cache=True)
    return artifact


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "validation error" in lines[0]:  # pydantic's; what is wrong comes after it
        return f"a WANDB_ variable or setting is wrong: {': '.join(lines[1:3]).partition(' [type=')[0]}"
    return lines[0].rstrip(".")


def main() -> int:
    parser = argparse.ArgumentParser("python -m crayon.report.wandb", description="Send a run to W&B.")
    parser.add_argument("run", type=Path, help="the folder of a run or a sweep")
    parser.add_argument("--mode", choices=("auto", "online", "offline"), default="auto")
    arguments = parser.parse_args()
    root = arguments.run.absolute()
    out = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # whatever wandb prints
    # Where W&B keeps files until they are sent: by default in the home, which may be read-only.
    os.environ.setdefault("WANDB_DATA_DIR", str(root / "wandb"))
    for name in _ANOTHER_RUN:
        os.environ.pop(f"WANDB_{name}", None)
    if hasattr(os, "nice"):
        os.nice(10)  # training goes first

    def tell(text: str) -> None:
        key = os.environ.get("WANDB_API_KEY")
        with contextlib.suppress(OSError):
            print(f"W&B: {text.replace(key, '***') if key else text}", file=out, flush=True)

    key, mode = credentials()["key"], arguments.mode
    if mode == "online" and not key:
        tell("no API key is configured (wandb login, or WANDB_API_KEY); going on offline.")
    mode = "online" if key and mode != "offline" else "offline"
    try:
        with locked(root / ".wandb.lock", wait=ORPHAN_SECONDS + 10):  # of a command that was killed
            follow(root, Sender(mode, tell))
    except Held:
        tell(f"another process is sending {root}; this one ends.")
    except NotStarted as error:
        if mode == "online":
            tell(f"{error}; going on offline.")
            return GO_OFFLINE
        tell(f"{error}; it is off for the rest of this run, which is whole on disk.")
    return 0


def follow(root: Path, sender: Sender) -> None:
    """Send the run in `root` and its trials, until it has ended, or this process's input has: nobody trains then."""
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    last = False
    while not last and not (root / SENT).exists():
        last = ended.is_set()  # before looking, so that nothing is written after the last look
        for folder in [*sorted(root.glob("trials/*")), root]:
            sender.look(folder)
        ended.wait(POLL_SECONDS)
    sender.close()


def run_id(folder: Path) -> str:
    """The W&B id of the run in `folder`: made once, and the same for every later attempt."""
    path = folder / ID
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(secrets.token_hex(6) + "\n")
    found = path.read_text().strip()
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else "crayon" + secrets.token_hex(6)


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    os._exit(code)  # past wandb's own exit handlers, which may wait for the network
