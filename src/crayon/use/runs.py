"""From what a person calls a run to one of its checkpoints on this machine."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path

from crayon.data.cache import hold
from crayon.errors import BadInput
from crayon.system.files import cache_root, remove
from crayon.system.lock import locked
from crayon.system.objectstore import ObjectStore, reason
from crayon.system.runfolder import CHECKPOINTS, MANIFEST, RESULT, SWEEP, RunFolder
from crayon.training import checkpoint as checkpoints
from crayon.training.checkpoint import Entry

_STEP = re.compile(rf"(.+)/{CHECKPOINTS}/(step-(\d+))")
_TRAINING_ONLY = ("optimizer.safetensors", "loop.safetensors")
"""Files of a checkpoint that only a trainer reads."""


def find(run: str | os.PathLike[str], checkpoint: str | int = "best", storage: str | None = None) -> Entry:
    """A checkpoint, on this machine.

    Args:
        run: a run's folder or s3:// or gs:// address, a sweep's (its best trial is meant), or that of one
            `checkpoints/step-...`.
        checkpoint: "best" (the newest, where nothing was selected), "last" or a step's number.
        storage: folder or address under which `run` lies.

    Raises:
        BadInput: there is no such run or checkpoint, or it is damaged.
    """
    folder, step = _folder(os.fspath(run), storage)
    if step is not None:
        checkpoint = step
    if folder.store:
        folder = _fetched(folder)
    if (folder.path / SWEEP).exists() and not (folder.path / CHECKPOINTS).exists():
        folder = RunFolder(folder.path, "best")
    if not folder.path.is_dir():
        raise BadInput(f"There is no run {folder.uri}{_beside(folder.path)}.")
    return _chosen(folder, checkpoint)


def _folder(run: str, storage: str | None) -> tuple[RunFolder, int | None]:
    base, mark, query = run.removeprefix("file://").rstrip("/").partition("?")
    if storage is not None:
        base, inner, query = storage.rstrip("/").partition("?")
        base, mark = f"{base}/{run.strip('/')}", inner
    if "://" not in base:
        base, mark = os.path.abspath(os.path.expanduser(base + mark + query)), ""
    found = _STEP.fullmatch(base.rstrip("/"))
    base, step = (found[1], int(found[3])) if found else (base.rstrip("/"), None)
    parent, _, name = base.rpartition("/")
    try:
        return RunFolder((parent or "/") + mark + (query if mark else ""), name), step
    except BadInput:
        raise BadInput(
            f"{run!r} can't be a run; give the folder of one, such as runs/first, or its s3:// or gs:// address."
        ) from None


def _beside(path: Path) -> str:
    """The runs that do lie there, as part of a sentence."""
    try:
        names = sorted(p.name for p in path.parent.iterdir() if (p / CHECKPOINTS).is_dir())
    except OSError:
        return ""
    return f"; {path.parent} has {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else ""


def _chosen(run: RunFolder, checkpoint: str | int) -> Entry:
    entry = None
    if str(checkpoint) == "best":
        entry = checkpoints.best(run) or checkpoints.latest(run)
    elif str(checkpoint) == "last":
        entry = checkpoints.latest(run)
    elif str(checkpoint).isdigit():
        found = checkpoints.entries(run)
        entry = next((e for e in found if e.step == int(checkpoint)), None)
        if entry is None and found:
            steps = ", ".join(str(e.step) for e in found)
            raise BadInput(
                f"{run.uri} has no complete checkpoint of step {checkpoint}; it has those of {steps}."
            )
    else:
        raise BadInput(f"There is no checkpoint {str(checkpoint)!r}; say best, last or a step's number.")
    if entry is None:
        raise BadInput(f"{run.uri} has no complete checkpoint; train it first, or give another run.")
    return entry


def _fetched(run: RunFolder) -> RunFolder:
    """A copy of the run's checkpoints, without what only training needs, and of its result, in the cache. Checkpoints
    that are there already and still the same aren't fetched again."""
    assert run.store
    key = sha256(run.store.key.encode()).hexdigest()[:12]
    here = RunFolder(cache_root() / "models", f"{run.name[:80]}-{key}")
    here.uri = run.uri
    try:
        here.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        hold(here.path)
        with locked(here.path / ".lock", wait=True):
            names = run.store.list()
            inner = ""
            if SWEEP in names and not any(name.startswith(f"{CHECKPOINTS}/") for name in names):
                inner, here.uri = "best/", f"{run.uri}/best"
            complete = {}
            for name in names:
                if match := re.fullmatch(rf"{inner}{CHECKPOINTS}/(step-\d+)/{MANIFEST}", name):
                    complete[match[1]] = name.rpartition("/")[0]
            for path in here.path.glob(f"{CHECKPOINTS}/*"):
                if path.name not in complete:
                    remove(path)
            for step, folder in complete.items():
                files = [name for name in names if name.startswith(f"{folder}/")]
                _fetch(run.store, files, here.path / CHECKPOINTS / step)
            if f"{inner}{RESULT}" in names:
                here.write_bytes(RESULT, run.store.read(f"{inner}{RESULT}"))
            else:
                (here.path / RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{run.uri} can't be read ({reason(error)}).") from None
    return here


def _fetch(store: ObjectStore, names: list[str], folder: Path) -> None:
    """One checkpoint, its manifest last."""
    manifest = next(name for name in names if name.endswith(f"/{MANIFEST}"))
    if (folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() == store.read(manifest):
        return
    remove(folder) if folder.exists() else None
    folder.mkdir(parents=True)
    for name in sorted(names, key=lambda name: (name == manifest, name)):
        file = name.rpartition("/")[2]
        if re.fullmatch(r"[a-z_]+\.(json|safetensors)", file) and file not in _TRAINING_ONLY:
            store.download(name, folder / file)
