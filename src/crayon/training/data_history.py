"""Which images a run has learned from, and whether those that are there now are still the same.

A history is a list of plain JSON values, the newest last: `at`, from which step on, `root`, where the images were,
`classes`, their names in label order, and `splits`, their fingerprint (crayon.data.fingerprint). Checkpoints hold it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from crayon.config.settings import Experiment
from crayon.data.fingerprint import check_classes, differences
from crayon.data.images import Splits
from crayon.errors import BadInput
from crayon.report.events import Emit, Message, ignore
from crayon.training.checkpoint import Checkpoint
from crayon.training.collectives import Group

Known = Mapping[str, Any]


def seen(config: Experiment, splits: Splits, at: int = 0) -> Known:
    """What a history says of `splits`."""
    classes = list(splits.train.classes)
    return {"at": at, "root": config.data.root, "classes": classes, "splits": splits.fingerprint}


def of(found: Checkpoint) -> list[Known]:
    """The history of a run; one that began before there were histories knows its classes."""
    begun = {"at": 0, "root": found.config.get("data.root"), "classes": found.state["classes"], "splits": {}}
    return found.state.get("data") or [begun]


def changed(before: Known, now: Known) -> str:
    """What changed between two entries, as `differences` says it; empty where nothing did, or nobody knows."""
    if not before["splits"]:
        return ""
    return differences(before["splits"], now["splits"], now["classes"], before["classes"])


def check(history: Sequence[Known], now: Known, config: Experiment, what: str) -> None:
    """Raise BadInput where `what` can't go on with the images that are there now: their classes are others, or they
    lie in another place and are others."""
    before = history[-1]
    if config.needs_labels:
        check_classes(before["classes"], now["classes"], what)
    if before["root"] == now["root"]:
        return
    if (what_changed := changed(before, now)) or not before["splits"]:
        more = f", with {what_changed}" if what_changed else ""
        raise BadInput(
            f"{what} was started with other images (data.root was {before['root']}, now {now['root']}{more}); give the "
            "same ones to go on, or choose another --name to start anew."
        )


def follow(history: Sequence[Known], now: Known, unit: str = "step") -> tuple[list[Known], str]:
    """The history with what is there now, and a sentence about what changed, if anything did. unit: of `at`."""
    before = history[-1]
    if text := changed(before, now):
        then = f"at {unit} {before['at']:,}" if before["at"] else "when it began"
        return [*history, now], f"The images changed: {text} than {then}; it goes on with what is there now."
    if not before["splits"]:
        return [*history, now], ""
    return [*history[:-1], {**before, "root": now["root"]}], ""


def notes(history: Sequence[Known], unit: str = "step") -> list[str]:
    """A sentence for every change."""
    pairs = itertools.pairwise(history)
    found = [(now["at"], changed(before, now)) for before, now in pairs]
    return [f"The images changed at {unit} {at:,}: {text} than before." for at, text in found if text]


def check_workers(splits: Splits, group: Group, emit: Emit = ignore) -> None:
    """Raise BadInput, on every worker, where their machines have different numbers of images or other classes; other
    pixels are told. Every worker takes part."""
    known = [splits.fingerprint.get(name, {}) for name in ("train", "test")]
    classes = zlib.crc32("\n".join(splits.train.classes).encode(errors="replace"))
    counts = [*(part.get("images", 0) for part in known), classes]
    digests = [int(part.get("digest", "0"), 16) >> 1 for part in known]
    rows = torch.stack(group.all_gather(torch.tensor([*counts, *digests]))).tolist()
    if any(row[:3] != counts for row in rows):
        found = ", ".join(f"{row[0]:,} and {row[1]:,}" for row in rows)
        raise BadInput(
            "The machines of this run have different images or classes (training and test images, by worker: "
            f"{found}); bring the same ones to all of them."
        )
    if any(row[3:] != digests for row in rows):
        text = (
            "The machines of this run have as many images, but not the same ones, or decode them otherwise."
        )
        emit(Message(text, warning=True))
