"""A training step recorded as a CUDA graph: the few hundred small kernels of a step take longer to launch one by one
than to run (benchmarks/LOG.md), so after a few steps one is recorded, and from then on launched as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
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

Part = Callable[[], None]
Parts = Callable[["Batch", Randomness, dict[str, Tensor]], Sequence[Part]]
"""A step of this batch and this randomness as functions to be called in order: at even places what this worker does by
itself, at odd ones what the workers do together. They leave scalars by name in the dict."""
Run = Callable[["Batch", Randomness], dict[str, Tensor]]
"""Does a step, and returns its scalars by name."""


def run(parts: Parts, batch: Batch, rng: Randomness) -> dict[str, Tensor]:
    """Do a step, and return its scalars by name."""
    terms: dict[str, Tensor] = {}
    for part in parts(batch, rng, terms):
        part()
    return terms


def record(work: Part) -> Part:
    """What launches at once, as a CUDA graph, all kernels that `work` launches. Now none of them runs."""
    graph = torch.cuda.CUDAGraph()
    # Meanwhile other threads may pin memory for batches, or look at what NCCL has done, which "global" forbids.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class CudaGraphStep:
    """Called as `run` is, it does the same to the last bit. What changes from step to step is copied to where the graph
    reads it: the batch, and the keys of random draws. What else the parts read must lie in device memory.

    - `parts`: of a step that trains on one batch.
    - `say`: told in one sentence if a step can't be recorded; then every step is run as before.
    - `whole`: whether what workers do together can be recorded; if it can't, each part of a worker's own is.
    - `record`: makes one function of another that does the same, whenever it is called.
    """

    def __init__(
        self,
        parts: Parts,
        say: Callable[[str], None] = lambda text: None,
        *,
        whole: bool = True,
        record: Callable[[Part], Part] = record,
    ):
        self.parts, self.say, self.whole, self.record = parts, say, whole, record
        self.recorded: list[Part] = []
        """The step, once it is recorded."""
        self._steps = 0

    def __call__(self, batch: Batch, rng: Randomness) -> dict[str, Tensor]:
        self._steps += 1
        if self._steps == WARM_UP_STEPS + 1:
            self._record(batch, rng)
        if not self.recorded:
            return run(self.parts, batch, rng)
        for part, new in zip(self._batch, batch, strict=True):
            part.copy_(new)
        self._randomness.set_key(rng)
        for launch in self.recorded:
            launch()
        return dict(zip(self._terms, self._values.clone().unbind(), strict=True))

    def forget(self) -> None:
        """Record a step anew, after some steps: what isn't in device memory has changed."""
        self.recorded, self._steps = [], 0

    def _record(self, batch: Batch, rng: Randomness) -> None:
        self._batch = type(batch)(*(part.clone() for part in batch))
        self._randomness = GraphRandomness(rng, batch.images.device)
        self._terms: dict[str, Tensor] = {}
        *parts, last = self.parts(self._batch, self._randomness, self._terms)

        def end() -> None:
            last()
            self._values = torch.stack([value.to(torch.float64) for value in self._terms.values()])

        def all_of_it() -> None:
            for piece in (*parts, end):
                piece()

        error = ""
        for pieces in ([all_of_it],) * self.whole + ([*parts, end],):
            try:
                self.recorded = [self.record(p) if i % 2 == 0 else p for i, p in enumerate(pieces)]
                return
            except RuntimeError as failed:
                error = error or first_line(failed)
        self.say(f"A step can't be recorded as a CUDA graph ({error}), so kernels are launched one by one.")


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
