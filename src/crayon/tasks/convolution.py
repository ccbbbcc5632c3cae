"""Convolutions that get their weights' gradient from images laid side by side, where maps are small.

oneDNN computes that gradient row by row of the output, and AMX's tiles hold 32 pixels in bfloat16: of a map that is 4
wide, seven eighths of the work go into padding. Images in a row, with columns of zeros between them, fill the tiles,
which takes a quarter to a half of the time (benchmarks/LOG.md). Everything else, other processors and float32
included, is left to PyTorch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WIDEST = 8
"""Pixels of the narrower map's rows up to which it pays."""
TILE = 32
"""Pixels of a row that are multiplied at once."""


class Conv2d(nn.Conv2d):
    """As torch's, with the same parameters and, but for rounding, the same gradients. `padding` in pixels."""

    def forward(self, x: Tensor) -> Tensor:
        width = (x.shape[-1] + 2 * int(self.padding[1]) - self.kernel_size[1]) // self.stride[1] + 1
        return _apply(self, x) if _pays(self, x, width) else super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """As torch's, with the same parameters and, but for rounding, the same gradients."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return _apply(self, x) if _pays(self, x, x.shape[-1]) else super().forward(x)


@functools.cache
def _has_tiles() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in tiles."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False))


def _pays(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, width: int) -> bool:
    return (
        width <= WIDEST
        and (layer.groups, layer.dilation, layer.output_padding) == (1, (1, 1), (0, 0))
        and layer.padding_mode == "zeros"
        and x.device.type == "cpu"
        and layer.weight.requires_grad
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and not torch.compiler.is_compiling()
        and _has_tiles()
    )


def _apply(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    weight, bias = layer.weight.bfloat16(), None if layer.bias is None else layer.bias.bfloat16()
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return _Convolution.apply(x.bfloat16(), weight, bias, layer.stride, layer.padding, transposed)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, (1, 1), transposed, (0, 0), 1)
        return torch.convolution(x, weight, bias, *ctx.how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, _, transposed, *_ = ctx.how
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            only_x = (True, False, False)
            to_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *ctx.how, only_x)[0]
        if ctx.needs_input_grad[1]:
            narrow, wide = (x, gradient) if transposed else (gradient, x)
            to_weight = weight_gradient(narrow, wide, weight, stride, padding)
        if ctx.needs_input_grad[2]:
            to_bias = gradient.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None, None, None


def weight_gradient(
    narrow: Tensor, wide: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Sum over images and pixels of each channel of one map times the other map's patch around it.

    Args:
        narrow: (B, N, h, w): what a convolution puts out, or a transposed one takes in.
        wide: (B, M, H, W), the map at its other side.
        weight: (N, M, rows, columns), of which only the shape counts.

    Returns:
        As `weight`.
    """
    if together := _side_by_side(narrow, wide, weight.shape[3], stride[1], padding[1]):
        narrow, wide = together
    how = (stride, padding, (1, 1), False, (0, 0), 1)
    only_weight = (False, True, False)
    return torch.ops.aten.convolution_backward(narrow, wide, weight, None, *how, only_weight)[1]


def _side_by_side(
    narrow: Tensor, wide: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor] | None:
    """Both maps with as many images in a row as fill a tile, or None where that can't be done.

    The columns of zeros between two images are the padding of both. Where the narrow map has such columns, nothing is
    added to the gradient.
    """
    images, columns, wide_columns = len(narrow), narrow.shape[3], wide.shape[3]
    beyond = stride * (columns - 1) - padding + kernel - wide_columns
    pitch = max(columns, -(-(wide_columns + max(padding, beyond)) // stride))
    least = -(-TILE // pitch)
    count = next((n for n in range(least, 2 * least) if images % n == 0), None)
    # As wide as the narrow map is what a convolution of the wide one must come out.
    if count is None or (2 * padding - kernel) // stride != -1:
        return None
    return _row(narrow, count, pitch), _row(wide, count, pitch * stride)


def _row(x: Tensor, count: int, pitch: int) -> Tensor:
    """(B, C, H, W) to (B / count, C, H, count * pitch), in NHWC order."""
    b, c, h, w = x.shape
    row = x.new_empty(b // count, h, count, pitch, c)
    row[:, :, :, :w] = x.permute(0, 2, 3, 1).unflatten(0, (b // count, count)).transpose(1, 2)
    row[:, :, :, w:] = 0
    return row.flatten(2, 3).permute(0, 3, 1, 2)
