"""What a recorded step draws. The recording itself needs a GPU: see training/test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from crayon.fast.cuda_graph import MAX_STREAMS, GraphRandomness
from crayon.rng import Randomness

N = torch.arange(8)


def test_it_draws_what_the_stream_draws_whose_key_was_set_last():
    def draws(rng):
        return [
            rng.uniform(N, 3),
            rng.fold("a").normal(N, 5),
            rng.fold("a").fold("b", 2).uniform(N, 1),
        ]

    first, second = Randomness(1, "step", 1), Randomness(1, "step", 2)
    recorded = GraphRandomness(first, torch.device("cpu"))
    draws(recorded)
    for rng in (first, second, first):
        recorded.set_key(rng)
        assert all(map(torch.equal, draws(recorded), draws(rng)))
    with pytest.raises(RuntimeError, match=f"{MAX_STREAMS} streams"):
        [recorded.fold(i).uniform(N[:1], 1) for i in range(MAX_STREAMS)]
