"""From what a person calls a run to one of its checkpoints on this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from crayon.data.cache import hold
from crayon.errors import BadInput
from crayon.system.files import cache_root, refuse_links, remove
from crayon.system.lock import locked
from crayon.system.objectstore import short_message
from crayon.system.runfolder import CHECKPOINTS, RESULT, SWEEP, RunFolder
from crayon.training import checkpoint as checkpoints
from crayon.training.checkpoint import Entry
from crayon.use.inputs import absolute

_STEP = re.compile(rf"(.+)/{CHECKPOINTS}/step-(\d+)(\.safetensors)?")


def find(run: str | os.PathLike[str], checkpoint: str | int = "best", storage: str | None = None) -> Entry:
    """A checkpoint, on this machine, as `crayon.load` is asked for it. Raises BadInput."""
    folder, step = folder_of(os.fspath(run), storage)
    if step is not None:
        checkpoint = step
    if folder.store:
        return _fetched(folder, checkpoint)
    if (folder.path / SWEEP).exists() and not (folder.path / CHECKPOINTS).exists():
        folder = RunFolder(folder.inside(), "best")
    if not folder.path.is_dir():
        raise BadInput(f"There is no run {folder.uri}{_beside(folder.path)}.")
    refuse_links(folder.path)
    return _chosen(folder, checkpoint)


def folder_of(run: str, storage: str | None = None) -> tuple[RunFolder, int | None]:
    """What a person calls a run: its folder, and the step of a checkpoint that is named. Raises BadInput."""
    base, mark, query = run.removeprefix("file://").rstrip("/").partition("?")
    if storage is not None:
        base, inner, query = storage.rstrip("/").partition("?")
        base, mark = f"{base}/{run.strip('/')}", inner
    if "://" not in base:
        base, mark = absolute(base + mark + query), ""
    found = _STEP.fullmatch(base.rstrip("/"))
    base, step = (found[1], int(found[2])) if found else (base.rstrip("/"), None)
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


def _chosen(run: RunFolder, checkpoint: str | int, stored: bool = False) -> Entry:
    if str(checkpoint) not in ("best", "last") and not str(checkpoint).isdigit():
        raise BadInput(f"There is no checkpoint {str(checkpoint)!r}; say best, last or a step's number.")
    found = checkpoints.entries(run, stored)
    if not found:
        raise BadInput(f"{run.uri} has no complete checkpoint; train it first, or give another run.")
    if str(checkpoint) == "best":
        return ([e for e in found if e.best] or found)[-1]
    if str(checkpoint) == "last":
        return found[-1]
    entry = next((e for e in found if e.step == int(checkpoint)), None)
    if entry is None:
        steps = ", ".join(str(e.step) for e in found)
        raise BadInput(f"{run.uri} has no complete checkpoint of step {checkpoint}; it has those of {steps}.")
    return entry


def _fetched(run: RunFolder, checkpoint: str | int) -> Entry:
    """A checkpoint of a run in an object store and the run's result, brought into the cache. Of the others no more than
    their headers is read, and what is there already and still the same isn't fetched again."""
    assert run.store
    try:
        names = run.store.list()
        if SWEEP in names and not any(name.startswith(f"{CHECKPOINTS}/") for name in names):
            run = RunFolder(run.inside(), "best")
            assert run.store
            names = run.store.list()
        with _copied(run):
            entry = _chosen(run, checkpoint, stored=True)
            for path in run.path.glob(f"{CHECKPOINTS}/*"):
                if f"{CHECKPOINTS}/{path.name}" not in names:
                    remove(path)
            (run.path / RESULT).unlink(missing_ok=True)
            run.fetch(f"{CHECKPOINTS}/{entry.path.name}", RESULT)
    except OSError as error:
        raise BadInput(f"{run.uri} can't be read ({short_message(error)}).") from None
    return entry


def opened(run: str | os.PathLike[str]) -> RunFolder:
    """The folder of a run or sweep on this machine, to be looked at: all but the checkpoints, if it is in an object
    store. Raises BadInput where there is none."""
    folder, _ = folder_of(os.fspath(run))
    if folder.store:
        try:
            with _copied(folder):
                folder.fetch(*(name for name in folder.stored() if f"{CHECKPOINTS}/" not in name))
        except OSError as error:
            raise BadInput(f"{folder.uri} can't be read ({short_message(error)}).") from None
    return folder


@contextlib.contextmanager
def _copied(run: RunFolder) -> Iterator[None]:
    """The run's copy in the cache, held for this process: not where a run is staged that is trained on this machine."""
    assert run.store
    key = sha256(run.store.key.encode()).hexdigest()[:12]
    run.path = cache_root() / "models" / f"{run.name[:80]}-{key}"
    run.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    hold(run.path)
    with locked(run.path / ".lock", wait=None):
        yield
