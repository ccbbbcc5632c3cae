"""A followed run for tests, and what Weights & Biases wrote of it, read back."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import psutil
from helpers import until

from crayon.report.wandb_follower import Follower
from crayon.system.runfolder import RunFolder

ABOUT: dict[str, Any] = {"project": "crayon-tests", "name": "a run", "group": "mnist", "job_type": "train"}
ABOUT["config"] = {"lr": 1e-3, "data.source": "digits"}


def follower(run: Path, mode: str = "auto", tell: Any = None) -> Follower:
    return Follower(RunFolder.at(run), mode, tell or (lambda text: None), ABOUT)


def row(run: Path, step: int) -> None:
    """What the end of an epoch leaves."""
    values = {"step": step, "epoch": step // 10, "train/loss": 1 / step, "lr": 1e-4, "bad": float("nan")}
    RunFolder.at(run).append_row("metrics.jsonl", values)


def result(run: Path, model: bool = True) -> None:
    """What the end of a run leaves: a model, unless there is one, and its figures."""
    if model and not (run / "checkpoints").exists():
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "step-000000010.safetensors").write_bytes(bytes(100))
    RunFolder.at(run).write_json("result.json", {"test/accuracy": 0.8, "step": 10})


def process_of(run: Path) -> psutil.Process:
    """The process that follows `run`, once it has W&B's own beside it."""

    def following() -> psutil.Process | None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "crayon.report.wandb" in words and str(run) in words and process.children(recursive=True):
                    return process
        return None

    return until(following)


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
