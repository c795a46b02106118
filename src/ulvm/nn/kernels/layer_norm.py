"""LayerNorm over the last axis of narrow rows: many rows a program, where torch takes one.

A row of eight channels keeps two threads of torch's 128 busy; a picture has 65,536 rows.

Source: Ba et al. 2016, "Layer Normalization", arXiv 1607.06450.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels import device
from ulvm.nn.kernels.arrays import scratch, split_as
from ulvm.nn.kernels.norms import load_channels, places, zeros
from ulvm.nn.kernels.sums import sum_partials

WIDEST = 256  # channels; wider rows keep torch's threads busy
TILE = 2048  # numbers that a program works on at a time
PROGRAMS = device.EIGHT_ON_EACH  # of backward, each of which leaves a partial sum


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``F.layer_norm`` over the last axis of at most WIDEST channels, in float32 inside.

    Args:
        x: (…, channels).
        weight, bias: (channels,).

    Returns:
        The shape and type of ``x``.
    """
    y: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return y


class Pointers(NamedTuple):
    """What the kernels read and write; None where one does not."""

    x: Any  # (rows, CHANNELS)
    weight: Any  # (CHANNELS,)
    bias: Any = None  # (CHANNELS,)
    y: Any = None  # (rows, CHANNELS)
    d_y: Any = None  # (rows, CHANNELS)
    d_x: Any = None  # (rows, CHANNELS)
    d_weight: Any = None  # (programs, CHANNELS)
    d_bias: Any = None  # (programs, CHANNELS)


class Sizes(NamedTuple):
    """What the kernels are compiled for."""

    CHANNELS: int
    C: int  # that, padded
    ROWS: int  # of a tile


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        channels = x.shape[-1]
        rows, C = x.numel() // channels, triton.next_power_of_2(channels)
        sizes = Sizes(channels, C, TILE // C)
        blocks = triton.cdiv(rows, sizes.ROWS)
        p = Pointers(x, weight, bias, torch.empty_like(x))
        if blocks:
            _norm_kernel[(blocks,)](p, rows, eps, S=sizes)
        ctx.save_for_backward(x, weight, bias)
        ctx.eps, ctx.rows, ctx.blocks, ctx.sizes = eps, rows, blocks, sizes
        return p.y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        programs = max(1, min(ctx.blocks, PROGRAMS))
        p = Pointers(
            x,
            weight,
            d_y=d_y.contiguous(),
            d_x=torch.empty_like(x),
            d_weight=scratch(x, programs, len(weight)),
            d_bias=scratch(x, programs, len(weight)),
        )
        _norm_back_kernel[(programs,)](p, ctx.rows, ctx.eps, S=ctx.sizes)
        (d_weight,), (d_bias,) = map(split_as, sum_partials(p.d_weight, p.d_bias), (weight, bias))
        return p.d_x, d_weight, d_bias, None


@triton.jit
def row_statistics(x, eps, CHANNELS: tl.constexpr, C: tl.constexpr):
    """Mean and 1/deviation of each row of x (rows, C) with zeros beyond CHANNELS: (rows, 1)."""
    mean = tl.sum(x, 1)[:, None] * (1.0 / CHANNELS)
    centred = tl.where(tl.arange(0, C)[None, :] < CHANNELS, x - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, 1)[:, None] * (1.0 / CHANNELS) + eps)


@triton.jit
def row_gradient(grad, standard, scale, CHANNELS: tl.constexpr):
    """Gradient of a LayerNorm's input from that of its standardised output."""
    along = tl.sum(grad, 1)[:, None] / CHANNELS
    across = tl.sum(grad * standard, 1)[:, None] / CHANNELS
    return scale * (grad - along - standard * across)


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(p, rows, eps, S: tl.constexpr):
    """Some rows."""
    row = tl.program_id(0).to(tl.int64) * S.ROWS + tl.arange(0, S.ROWS)
    here, inside = places(row, row < rows, S)
    x = tl.load(p.x + here, inside, 0.0).to(tl.float32)
    mean, scale = row_statistics(x, eps, S.CHANNELS, S.C)
    weight, bias = load_channels(p.weight, S), load_channels(p.bias, S)
    tl.store(p.y + here, (x - mean) * scale * weight[None, :] + bias[None, :], inside)


@triton.jit(do_not_specialize=["rows"])
def _norm_back_kernel(p, rows, eps, S: tl.constexpr):
    """Every so many blocks of rows; gradients of weight and bias are this program's part."""
    weight = load_channels(p.weight, S)
    d_weight, d_bias = zeros(S.ROWS, S.C), zeros(S.ROWS, S.C)
    first = tl.program_id(0).to(tl.int64) * S.ROWS
    for start in range(first, rows, tl.num_programs(0) * S.ROWS):
        row = start + tl.arange(0, S.ROWS)
        here, inside = places(row, row < rows, S)
        x = tl.load(p.x + here, inside, 0.0).to(tl.float32)
        d_y = tl.load(p.d_y + here, inside, 0.0).to(tl.float32)
        mean, scale = row_statistics(x, eps, S.CHANNELS, S.C)
        normal = (x - mean) * scale
        d_weight += d_y * normal
        d_bias += d_y
        d_x = row_gradient(d_y * weight[None, :], normal, scale, S.CHANNELS)
        tl.store(p.d_x + here, d_x, inside)
    channel = tl.arange(0, S.C)
    here = tl.program_id(0) * S.CHANNELS + channel
    tl.store(p.d_weight + here, tl.sum(d_weight, 0), channel < S.CHANNELS)
    tl.store(p.d_bias + here, tl.sum(d_bias, 0), channel < S.CHANNELS)
