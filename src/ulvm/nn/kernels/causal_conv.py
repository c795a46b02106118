"""Mamba's causal depthwise convolution and SiLU on tokens as they lie, without a transposition.

torch's gradient of a depthwise kernel lets one warp walk through a whole picture.

Source: Gu & Dao 2023, "Mamba", arXiv 2312.00752, figure 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels import device
from ulvm.nn.kernels.arrays import scratch, split_as
from ulvm.nn.kernels.norms import sigmoid, silu_slope, zeros
from ulvm.nn.kernels.sums import sum_partials

TILE = 512  # numbers that a program works on at a time: four of each thread
PROGRAMS = device.EIGHT_ON_EACH  # of backward, at most, for each block of channels
MOST_CHANNELS = 128  # of one program


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``silu(conv1d(x))`` where token t sees only those up to t.

    Args:
        x: (batch, length, channels); the channels of a token side by side, the tokens of a
            sequence equally far apart: a slice of a wider array is read as it lies.
        weight: (channels, 1, taps), the last tap for the token itself.
        bias: (channels,).

    Returns:
        (batch, length, channels), contiguous, in the type of ``x``.
    """
    y: Tensor = _CausalConv.apply(x, weight, bias)
    return y


class Pointers(NamedTuple):
    """What the kernels read and write; None where one does not."""

    x: Any  # (tokens, CHANNELS), the tokens ``stride`` apart
    weight: Any  # (CHANNELS, 1, TAPS)
    bias: Any  # (CHANNELS,)
    y: Any = None  # (tokens, CHANNELS)
    d_y: Any = None  # (tokens, CHANNELS)
    d_x: Any = None  # (tokens, CHANNELS)
    d_weight: Any = None  # (programs, CHANNELS · TAPS)
    d_bias: Any = None  # (programs, CHANNELS)


class Sizes(NamedTuple):
    """What the kernels are compiled for."""

    CHANNELS: int
    TAPS: int
    C: int  # channels of one program
    ROWS: int  # tokens of a tile


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if x.stride(2) != 1 or x.stride(0) != x.stride(1) * x.shape[1]:
            x = x.contiguous()
        weight = weight.contiguous()
        batch, length, channels = x.shape
        C = min(triton.next_power_of_2(channels), MOST_CHANNELS)
        sizes = Sizes(channels, weight.shape[2], C, TILE // C)
        blocks, parts = triton.cdiv(batch * length, sizes.ROWS), triton.cdiv(channels, C)
        p = Pointers(x, weight, bias, x.new_empty(x.shape))
        _causal_kernel[(blocks, parts)](p, length, batch * length, x.stride(1), S=sizes)
        ctx.save_for_backward(x, weight, bias)
        ctx.grid, ctx.sizes = (min(blocks, PROGRAMS), parts), sizes
        return p.y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        batch, length, _ = x.shape
        d_y = d_y.contiguous()
        sums = (scratch(x, ctx.grid[0], each.numel()) for each in (weight, bias))
        p = Pointers(x, weight, bias, None, d_y, torch.empty_like(d_y), *sums)
        _causal_back_kernel[ctx.grid](p, length, batch * length, x.stride(1), S=ctx.sizes)
        (d_weight,), (d_bias,) = map(split_as, sum_partials(p.d_weight, p.d_bias), (weight, bias))
        return p.d_x, d_weight, d_bias


_LENGTHS = ["length", "tokens"]  # one compiled kernel serves all


@triton.jit
def _places(token, inside, stride, e, S: tl.constexpr):
    """(ROWS, C) places of some channels of some tokens, and which exist; int64 for long arrays."""
    return token.to(tl.int64)[:, None] * stride + e[None, :], inside[:, None] & (e < S.CHANNELS)


@triton.jit
def _channels(pointer, e, STRIDE: tl.constexpr, S: tl.constexpr):
    """One number of each channel, (1, C)."""
    return tl.load(pointer + e * STRIDE, e < S.CHANNELS, 0.0).to(tl.float32)[None, :]


@triton.jit
def _convolve(p, token, inside, length, stride, e, S: tl.constexpr):
    """The convolution before SiLU, (ROWS, C), and what each tap took, the token's own first."""
    z = zeros(token.shape[0], e.shape[0])
    z += _channels(p.bias, e, 1, S)
    taken = ()
    TAPS: tl.constexpr = S.TAPS
    for back in tl.static_range(TAPS):
        weight = _channels(p.weight + TAPS - 1 - back, e, TAPS, S)
        here, keep = _places(token - back, inside & (token % length >= back), stride, e, S)
        x = tl.load(p.x + here, keep, 0.0).to(tl.float32)
        z += weight * x
        taken = taken + (x,)
    return z, taken


@triton.jit(do_not_specialize=_LENGTHS)
def _causal_kernel(p, length, tokens, stride, S: tl.constexpr):
    """Some tokens' outputs of some channels."""
    e = tl.program_id(1) * S.C + tl.arange(0, S.C)
    token = tl.program_id(0) * S.ROWS + tl.arange(0, S.ROWS)
    z, _ = _convolve(p, token, token < tokens, length, stride, e, S)
    here, keep = _places(token, token < tokens, S.CHANNELS, e, S)
    tl.store(p.y + here, z * sigmoid(z), keep)


@triton.jit(do_not_specialize=_LENGTHS)
def _causal_back_kernel(p, length, tokens, stride, S: tl.constexpr):
    """Every so many tokens; gradients of weight and bias are this program's part."""
    TAPS: tl.constexpr = S.TAPS
    e = tl.program_id(1) * S.C + tl.arange(0, S.C)
    d_bias = zeros(S.ROWS, S.C)
    d_taps = ()
    for _ in tl.static_range(TAPS):
        d_taps = d_taps + (zeros(S.ROWS, S.C),)
    for start in range(tl.program_id(0) * S.ROWS, tokens, tl.num_programs(0) * S.ROWS):
        token = start + tl.arange(0, S.ROWS)
        d_x = zeros(S.ROWS, S.C)
        for ahead in tl.static_range(TAPS):  # the outputs that saw this token
            inside = (token < tokens) & (token % length + ahead < length)
            z, taken = _convolve(p, token + ahead, inside, length, stride, e, S)
            here, keep = _places(token + ahead, inside, S.CHANNELS, e, S)
            d_z = tl.load(p.d_y + here, keep, 0.0).to(tl.float32) * silu_slope(z)
            d_x += _channels(p.weight + TAPS - 1 - ahead, e, TAPS, S) * d_z
            if ahead == 0:
                d_bias += d_z
                summed = ()
                for back in tl.static_range(TAPS):
                    summed = summed + (d_taps[back] + d_z * taken[back],)
                d_taps = summed
        here, keep = _places(token, token < tokens, S.CHANNELS, e, S)
        tl.store(p.d_x + here, d_x, keep)
    here = tl.program_id(0) * S.CHANNELS + e
    tl.store(p.d_bias + here, tl.sum(d_bias, 0), e < S.CHANNELS)
    for back in tl.static_range(TAPS):
        to = p.d_weight + here * TAPS + TAPS - 1 - back
        tl.store(to, tl.sum(d_taps[back], 0), e < S.CHANNELS)
