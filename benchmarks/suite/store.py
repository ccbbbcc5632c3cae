"""Results on disk, one JSON file per benchmark. What was measured is kept: a run that is cut off goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from suite.harness import Bound, Figures, Ratio
from suite.settings import Missing, Settings

HERE = Path(__file__).resolve().parents[1]


class Store:
    """`folder/<benchmark>.json`: {benchmark, title, settings, environment, ratios, cases: {case: [repetition]}}.

    A repetition is {"commit", "at", "parts": {part: {arm: {figure: value}}}}. Raises Missing when the file has results
    under other settings, which must not be mixed with these.
    """

    def __init__(
        self, folder: Path, benchmark: str, title: str, settings: Settings, environment: dict[str, Any]
    ):
        self.path = folder / f"{benchmark}.json"
        wanted = settings.described()
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "title": title,
            "settings": wanted,
            "environment": environment,
            "ratios": {},
            "cases": {},
        }
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            if kept["settings"] != wanted or kept["environment"] != environment:
                part = "settings" if kept["settings"] != wanted else "environment"
                odd = [
                    k
                    for k in kept[part] | self.content[part]
                    if kept[part].get(k) != self.content[part].get(k)
                ]
                raise Missing(
                    f"{self.path} was measured under other {part} ({', '.join(odd)}); move it away, or give "
                    "another --results."
                )
            self.content |= {"cases": kept["cases"], "ratios": kept["ratios"]}

    def compares(self, case: str, ratios: tuple[Ratio | Bound, ...]) -> None:
        """Keep what is compared beside the figures, so that the tables can be made from the file alone."""
        self.content["ratios"][case] = [dataclasses.asdict(ratio) for ratio in ratios]

    def repetitions(self, case: str) -> list[dict[str, Any]]:
        return self.content["cases"].setdefault(case, [])

    def parts(self, case: str, repetition: int) -> dict[str, Any]:
        """What is there of a repetition, by part."""
        done = self.repetitions(case)
        return done[repetition]["parts"] if repetition < len(done) else {}

    def put(self, case: str, repetition: int, part: str, arms: dict[str, Figures]) -> None:
        done = self.repetitions(case)
        if repetition == len(done):
            done.append(
                {"commit": commit(), "at": round(time.time()), "load": os.getloadavg()[0], "parts": {}}
            )
        done[repetition]["parts"][part] = arms
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(self.content, indent=1) + "\n")
        fresh.replace(self.path)


def commit() -> str:
    """The commit that is measured, with a + when what is measured differs from it; "" outside a clone."""
    parts = ("src", "jobs", "benchmarks/suite", "benchmarks/peers", "pyproject.toml")

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        words = ("git", "-C", str(HERE.parent), *words)
        return subprocess.run(words, capture_output=True, text=True, check=False)

    try:
        head, changed = git("rev-parse", "--short", "HEAD"), git("diff", "--quiet", "HEAD", "--", *parts)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if changed.returncode == 1 else "")
