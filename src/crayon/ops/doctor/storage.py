"""Whether runs can be kept where `--storage` says, seen alike from every machine, and whether there is room."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crayon.config.settings import CheckpointConfig, Experiment
from crayon.data.contents import size_text
from crayon.ops.doctor import node
from crayon.ops.doctor.findings import Finding, count, error, note, ok, reason, warning
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import find, names

Seen = Mapping[str, Any]
"""As `node.visit` returns it."""


def probe_names() -> tuple[str, str]:
    """(a folder that nobody else uses, the file that the driver writes in it)."""
    tag = secrets.token_hex(6)
    return f"crayon-doctor-{tag}", f"driver-{tag}"


def from_here(storage: str, name: str, here: str) -> dict[str, Any]:
    """What this machine alone sees of the storage: write a file, read it, remove it."""
    seen = node.visit(storage, name, here, [here])
    node.leave(storage, name, seen["made"])
    return seen


def writable(storage: str, here: Seen) -> Finding:
    """What this machine sees of the storage."""
    if "failed" in here:
        return error("here", reason(here["failed"]), "choose a --storage that you may write to")
    return ok("here", f"{_uri(storage)} can be written from here")


def shared(storage: str, nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What the nodes see of the storage."""
    uri = _uri(storage)
    mend = "a file system that all nodes mount in the same place, or --storage s3://... or gs://..."
    good = 0
    for one in nodes:
        seen = one["storage"]
        if "failed" in seen:
            yield error(one["name"], f"{uri} can't be written: {reason(seen['failed'])}", mend)
        elif not seen["seen"] or not seen["seen_here"]:
            blind, other = ("this machine", "the node") if seen["seen"] else ("the node", "this machine")
            yield error(one["name"], f"{uri} is not shared: {blind} doesn't see what {other} writes", mend)
        else:
            good += 1
    if good:
        yield ok("shared", f"{count(good, 'node')} and this machine see each other's files")


def room(
    storage: str, here: Seen, nodes: Sequence[Mapping[str, Any]] = (), job: str = "all", preset: str = "all"
) -> Finding:
    """Free disk against the checkpoints of the run that needs most."""
    free = min((s["free"] for s in [here, *(n["storage"] for n in nodes)] if "free" in s), default=None)
    size, which = max(
        (checkpoint_bytes(known.experiment(p)), f"{known.name} --preset {p}")
        for known in map(find, names() if job == "all" else [job])
        for p in (known.presets if preset == "all" else [preset])
    )
    keep = CheckpointConfig().keep
    need = (keep + 2) * size
    text = (
        f"the checkpoints of {which} need {size_text(need)} ({keep} newest, the best, one being written; "
        f"{size_text(size)} each)"
    )
    if free is None:
        return note("disk", f"{text}; how much is free is not known")
    place = "the staging folder's disk" if "://" in storage else "the disk"
    text = f"{text}; {place} has {size_text(free)} free" + (" where it is least" if nodes else "")
    if free < need:
        return error("disk", text, "free some, or another --storage")
    if free < 2 * need:
        return warning("disk", text, "a second run would not fit: free some, or another --storage")
    return ok("disk", text)


def checkpoint_bytes(config: Experiment, classes: int = 10) -> int:
    """Of one checkpoint: weights, their average where there is one, and Adam's two moments of each.

    The networks are built, without memory for their weights, and not trained.
    """
    import torch

    from crayon import tasks
    from crayon.config.pairs import size_of
    from crayon.data.types import DataInfo

    data = config.data
    names = tuple(map(str, range(classes)))
    channels, *sides = data.shape
    info = DataInfo(size_of(*sides), channels, names, 50_000, data.source)
    with torch.device("meta"), warnings.catch_warnings():
        # A metric's fixed network is loaded, in vain, into weights that aren't there.
        warnings.simplefilter("ignore")
        networks = tasks.build(config, info).networks
    weights = sum(p.numel() * p.element_size() for p in networks.parameters())
    state = weights + sum(b.numel() * b.element_size() for b in networks.buffers())
    return state * (2 if config.optim.ema_images > 0 else 1) + 2 * weights


def _uri(storage: str) -> str:
    """To show: the place of the runs, without credentials."""
    return RunFolder(storage, "x").uri.removesuffix("/x")
