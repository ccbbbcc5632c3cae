"""Convolutions on small maps: torch's results, from images laid side by side."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crayon.tasks import convolution
from crayon.tasks.convolution import Conv2d, ConvTranspose2d, weight_gradient
from crayon.tasks.layers import Flatten, Unflatten

# images, channels of the wide and the narrow map, side of the wide one, kernel, stride, padding
SHAPES = [
    (256, 4, 3, 7, 3, 1, 1),
    (32, 3, 4, 3, 3, 1, 1),
    (32, 4, 5, 8, 4, 2, 1),
    (16, 3, 5, 14, 3, 2, 1),
    (32, 2, 3, 13, 5, 2, 2),
    (20, 2, 3, 9, 3, 2, 1),
    (16, 2, 2, 6, 1, 1, 0),
    (16, 2, 3, 7, 2, 2, 0),
    (16, 3, 3, 11, 3, 3, 1),
    (23, 2, 2, 4, 3, 1, 1),  # so many images can't be laid in rows of a tile
    (16, 2, 3, 6, 3, 1, 0),  # nor maps that shrink by a kernel
]


def maps(images, wide, narrow, side, kernel, stride, padding):
    torch.manual_seed(0)
    x = torch.randn(images, wide, side, side).contiguous(memory_format=torch.channels_last)
    out = (side + 2 * padding - kernel) // stride + 1
    g = torch.randn(images, narrow, out, out).contiguous(memory_format=torch.channels_last)
    w = torch.randn(narrow, wide, kernel, kernel).contiguous(memory_format=torch.channels_last)
    return x, g, w


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weights_gradient_is_torchs(shape):
    x, g, w = maps(*shape)
    stride, padding = (shape[5],) * 2, (shape[6],) * 2
    expected = nn.grad.conv2d_weight(x.double(), w.shape, g.double(), stride, padding)
    found = weight_gradient(g, x, w, stride, padding)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_maps_are_laid_side_by_side_only_where_it_is_exact():
    def together(shape):
        x, g, _ = maps(*shape)
        return convolution._side_by_side(g, x, *shape[4:]) is not None

    assert [together(shape) for shape in SHAPES] == [True] * 9 + [False] * 2


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_in_bfloat16_has_torchs_outputs_and_gradients(monkeypatch, transposed, bias):
    monkeypatch.setattr(convolution, "_has_tiles", lambda: True)
    torch.manual_seed(0)
    kind, plain = (ConvTranspose2d, nn.ConvTranspose2d) if transposed else (Conv2d, nn.Conv2d)
    ours = kind(8, 12, 4, 2, 1, bias=bias).to(memory_format=torch.channels_last)
    theirs = plain(8, 12, 4, 2, 1, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(16, 8, 4 if transposed else 8, 4 if transposed else 8)
    outputs, gradients = [], []
    for layer in (ours, theirs):
        given = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(given)
        (y.float() ** 2).sum().backward()
        outputs.append(y)
        gradients.append([given.grad, *(p.grad for p in layer.parameters())])
    assert type(outputs[0].grad_fn).__name__ == "_ConvolutionBackward"  # else this test says nothing
    assert torch.equal(*outputs)
    for found, expected in zip(*gradients, strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_what_it_is_not_for_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(convolution, "_has_tiles", lambda: True)
    small, large = torch.randn(16, 4, 4, 4), torch.randn(16, 4, 9, 9)
    layer, frozen = Conv2d(4, 4, 3, padding=1), Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    grouped = Conv2d(4, 4, 3, padding=1, groups=2)
    longer = ConvTranspose2d(4, 4, 4, 2, 1, output_padding=1)

    def ours(layer, x, dtype=torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            return "_Convolution" in type(layer(x.requires_grad_()).grad_fn).__name__

    assert ours(layer, small)
    assert not ours(layer, large)
    assert not ours(layer, small, torch.float32)
    assert not ours(frozen, small)
    assert not ours(grouped, small)
    assert not ours(longer, small)
    with torch.no_grad():
        assert layer(small).grad_fn is None
    monkeypatch.setattr(convolution, "_has_tiles", lambda: False)
    assert not ours(layer, small)


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


def test_a_copy_of_a_layer_is_one_too():
    layer = Conv2d(2, 2, 3)
    assert type(copy.deepcopy(layer)) is Conv2d
    assert list(layer.state_dict()) == ["weight", "bias"]
