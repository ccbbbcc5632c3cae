"""How a measured process tells how far it is: JSON lines {"at": Unix time, "images": so far, ...} in a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

EVERY = 0.2
"""Seconds between two lines."""


class Teller:
    """Call it after every step with the images so far. The first call always writes a line."""

    def __init__(self, path: str):
        self.path = path
        self.last = 0.0

    def __call__(self, images: int) -> None:
        now = time.time()
        if now - self.last >= EVERY:
            self.last = now
            self.say(at=now, images=images)

    def say(self, **what: Any) -> None:
        """Any other line."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"at": time.time()} | what) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
