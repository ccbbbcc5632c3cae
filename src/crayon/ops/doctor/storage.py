"""Whether runs can be kept where `--storage` says, seen alike from every machine, and whether there is room."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crayon.config.settings import CheckpointConfig
from crayon.ops.doctor import node
from crayon.ops.doctor.findings import Finding, count, size
from crayon.ops.doctor.machine import node_name
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import JOBS, PRESETS, get

Seen = Mapping[str, Any]


def probe_names() -> tuple[str, str]:
    """(a folder that nobody else uses, the file that the driver writes in it)."""
    tag = secrets.token_hex(6)
    return f"crayon-doctor-{tag}", f"driver-{tag}"


def from_here(storage: str, name: str, here: str) -> Seen:
    """What this machine alone sees of the storage: write a file, read it, remove it."""
    seen = node.visit(storage, name, here, [here])
    node.leave(storage, name, seen["made"])
    return seen


def writable(storage: str, here: Seen) -> Finding:
    """`here`: as `node.visit` returned it."""
    if "failed" in here:
        return Finding(
            "here",
            "error",
            here["failed"].removeprefix("--storage: ").partition("; ")[0].rstrip("."),
            "choose a --storage that you may write to",
        )
    return Finding("here", "ok", f"{_uri(storage)} can be written from here")


def shared(storage: str, nodes: Sequence[Mapping[str, Any]], seen: Mapping[str, Seen]) -> Iterator[Finding]:
    """What the nodes see of the storage. `seen`: by node, as `probe.storage` has it."""
    uri = _uri(storage)
    mend = "a file system that all nodes mount in the same place, or --storage s3://... or gs://..."
    good = 0
    for one in nodes:
        found, name = seen.get(one["id"], {"failed": "it did not answer"}), node_name(one)
        if "failed" in found:
            reason = found["failed"].removeprefix("--storage: ").partition("; ")[0].rstrip(".")
            yield Finding(name, "error", f"{uri} can't be written: {reason}", mend)
        elif not found["seen"]:
            where = (
                "writes to a folder of its own" if found.get("made") else "doesn't see what was written here"
            )
            yield Finding(name, "error", f"{uri} is not shared: the node {where}", mend)
        elif not found["seen_here"]:
            yield Finding(name, "error", f"{uri} is not shared: what the node writes is not seen here", mend)
        else:
            good += 1
    if good:
        yield Finding("shared", "ok", f"{count(good, 'node')} and this machine see each other's files")


def room(
    storage: str, here: Seen, nodes: Mapping[str, Seen], job: str = "all", preset: str = "all"
) -> Finding:
    """Free disk against the checkpoints of the run that needs most."""
    free = min((s["free"] for s in [here, *nodes.values()] if "free" in s), default=None)
    bytes_, which = max(
        (forecast(j, p), f"{j} --preset {p}")
        for j in (JOBS if job == "all" else [job])
        for p in (PRESETS if preset == "all" else [preset])
    )
    keep = CheckpointConfig().keep
    need = (keep + 2) * bytes_
    text = (
        f"the checkpoints of {which} need {size(need)} ({keep} newest, the best, one being written; "
        f"{size(bytes_)} each)"
    )
    place = "the staging folder's disk" if "://" in storage else "the disk"
    if free is None:
        return Finding("disk", "note", f"{text}; how much is free is not known")
    text = f"{text}; {place} has {size(free)} free" + (" where it is least" if nodes else "")
    if free < need:
        return Finding("disk", "error", text, "free some, or another --storage")
    if free < 2 * need:
        return Finding("disk", "warning", text, "a second run would not fit: free some, or another --storage")
    return Finding("disk", "ok", text)


def forecast(job: str, preset: str) -> int:
    """Bytes of one checkpoint of a job, from its networks, which are built and not trained."""
    return checkpoint_bytes(get(job, preset))


def checkpoint_bytes(config: Any, classes: int = 10) -> int:
    """Weights, their average where there is one, and Adam's two moments of each."""
    import torch

    from crayon import tasks
    from crayon.data.types import DataInfo

    data = config.data
    info = DataInfo(
        data.image_size,
        data.channels,
        tuple(map(str, range(classes))),
        50_000,
        data.source,
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a metric's fixed network is loaded, in vain, into weights that aren't there
        networks = tasks.build(config, info).networks
    weights = sum(p.numel() * p.element_size() for p in networks.parameters())
    state = weights + sum(b.numel() * b.element_size() for b in networks.buffers())
    return state * (2 if config.optim.ema_images > 0 else 1) + 2 * weights


def _uri(storage: str) -> str:
    """To show: the place of the runs, without credentials."""
    return RunFolder(storage, "x").uri.removesuffix("/x")
