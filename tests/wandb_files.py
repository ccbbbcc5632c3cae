"""A tracker for tests, and what Weights & Biases wrote on its behalf, read back."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import psutil

from crayon.report.wandb import Tracker


class Warnings(list):
    def __call__(self, text: str) -> None:
        self.append(text)


def tracker(run: Path, mode: str = "auto", warn: Any = None) -> Tracker:
    return Tracker(
        mode=mode,
        project="crayon-tests",
        name="a run",
        group="mnist",
        job_type="train",
        config={"lr": 1e-3, "data.source": "digits"},
        folder=run,
        warn=warn if warn is not None else Warnings(),
    )


def records(run: Path) -> list[Any]:
    """The records of the only offline run under `run` (LevelDB log format, as W&B writes it)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    data, place, parts, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            break
        parts = (b"" if kind in (1, 2) else parts) + data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
    return found


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(r, kind) for r in found if r.WhichOneof("record_type") == kind]


def history(found: list[Any]) -> list[dict[str, Any]]:
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in h.item}
        for h in of_kind(found, "history")
    ]


def arguments_of_children() -> str:
    return " ".join(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
