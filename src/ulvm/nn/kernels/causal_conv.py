"""Mamba's causal depthwise convolution and SiLU on tokens as they lie, without a transposition.

torch's gradient of a depthwise kernel lets one warp walk through a whole picture.

Source: Gu & Dao 2023, "Mamba", arXiv 2312.00752, figure 3.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels import device
from ulvm.nn.kernels.norms import sigmoid, silu_slope
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


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if x.stride(2) != 1 or x.stride(0) != x.stride(1) * x.shape[1]:
            x = x.contiguous()
        weight = weight.contiguous()
        batch, length, channels = x.shape
        C = min(triton.next_power_of_2(channels), MOST_CHANNELS)
        sizes = {
            "length": length,
            "tokens": batch * length,
            "stride": x.stride(1),
            "CHANNELS": channels,
            "TAPS": weight.shape[2],
            "C": C,
            "ROWS": TILE // C,
        }
        y = x.new_empty(x.shape)
        blocks = triton.cdiv(batch * length, sizes["ROWS"])
        parts = triton.cdiv(channels, C)
        _causal_kernel[(blocks, parts)](x, weight, bias, y, **sizes)
        ctx.save_for_backward(x, weight, bias)
        ctx.grid, ctx.sizes = (min(blocks, PROGRAMS), parts), sizes
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        d_y = d_y.contiguous()
        d_x = torch.empty_like(d_y)
        d_weight, d_bias = (
            x.new_empty(ctx.grid[0], each.numel(), dtype=torch.float32) for each in (weight, bias)
        )
        _causal_back_kernel[ctx.grid](x, weight, bias, d_y, d_x, d_weight, d_bias, **ctx.sizes)
        d_weight, d_bias = sum_partials(d_weight, d_bias)
        return (
            d_x,
            d_weight.view_as(weight).to(weight.dtype),
            d_bias.to(bias.dtype),
        )


_LENGTHS = ["length", "tokens"]  # one compiled kernel serves all


@triton.jit
def _load(pointer, token, inside, stride, e, CHANNELS: tl.constexpr):
    """Some tokens' channels, (ROWS, C); zero where not ``inside``, which is (ROWS,)."""
    place = token.to(tl.int64)[:, None] * stride + e[None, :]
    return tl.load(pointer + place, inside[:, None] & (e < CHANNELS)[None, :], 0.0).to(tl.float32)


@triton.jit
def _channels(pointer, e, CHANNELS: tl.constexpr, STRIDE: tl.constexpr):
    """One number of each channel, (C,)."""
    return tl.load(pointer + e * STRIDE, e < CHANNELS, 0.0).to(tl.float32)


@triton.jit
def _convolve(
    x_in, weight_in, bias_in, token, inside, length, stride, e,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The convolution before SiLU, (ROWS, C), and what each tap took, the token's own first."""
    z = tl.zeros((token.shape[0], e.shape[0]), tl.float32)
    z += _channels(bias_in, e, CHANNELS, 1)[None, :]
    taken = ()
    for back in tl.static_range(TAPS):
        weight = _channels(weight_in + TAPS - 1 - back, e, CHANNELS, TAPS)
        before = inside & (token % length >= back)
        x = _load(x_in, token - back, before, stride, e, CHANNELS)
        z += weight[None, :] * x
        taken = taken + (x,)
    return z, taken


@triton.jit(do_not_specialize=_LENGTHS)
def _causal_kernel(
    x_in, weight_in, bias_in, y_out, length, tokens, stride,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some tokens' outputs of some channels."""
    e = tl.program_id(1) * C + tl.arange(0, C)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = token < tokens
    z, _ = _convolve(x_in, weight_in, bias_in, token, inside, length, stride, e, CHANNELS, TAPS)
    place = token.to(tl.int64)[:, None] * CHANNELS + e[None, :]
    tl.store(y_out + place, z * sigmoid(z), inside[:, None] & (e < CHANNELS)[None, :])


@triton.jit(do_not_specialize=_LENGTHS)
def _causal_back_kernel(
    x_in, weight_in, bias_in, d_y_in, d_x_out, d_weight_out, d_bias_out,
    length, tokens, stride,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Every so many tokens; gradients of weight and bias are this program's part."""
    e = tl.program_id(1) * C + tl.arange(0, C)
    d_bias = tl.zeros((ROWS, C), tl.float32)
    d_taps = ()
    for _ in tl.static_range(TAPS):
        d_taps = d_taps + (tl.zeros((ROWS, C), tl.float32),)
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        token = start + tl.arange(0, ROWS)
        d_x = tl.zeros((ROWS, C), tl.float32)
        for ahead in tl.static_range(TAPS):  # the outputs that saw this token
            inside = (token < tokens) & (token % length + ahead < length)
            z, taken = _convolve(
                x_in, weight_in, bias_in, token + ahead, inside, length, stride, e, CHANNELS, TAPS
            )
            d_y = _load(d_y_in, token + ahead, inside, CHANNELS, e, CHANNELS)
            d_z = d_y * silu_slope(z)
            weight = _channels(weight_in + TAPS - 1 - ahead, e, CHANNELS, TAPS)
            d_x += weight[None, :] * d_z
            if ahead == 0:
                d_bias += d_z
                summed = ()
                for back in tl.static_range(TAPS):
                    summed = summed + (d_taps[back] + d_z * taken[back],)
                d_taps = summed
        place = token.to(tl.int64)[:, None] * CHANNELS + e[None, :]
        tl.store(d_x_out + place, d_x, (token < tokens)[:, None] & (e < CHANNELS)[None, :])
    here = tl.program_id(0) * CHANNELS + e
    tl.store(d_bias_out + here, tl.sum(d_bias, 0), e < CHANNELS)
    for back in tl.static_range(TAPS):
        tl.store(
            d_weight_out + here * TAPS + TAPS - 1 - back,
            tl.sum(d_taps[back], 0),
            e < CHANNELS,
        )
