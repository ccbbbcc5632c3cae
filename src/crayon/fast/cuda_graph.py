"""A training step recorded as a CUDA graph: the few hundred small kernels of a step take longer to launch one by one
than to run (benchmarks/LOG.md), so after a few steps one is recorded, and from then on launched as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crayon.errors import first_line
from crayon.rng import Randomness

if TYPE_CHECKING:
    from crayon.data.types import Batch

WARM_UP_STEPS = 4
"""Steps before one is recorded: by then optimizers have their state, and libraries and compilers have done theirs."""
MAX_STREAMS = 64

StepFunction = Callable[["Batch", Randomness], dict[str, Tensor]]


class CudaGraphStep:
    """Called as `run` is, it does the same to the last bit. What changes from step to step is copied to where the graph
    reads it: the batch, and the keys of random draws. What else `run` reads must lie in device memory.

    - `run`: trains on one batch and returns scalars by name.
    - `say`: told in one sentence if a step can't be recorded; then every step is run as before.
    """

    def __init__(self, run: StepFunction, say: Callable[[str], None] = lambda text: None):
        self.run, self.say = run, say
        self.graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0

    def __call__(self, batch: Batch, rng: Randomness) -> dict[str, Tensor]:
        self._steps += 1
        if self._steps == WARM_UP_STEPS + 1:
            self._record(batch, rng)
        if self.graph is None:
            return self.run(batch, rng)
        for part, new in zip(self._batch, batch, strict=True):
            part.copy_(new)
        self._randomness.set_key(rng)
        self.graph.replay()
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))

    def _record(self, batch: Batch, rng: Randomness) -> None:
        self._batch = type(batch)(*(part.clone() for part in batch))
        self._randomness = GraphRandomness(rng, batch.images.device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may pin memory for the next batches meanwhile, which "global" would forbid.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                terms = self.run(self._batch, self._randomness)
                self._names = list(terms)
                self._values = torch.stack([value.to(torch.float64) for value in terms.values()])
        except RuntimeError as error:
            self.say(
                f"A step can't be recorded as a CUDA graph ({first_line(error)}), so kernels are launched one by one."
            )
        else:
            self.graph = graph


class GraphRandomness(Randomness):
    """Draws as the stream of the last `set_key` does, from states in device memory: so the operations that a graph has
    recorded draw from the streams of other steps. It only draws, on the device.

    What is folded from it shares its states; RuntimeError from the 65th stream on.
    """

    def __init__(self, rng: Randomness, device: torch.device):
        self.key = rng.key
        self._fold: tuple[int | str, ...] = ()
        self._places: dict[tuple[int | str, ...], int] = {}
        self._states = torch.zeros(MAX_STREAMS, dtype=torch.int64, device=device)

    @property
    def state(self) -> Tensor:
        """int64 (): where this stream's state is read."""
        place = self._places.setdefault(self._fold, len(self._places))
        if place >= MAX_STREAMS:
            raise RuntimeError(f"it draws from more than {MAX_STREAMS} streams")
        return self._states[place]

    def fold(self, *key: int | str) -> GraphRandomness:
        child = copy.copy(self)
        child.key, child._fold = (*self.key, *key), (*self._fold, *key)
        return child

    def set_key(self, rng: Randomness) -> None:
        """Draw as `rng` does, from now on: this stream, and as what `rng.fold` gives those folded from it."""
        states = [rng.fold(*key).state for key in self._places]
        self._states[: len(states)].copy_(torch.tensor(states, dtype=torch.int64))
