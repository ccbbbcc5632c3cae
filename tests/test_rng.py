"""Keyed randomness."""

from __future__ import annotations

import pytest
import torch

from crayon.rng import Randomness

N = torch.arange(20_000)


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_a_draw_depends_on_key_and_example_only(draw):
    whole = getattr(Randomness(3, "latent"), draw)(N[:64], 7)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    parts = torch.cat([getattr(Randomness(3, "latent"), draw)(order[i : i + 5], 7) for i in range(0, 64, 5)])
    assert torch.equal(parts, whole[order])
    single = torch.cat([getattr(Randomness(3, "latent"), draw)(N[i : i + 1], 7) for i in range(64)])
    assert torch.equal(single, whole)
    for other in (Randomness(4, "latent"), Randomness(3, "noise"), Randomness(3, "latent", 0)):
        assert not torch.equal(getattr(other, draw)(N[:64], 7), whole)


def test_moments_and_independence_of_columns():
    normal = Randomness(0, "m").normal(N, 8).double()
    uniform = Randomness(0, "m").uniform(N, 8).double()
    assert normal.mean(0).abs().max() < 0.03 and (normal.std(0) - 1).abs().max() < 0.03
    assert (normal**4).mean(0).sub(3).abs().max() < 0.25
    assert (uniform.mean(0) - 0.5).abs().max() < 0.01 and uniform.min() >= 0 and uniform.max() < 1
    for draws in (normal, uniform, torch.cat([normal[1:, :4], normal[:-1, :4]], 1)):
        assert (torch.corrcoef(draws.T) - torch.eye(8)).abs().max() < 0.04


def test_permutation_is_one_and_is_keyed():
    order = Randomness(0, "order", 1).permutation(1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, Randomness(0, "order", 1).permutation(1000))
    assert not torch.equal(order, Randomness(0, "order", 2).permutation(1000))


def test_seed_torch_makes_layers_repeat():
    def draw():
        Randomness(0, "layers", 5).seed_torch()
        return torch.rand(3)

    assert torch.equal(draw(), draw())
