"""Crayon: image models trained and tuned on Ray."""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # on first use, so that `import crayon` loads no torch
        from crayon.use.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
