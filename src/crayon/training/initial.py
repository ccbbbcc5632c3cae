"""Initial weights from another run, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from crayon.errors import BadInput, one_line
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint


def weights_of(place: str) -> dict[str, Tensor]:
    """The best averaged weights of the run in a folder, or the tensors of a .safetensors file. Raises BadInput."""
    path = Path(place)
    if path.is_dir():
        run = RunFolder.at(path)
        entry = checkpoint.best(run) or checkpoint.latest(run)
        if entry is None:
            raise BadInput(f"--init-from: {place} has no complete checkpoint.")
        group = "ema" if "ema" in entry.digests else "weights"
        return checkpoint.load(entry, groups=[group]).tensors[group]
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"--init-from: {place} can't be read as a run or a .safetensors file ({one_line(error)})."
        ) from None


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
