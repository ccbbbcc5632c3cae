"""Which device computes, and where float64 is computed."""

from __future__ import annotations

import torch

from crayon.errors import BadInput

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no double precision: Apple's GPUs."""


def chosen(device: str) -> torch.device:
    """The device for `auto` (a CUDA GPU if there is one, else the CPU), `cpu`, `cuda` or `mps`. Raises BadInput where
    this machine hasn't got it."""
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise BadInput(f"There is no device {device!r}; choose auto, cpu, cuda or mps.")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch sees no GPU on this machine; use --device cpu or auto.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise BadInput("--device mps: torch sees no Apple GPU on this machine; use --device cpu or auto.")
    if device == "mps":
        return torch.device("mps")
    return torch.device("cuda", 0) if device != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def exact(device: torch.device) -> torch.device:
    """Where sums in float64 are kept, and models measured: `device`, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device
