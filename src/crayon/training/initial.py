"""Initial weights from another run, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from crayon.errors import BadInput, one_line
from crayon.system.runfolder import CHECKPOINTS, RunFolder
from crayon.training import checkpoint


def weights_of(place: str) -> tuple[dict[str, Tensor], list[str]]:
    """The best averaged weights of the run in a folder, or at an s3:// or gs:// address, and its classes; or the
    tensors of a .safetensors file, which has none. Raises BadInput."""
    try:
        if (run := _run_at(place)) is None:
            return load_file(place), []
        found = checkpoint.entries(run, stored=run.store is not None)
        if not found:
            raise BadInput(f"--init-from: {place} has no complete checkpoint.")
        entry = ([e for e in found if e.best] or found)[-1]
        run.fetch(f"{CHECKPOINTS}/{entry.path.name}")
        group = "ema" if "ema" in entry.digests else "weights"
        loaded = checkpoint.load(entry, groups=[group])
        return loaded.tensors[group], loaded.state["classes"]
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"--init-from: {place} can't be read as a run or a .safetensors file ({one_line(error)})."
        ) from None


def _run_at(place: str) -> RunFolder | None:
    if "://" in place:
        base, mark, query = place.partition("?")
        parent, _, name = base.rstrip("/").rpartition("/")
        return RunFolder(parent + mark + query, name)
    return RunFolder.at(place) if Path(place).is_dir() else None


@torch.no_grad()
def initialise(networks: nn.ModuleDict, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy whatever fits by name and shape into `networks`; (names taken, what was not taken and why).

    A file of one network may have its names without the network's own at the beginning.
    """
    own = dict(networks.state_dict())
    if not set(own) & set(tensors) and len(networks) == 1:
        (name,) = networks
        tensors = {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    taken, left = [], []
    for name, tensor in own.items():
        there = tensors.get(name)
        if there is None:
            left.append(f"{name} (not there)")
        elif there.shape != tensor.shape:
            left.append(f"{name} ({_shape(there)} there, {_shape(tensor)} here)")
        else:
            tensor.copy_(there)
            taken.append(name)
    return taken, left


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
