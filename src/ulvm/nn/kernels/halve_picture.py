"""The gradient of ``halve.py``'s convolution for pictures, whose channels are few."""

from __future__ import annotations

import triton
import triton.language as tl

from ulvm.nn.kernels.conv import Plane, Spots
from ulvm.nn.kernels.norms import load_image_norm, norm_gradient


@triton.jit
def hand_in_norms(row, sums, products, S: tl.constexpr):
    """An image's sums are also the normalisation's gradients; one of its programs hands them in."""
    share = tl.where(tl.program_id(0) == 0, 1.0, 0.0)
    channel = tl.arange(0, S.C)
    here = row + S.COUNT + channel
    tl.store(here, products * share, mask=channel < S.CHANNELS)
    tl.store(here + S.CHANNELS, sums * share, mask=channel < S.CHANNELS)


@triton.jit
def split_four(values, P: tl.constexpr):
    """(P, 4) → its four columns, (P,) each."""
    even, odd = tl.split(tl.reshape(values, (P, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def join_four(values, P: tl.constexpr):
    """Four (P,) → (P, 4)."""
    even = tl.join(values[0], values[2])
    odd = tl.join(values[1], values[3])
    return tl.reshape(tl.join(even, odd), (P, 4))


@triton.jit
def pick(values, index, N: tl.constexpr):
    """(N,) → its number ``index``."""
    return tl.sum(tl.where(tl.arange(0, N) == index, values, 0.0), 0)


@triton.constexpr_function
def neighbour(place: int, tap: int) -> int:
    """Which of the 4×4 pixels around a window is neighbour ``tap`` of its pixel ``place``."""
    return (place // 2 + tap // 3) * 4 + place % 2 + tap % 3


@triton.jit
def load_patch(plane, at, IN: tl.constexpr):
    """(P,) windows → tuple of the 4·4·IN numbers around each, (P,) float32."""
    corner = ((at.image * plane.height + at.row - 1) * plane.width + at.column - 1) * IN
    patch = ()
    for y in tl.static_range(4):
        down = at.inside & (at.row + y >= 1) & (at.row + y <= plane.height)
        start = plane.x + (corner + y * plane.width * IN)
        for x in tl.static_range(4):
            keep = down & (at.column + x >= 1) & (at.column + x <= plane.width)
            for c in tl.static_range(IN):
                value = tl.load(start + (x * IN + c), mask=keep, other=0.0)
                patch = patch + (value.to(tl.float32),)
    return patch


@triton.jit
def convolve_picture_back(p, height, width, blocks, S: tl.constexpr, P: tl.constexpr):
    """As ``convolve_back`` without the input's gradient, for the few channels of a picture.

    A thread keeps a window, the gradients of four output channels' weights (the third axis tells
    which four) and nothing but plain products; no matrix is wide enough to be worth gathering.
    """
    IN: tl.constexpr = S.IN
    image, first = tl.program_id(1), tl.program_id(2) * 4
    half = width // 2
    pooled = height // 2 * half
    norm = load_image_norm(p, image, S)
    shift, slope, sum_normal, sum_product = norm_gradient(
        p.d_partials, image, blocks, norm.weight, 4.0 * pooled, S
    )
    slope = -norm.rstd * norm.rstd * slope
    shift = -norm.rstd * shift - slope * norm.mean
    scale = norm.rstd * norm.weight

    four = tl.arange(0, 4)[None, :]
    sums = ()  # by neighbour, input and output channel; at the end of the bias
    for _ in tl.static_range(36 * IN + 4):
        sums = sums + (tl.zeros((P,), tl.float32),)
    block = tl.program_id(0)
    while block * P < pooled:
        window = block * P + tl.arange(0, P)
        inside = window < pooled
        at_window = Spots(image, window // half * 2, window % half * 2, inside)
        patch = load_patch(Plane(p.x, height, width), at_window, IN)
        here = ((image * pooled + window) * S.CHANNELS + first)[:, None] + four
        keep = inside[:, None]
        d_normal = split_four(tl.load(p.d_normal + here, mask=keep, other=0.0), P)
        place = split_four(tl.load(p.place + here, mask=keep, other=0).to(tl.int32), P)
        # The block takes part so that the weights are loaded again: registers are too few for all.
        weights = p.weight + tl.minimum(block, 0) + first * IN * 9
        d_raws = ()
        for out in tl.static_range(4):
            bias = tl.zeros((P,), tl.float32) + tl.load(p.bias + first + out)
            raw = (bias, bias, bias, bias)
            for k in tl.static_range(9 * IN):
                factor = tl.load(weights + (out * IN + k % IN) * 9 + k // IN)
                new = ()
                for at in tl.static_range(4):
                    value = patch[neighbour(at, k // IN) * IN + k % IN]
                    new = new + (tl.fma(value, factor, raw[at]),)
                raw = new
            chosen = pick(scale, first + out, S.C) * d_normal[out]
            for at in tl.static_range(4):
                d_raw = pick(shift, first + out, S.C) + pick(slope, first + out, S.C) * raw[at]
                d_raw += tl.where(place[out] == at, chosen, 0.0)
                d_raws = d_raws + (tl.where(inside, d_raw, 0.0),)
        new = ()
        for k in tl.static_range(9 * IN):
            for out in tl.static_range(4):
                total = sums[4 * k + out]
                for at in tl.static_range(4):
                    value = patch[neighbour(at, k // IN) * IN + k % IN]
                    total = tl.fma(value, d_raws[4 * out + at], total)
                new = new + (total,)
        for out in tl.static_range(4):
            of_bias = d_raws[4 * out] + d_raws[4 * out + 1] + d_raws[4 * out + 2]
            new = new + (sums[36 * IN + out] + (of_bias + d_raws[4 * out + 3]),)
        sums = new
        block += tl.num_programs(0)

    size: tl.constexpr = S.COUNT + 2 * S.CHANNELS
    numbers = p.d_parameters + (image * tl.num_programs(0) + tl.program_id(0)) * size
    each = first + tl.arange(0, 4)
    for k in tl.static_range(9 * IN):
        total = tl.sum(join_four(sums[4 * k : 4 * k + 4], P), 0)
        tl.store(numbers + (each * IN + k % IN) * 9 + k // IN, total)
    tl.store(numbers + S.CHANNELS * 9 * IN + each, tl.sum(join_four(sums[36 * IN :], P), 0))
    hand_in_norms(numbers, sum_normal, sum_product, S)
