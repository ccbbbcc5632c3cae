"""Flattening and its inverse in NHWC order."""

from __future__ import annotations

import torch
from torch import nn

from crayon.tasks.layers import Flatten, Unflatten


def test_flattening_keeps_the_order_of_the_map_in_memory():
    net = nn.Sequential(Unflatten(1, (3, 4, 5)), Flatten())
    plain = nn.Sequential(nn.Unflatten(1, (3, 4, 5)), nn.Flatten())
    x = torch.randn(2, 60)
    assert torch.equal(net(x), plain(x))
    image = net[0](x).requires_grad_()
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert not image.is_contiguous()
    seen = []
    middle = image * 1
    middle.register_hook(seen.append)
    weights = torch.randn(2, 60)
    (net[1](middle) * weights).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image.grad, weights.view(2, 3, 4, 5))


def test_flattening_has_second_derivatives():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: Flatten()(x) ** 3, x)
