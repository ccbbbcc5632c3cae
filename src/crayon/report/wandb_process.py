"""The process that `tracking.Tracker` starts and feeds: the only place where wandb is imported.

It reads one JSON message a line from its input and answers on its output: `{"ready": {...}}` or `{"failed": reason}`
once, `{"warning": text}` at any time, `{"finished": mode}` at the end; then the next run may follow. When its input
ends without a `finish`, the training process is gone, and the run is closed as failed.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

_DATA = os.environ.get("WANDB_DATA_DIR")
INIT_SECONDS = 12.0
ORPHAN_SECONDS = 30.0
"""How long this process outlives the one that started it."""


def main() -> None:
    """Serve runs until the input ends; `login` as the only argument answers where a key is, and nothing else."""
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # whatever wandb prints

    def say(**message: Any) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    if sys.argv[1:] == ["login"]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            os.environ["WANDB_CACHE_DIR"] = folder  # its log would be a file that nobody asked for
            say(**login())
        return
    os.nice(10)  # training goes first
    lines = iter(sys.stdin)
    while hello := next(lines, ""):
        serve(json.loads(hello), lines, say)


def serve(hello: dict[str, Any], lines: Iterator[str], say: Callable[..., None]) -> None:
    """One run, from its hello to its `finish`."""
    try:
        run, mode = start(hello)
        say(ready={"mode": mode, "directory": str(Path(run.settings.sync_dir))})
    except Exception as error:
        say(failed=_sentence(error))
        return
    last = _last_step(run) if mode == "online" else -1
    for line in lines:
        message = json.loads(line)
        if message["do"] == "finish":
            run.summary.update(message["summary"])
            try:
                run.finish(exit_code=1 if message["failed"] else 0)
                say(finished=mode)
            except Exception as error:
                say(failed=_sentence(error))
            return
        try:
            handle(run, message, last)
        except Exception as error:
            say(warning=f"{message['do']} could not be sent ({_sentence(error)})")
    if hasattr(os, "killpg"):
        limit = threading.Timer(ORPHAN_SECONDS, lambda: os.killpg(0, signal.SIGKILL))
    else:  # Windows
        limit = threading.Timer(ORPHAN_SECONDS, lambda: os._exit(1))
    limit.daemon = True
    limit.start()
    run.finish(exit_code=1)


def start(hello: dict[str, Any]) -> tuple[Any, str]:
    """The W&B run, and whether it is online or offline. Raises when online is asked for and can't be had."""
    folder, mode = Path(hello["folder"]), hello["mode"]
    if (
        _DATA is None
    ):  # where W&B keeps files until they are sent: by default in the home, which may be read-only
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    import wandb

    has_key = mode != "offline" and _key_place(wandb) is not None
    if mode == "auto":
        mode = "online" if has_key else "offline"
    if mode == "online" and not has_key:
        raise RuntimeError("no API key is configured (wandb login, or WANDB_API_KEY)")
    if mode == "offline":
        # The attempt that starts now is sent their rows too, and one folder is simpler to sync than several.
        for earlier in (folder / "wandb").glob(f"offline-run-*-{hello['id']}"):
            shutil.rmtree(earlier, ignore_errors=True)
    run = wandb.init(
        project=hello["project"],
        name=hello["name"],
        group=hello["group"],
        job_type=hello["job_type"],
        config=hello["config"],
        dir=folder,
        id=hello["id"],
        resume="allow",
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            disable_git=True,
            save_code=False,
            x_stats_pid=hello["parent"],
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run, mode


def handle(run: Any, message: dict[str, Any], last: float) -> None:
    """Carry out one message. Rows up to step `last` are on the server already."""
    import wandb

    what = message["do"]
    if what == "log" and message["row"]["step"] > last:
        run.log(message["row"])
    elif what == "pictures":
        media = {
            f"pictures/{name}": wandb.Video(file, format="gif")
            if file.endswith(".gif")
            else wandb.Image(file)
            for name, file in message["files"].items()
        }
        run.log(media | {"step": message["step"]})
    elif what == "confusion_matrix":
        fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
        table = wandb.Table(columns=list(fields), data=message["rows"])
        chart = wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "Confusion matrix"})
        run.log({"confusion_matrix": chart, "step": message["step"]})
    elif what == "artifact":
        name = re.sub(r"[^\w.-]", "-", message["name"])
        artifact = wandb.Artifact(name, type="model", metadata=message["metadata"])
        # Immutable and uncached: read from the run folder when uploaded, not copied to another place first.
        artifact.add_file(message["path"], policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


def login() -> dict[str, str | None]:
    """Where W&B would find its key ("key": None = nowhere) and its server ("url"); never the key itself."""
    import wandb

    return {"key": _key_place(wandb), "url": wandb.setup().settings.base_url}


def _key_place(wandb: Any) -> str | None:
    settings = wandb.setup().settings
    if settings.api_key:
        return "WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else "W&B's settings file"
    if settings.identity_token_file:
        return "an identity token file"
    host = urlparse(settings.base_url).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if path and (netrc.netrc(os.path.expanduser(path)).hosts.get(host) or ("", "", ""))[2]:
                return path
    return None


def _last_step(run: Any) -> float:
    value = run.summary.get("step")
    return value if isinstance(value, (int, float)) else -1


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "validation error" in lines[0]:  # pydantic's; what is wrong comes after it
        lines[0] = f"a WANDB_ variable or setting is wrong: {': '.join(lines[1:3]).partition(' [type=')[0]}"
    return (lines[0] if lines else type(error).__name__).rstrip(".")


if __name__ == "__main__":
    main()
    os._exit(0)  # past wandb's own exit handlers, which may wait for the network
