"""What a recorded step draws, and what is recorded of it. The recording itself needs a GPU: see
training/test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from crayon.data.types import Batch
from crayon.fast.cuda_graph import MAX_STREAMS, WARM_UP_STEPS, CudaGraphStep, GraphRandomness
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


@pytest.mark.parametrize(("can", "launched"), [("whole", "W"), ("parts", "PaP"), ("nothing", "aaa")])
def test_what_cant_be_recorded_whole_is_recorded_in_parts_and_else_done_as_before(can, launched):
    """P: a part of a worker's own, a: what isn't recorded."""
    calls, told, attempts = [], [], []

    def parts(batch, rng, terms):
        def part():
            calls.append("a")
            terms["sum"] = batch.images.sum()

        return [part, part, part]

    def record(work):
        attempts.append(work)
        if can == "nothing" or (can == "parts" and len(attempts) == 1):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def launch():
            before = len(calls)
            work()
            calls[before:] = ["W" if can == "whole" else "P"]

        return launch

    step = CudaGraphStep(parts, told.append, record=record)
    for number in range(WARM_UP_STEPS + 2):
        calls.clear()
        batch = Batch(torch.full((2,), number), N[:2], N[:2])
        assert step(batch, Randomness(0, number)) == {"sum": 2 * number}
        assert "".join(calls) == ("aaa" if number < WARM_UP_STEPS else launched)
    one_by_one = "can't be recorded as a CUDA graph (operation not permitted when stream is capturing), so"
    assert one_by_one in told[0] if can == "nothing" else told == []
    calls.clear()
    step.forget()  # as where a setting has changed
    assert step(batch, Randomness(0, number)) == {"sum": 2 * number} and "".join(calls) == "aaa"
