"""LayerNorm over the last axis of narrow rows: many rows a program, where torch takes one.

A row of eight channels keeps two threads of torch's 128 busy; a picture has 65,536 rows.

Source: Ba et al. 2016, "Layer Normalization", arXiv 1607.06450.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels import device
from ulvm.nn.kernels.norms import load_channels
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


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        channels = x.shape[-1]
        rows = x.numel() // channels
        C = triton.next_power_of_2(channels)
        sizes = {"CHANNELS": channels, "C": C, "ROWS": TILE // C}
        blocks = triton.cdiv(rows, sizes["ROWS"])
        if blocks:
            _norm_kernel[(blocks,)](x, weight, bias, y, rows, eps, **sizes)
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.rows, ctx.blocks, ctx.sizes = eps, rows, blocks, sizes
        ctx.bias_type = bias.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_y = d_y.contiguous()
        d_x = torch.empty_like(x)
        programs = max(1, min(ctx.blocks, PROGRAMS))
        d_weight, d_bias = (
            x.new_empty(programs, len(weight), dtype=torch.float32) for _ in range(2)
        )
        _norm_back_kernel[(programs,)](
            x, weight, d_y, d_x, d_weight, d_bias, ctx.rows, ctx.eps, **ctx.sizes
        )
        d_weight, d_bias = sum_partials(d_weight, d_bias)
        return d_x, d_weight.to(weight.dtype), d_bias.to(ctx.bias_type), None


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
def _norm_kernel(
    x_in, weight_in, bias_in, y_out, rows, eps,
    CHANNELS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some rows."""
    channel = tl.arange(0, C)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    place = row[:, None] * CHANNELS + channel[None, :]
    x = tl.load(x_in + place, inside, 0.0).to(tl.float32)
    mean, scale = row_statistics(x, eps, CHANNELS, C)
    weight = load_channels(weight_in, C, CHANNELS).to(tl.float32)
    bias = load_channels(bias_in, C, CHANNELS).to(tl.float32)
    tl.store(y_out + place, (x - mean) * scale * weight[None, :] + bias[None, :], inside)


@triton.jit(do_not_specialize=["rows"])
def _norm_back_kernel(
    x_in, weight_in, d_y_in, d_x_out, d_weight_out, d_bias_out, rows, eps,
    CHANNELS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Every so many blocks of rows; gradients of weight and bias are this program's part."""
    channel = tl.arange(0, C)
    weight = load_channels(weight_in, C, CHANNELS).to(tl.float32)
    d_weight = tl.zeros((ROWS, C), tl.float32)
    d_bias = tl.zeros((ROWS, C), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in range(first, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
        place = row[:, None] * CHANNELS + channel[None, :]
        x = tl.load(x_in + place, inside, 0.0).to(tl.float32)
        d_y = tl.load(d_y_in + place, inside, 0.0).to(tl.float32)
        mean, scale = row_statistics(x, eps, CHANNELS, C)
        normal = (x - mean) * scale
        d_weight += d_y * normal
        d_bias += d_y
        d_x = row_gradient(d_y * weight[None, :], normal, scale, CHANNELS)
        tl.store(d_x_out + place, d_x, inside)
    here = tl.program_id(0) * CHANNELS + channel
    tl.store(d_weight_out + here, tl.sum(d_weight, 0), channel < CHANNELS)
    tl.store(d_bias_out + here, tl.sum(d_bias, 0), channel < CHANNELS)
