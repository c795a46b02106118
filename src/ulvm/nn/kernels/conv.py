"""3×3 convolution as products of matrices, and what its kernels share.

A program makes the four pixels of 2×2 windows at once from the 4×4 pixels around each. Pixels
side by side are contiguous numbers; they are loaded once and multiplied with the weights of every
place and neighbour that they serve, 2.25 on average.

For the weight's gradient a pixel's neighbourhood is a row of 9 · channels + 1 numbers, the last
one 1: its weight is the bias, so that the bias and its gradient cost nothing of their own. Rows
are taken in blocks, for tl.dot wants powers of two.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels import device
from ulvm.nn.kernels.arrays import scratch, split_as
from ulvm.nn.kernels.norms import places, zeros
from ulvm.nn.kernels.sums import sum_partials

# 32 wastes 13 % of 28, 24 % of 73 and 9 % of 145 numbers; 16 makes twice the products.
K_BLOCK = tl.constexpr(32)
# In the weight's gradient K is the product's height, and wgmma wants 64.
SUM_BLOCK = tl.constexpr(64)
WINDOWS = 64  # rows of one wgmma of four warps
PIXELS = 64  # likewise
# Numbers of a row that a product takes where it halves; with more, registers spill.
HALVING_ROW = 32
PROGRAMS = device.TWO_ON_EACH


class Plane(NamedTuple):
    """Where an activation (batch, height, width, channels) lies, and its size."""

    x: Any
    height: Any
    width: Any


class Spots(NamedTuple):
    """Some pixels: (M,) row, column and whether it exists; the image is one number or (M,)."""

    image: Any
    row: Any
    column: Any
    inside: Any


class Sizes(NamedTuple):
    """What the kernels of a convolution are compiled for."""

    IN: int
    CHANNELS: int  # of the result, OUT in shapes
    C: int  # that, padded
    COUNT: int  # numbers of weight and bias
    SIDE: int = 0  # pixels of a row that one product takes
    K: int = 0  # their numbers, padded
    SPAN: int = 0  # blocks of the weight's gradient that one program sums up


class Pointers(NamedTuple):
    """What the kernels here read and write; None where one does not."""

    x: Any  # (batch, height, width, IN)
    weight: Any  # (OUT, IN, 3, 3); transposed (IN, OUT, 3, 3)
    bias: Any = None  # (OUT,); None makes the transposed convolution
    y: Any = None  # (batch, height, width, OUT)
    d_y: Any = None  # (batch, height, width, OUT)
    partials: Any = None  # (programs, OUT · (9 · IN + 1))


@triton.jit
def load_columns(plane, at, start, IN: tl.constexpr, K: tl.constexpr):
    """Neighbourhoods: (M,) pixels → (M, K), their numbers ``start`` .. ``start + K``.

    Number k is channel k % IN of neighbour k // IN.
    """
    k = start + tl.arange(0, K)[None, :]
    down = k // IN // 3 - 1
    right = k // IN % 3 - 1
    y = at.row[:, None] + down
    x = at.column[:, None] + right
    keep = at.inside[:, None] & (k < 9 * IN)
    keep = keep & (y >= 0) & (y < plane.height) & (x >= 0) & (x < plane.width)
    centre = ((at.image * plane.height + at.row) * plane.width + at.column) * IN
    here = centre[:, None] + ((down * plane.width + right) * IN + k % IN)
    values = tl.load(plane.x + here, mask=keep, other=0.0).to(tl.float32)
    return tl.where(k == 9 * IN, 1.0, values)


@triton.jit
def convolve(plane, at, weight, bias, S: tl.constexpr):
    """(M,) pixels → (M, C), the convolution there in float32."""
    result = zeros(at.row.shape[0], S.C)
    out = tl.arange(0, S.C)[None, :]
    for block in tl.static_range((9 * S.IN + K_BLOCK) // K_BLOCK):
        columns = load_columns(plane, at, block * K_BLOCK, S.IN, K_BLOCK)
        k = block * K_BLOCK + tl.arange(0, K_BLOCK)[:, None]
        keep = (k < 9 * S.IN) & (out < S.CHANNELS)
        place = (out * S.IN + k % S.IN) * 9 + k // S.IN
        factors = tl.load(weight + place, mask=keep, other=0.0)
        constant = tl.load(bias + out, mask=out < S.CHANNELS, other=0.0)
        factors = tl.where(k == 9 * S.IN, constant, factors)
        result = tl.dot(columns, factors, result, input_precision="tf32x3")
    return result


@triton.jit
def zero_sums(BLOCKS: tl.constexpr, C: tl.constexpr):
    """Tuple of BLOCKS zeros (SUM_BLOCK, C), for ``add_products``."""
    if BLOCKS == 0:
        return ()
    else:
        return (zeros(SUM_BLOCK, C),) + zero_sums(BLOCKS - 1, C)


@triton.jit
def add_products(sums, d_y, plane, at, first, IN: tl.constexpr):
    """Add neighbourhoodᵀ · d_y of (M,) pixels, d_y (M, C), to the sums of blocks ``first`` on."""
    added = ()
    for block in tl.static_range(len(sums)):
        columns = load_columns(plane, at, (first + block) * SUM_BLOCK, IN, SUM_BLOCK)
        product = tl.dot(tl.trans(columns), d_y, sums[block], input_precision="tf32x3")
        added = added + (product,)
    return added


@triton.jit
def store_sums(sums, row, first, S: tl.constexpr):
    """Write the sums as a weight (OUT, IN, 3, 3) and after it a bias (OUT,)."""
    for block in tl.static_range(len(sums)):
        k = (first + block) * SUM_BLOCK + tl.arange(0, SUM_BLOCK)[:, None]
        out = tl.arange(0, S.C)[None, :]
        of_weight = (out * S.IN + k % S.IN) * 9 + k // S.IN
        place = tl.where(k < 9 * S.IN, of_weight, S.CHANNELS * S.IN * 9 + out)
        tl.store(row + place, sums[block], mask=(k <= 9 * S.IN) & (out < S.CHANNELS))


@triton.jit
def find_pixels(block, pixels, height, width, M: tl.constexpr):
    """Block of M of all images' pixels → their (M,) numbers, and the ``Spots``."""
    pixel = block * M + tl.arange(0, M)
    image = pixel // (height * width)
    return pixel, Spots(image, pixel // width % height, pixel % width, pixel < pixels)


@triton.jit
def load_row_weights(weight, down, right, S: tl.constexpr, TRANSPOSED: tl.constexpr):
    """(K, C) weights of pixels side by side, the first one the neighbour (down, right)."""
    k = tl.arange(0, S.K)[:, None]
    out = tl.arange(0, S.C)[None, :]
    right += k // S.IN
    keep = (right >= 0) & (right < 3) & (out < S.CHANNELS)
    if TRANSPOSED:
        place = (k % S.IN * S.CHANNELS + out) * 9 + 8 - 3 * down - right
    else:
        place = (out * S.IN + k % S.IN) * 9 + 3 * down + right
    return tl.load(weight + place, mask=keep, other=0.0)


@triton.jit
def convolve_windows(
    plane, at, weight, S: tl.constexpr, KIND: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """(T,) windows → for each of their four places (T, C) the convolution in float32, no bias.

    ``at`` are the upper left pixels; factors are rounded to KIND.
    """
    SIDE: tl.constexpr = S.SIDE
    K: tl.constexpr = S.K
    k = tl.arange(0, K)[None, :]
    row, height, width = at.row, plane.height, plane.width
    corner = ((at.image * height + row - 1) * width + at.column - 1) * S.IN
    zero = zeros(row.shape[0], S.C)
    upper_left, upper_right, lower_left, lower_right = zero, zero, zero, zero
    left = zeros(K, S.C).to(KIND)
    right = left
    for first in tl.static_range(0, 4, SIDE):
        x = at.column[:, None] + (first - 1 + k // S.IN)
        across = at.inside[:, None] & (x >= 0) & (x < width) & (k < SIDE * S.IN)
        for y in tl.static_range(4):
            keep = across & (row + y >= 1)[:, None] & (row + y <= height)[:, None]
            start = corner + (y * width + first) * S.IN
            values = tl.load(plane.x + (start[:, None] + k), mask=keep, other=0.0).to(KIND)
            if y > 0:  # for the lower pixels this is one neighbour further up: weights at hand
                if first < 3:
                    lower_left = tl.dot(values, left, lower_left, input_precision="tf32x3")
                if first + SIDE > 1:
                    lower_right = tl.dot(values, right, lower_right, input_precision="tf32x3")
            if y < 3:
                if first < 3:
                    left = load_row_weights(weight, y, first, S, TRANSPOSED).to(KIND)
                    upper_left = tl.dot(values, left, upper_left, input_precision="tf32x3")
                if first + SIDE > 1:
                    right = load_row_weights(weight, y, first - 1, S, TRANSPOSED).to(KIND)
                    upper_right = tl.dot(values, right, upper_right, input_precision="tf32x3")
    return upper_left, upper_right, lower_left, lower_right


@triton.jit
def convolve_pixels(p, images, height, width, S: tl.constexpr, T: tl.constexpr):
    """A program makes T windows of the result, over image borders."""
    down = tl.cdiv(height, 2)
    across = tl.cdiv(width, 2)
    _, window = find_pixels(tl.program_id(0), images * down * across, down, across, T)
    at = Spots(window.image, window.row * 2, window.column * 2, window.inside)
    kind: tl.constexpr = p.y.dtype.element_ty
    results = convolve_windows(Plane(p.x, height, width), at, p.weight, S, kind, p.bias is None)
    out = tl.arange(0, S.C)[None, :]
    if p.bias is not None:
        bias = tl.load(p.bias + out, mask=out < S.CHANNELS, other=0.0)
    for place in tl.static_range(4):
        values = results[place]
        if p.bias is not None:
            values += bias
        y = at.row + place // 2
        x = at.column + place % 2
        keep = at.inside & (y < height) & (x < width)
        here, keep = places((at.image * height + y) * width + x, keep, S)
        tl.store(p.y + here, values.to(kind), mask=keep)


@triton.jit
def sum_weight_gradient(p, pixels, height, width, S: tl.constexpr, M: tl.constexpr):
    """A program adds up the weight's gradient over every so many blocks of M pixels.

    Programs along the second axis share the weight, SPAN blocks of SUM_BLOCK numbers each.
    """
    first = tl.program_id(1) * S.SPAN
    sums = zero_sums(S.SPAN, S.C)
    block = tl.program_id(0)
    while block * M < pixels:
        pixel, at = find_pixels(block, pixels, height, width, M)
        here, keep = places(pixel, at.inside, S)
        d_y = tl.load(p.d_y + here, mask=keep, other=0.0).to(tl.float32)
        sums = add_products(sums, d_y, Plane(p.x, height, width), at, first, S.IN)
        block += tl.num_programs(0)
    store_sums(sums, p.partials + tl.program_id(0) * S.COUNT, first, S)


def pad_channels(channels: int) -> int:
    """Power of two for tl.dot, which wants at least 16."""
    return max(16, triton.next_power_of_2(channels))


def sizes_of(channels: int, out: int, padded: int) -> Sizes:
    """The sizes that every kernel needs."""
    return Sizes(channels, out, padded, out * (9 * channels + 1))


def window_sizes(channels: int, out: int, padded: int, most: int) -> Sizes:
    """The sizes for ``convolve_windows`` where a product takes ``most`` numbers of a row, or a
    single pixel."""
    side = min(4, max(1, most // triton.next_power_of_2(channels)))
    return sizes_of(channels, out, padded)._replace(SIDE=side, K=pad_channels(side * channels))


def row_of(padded: int) -> int:
    """Numbers of a row that a product takes in ``convolve_all``; with more, registers spill."""
    return 512 // padded


@functools.cache
def shared_bytes(channels: int, out: int) -> int:
    """What the kernels of a convolution need of a multiprocessor's shared memory, backward too.

    The pixels of a product, and the weights that they meet, of four places and two neighbours.
    """
    needed = []
    for before, after in ((channels, out), (out, channels)):
        padded = pad_channels(after)
        for most in (HALVING_ROW, row_of(padded)):
            numbers = window_sizes(before, after, padded, most).K
            needed.append(4 * (WINDOWS + 8 * padded) * numbers)
    return max(needed)


def gradient_sizes(channels: int, out: int) -> tuple[Sizes, int]:
    """The sizes for sums of the weight's gradient, and how many programs share the weight.

    8192 numbers are 64 registers of each of 128 threads; more would go to memory.
    """
    padded, block = pad_channels(out), SUM_BLOCK.value
    blocks = triton.cdiv(9 * channels + 1, block)
    span = min(blocks, max(1, 8192 // (block * padded)))
    return sizes_of(channels, out, padded)._replace(SPAN=span), triton.cdiv(blocks, span)


def convolve_all(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Convolve whole pictures; without ``bias``, with the transposed weight (the gradient).

    Args:
        x: (batch, height, width, in).
        weight: (out, in, 3, 3); without a bias (in, out, 3, 3).
        bias: (out,) or None.
        dtype: Of the result.

    Returns:
        (batch, height, width, out).
    """
    batch, height, width, channels = x.shape
    out = weight.shape[0] if bias is not None else weight.shape[1]
    y = x.new_empty((batch, height, width, out), dtype=dtype)
    windows = batch * triton.cdiv(height, 2) * triton.cdiv(width, 2)
    padded = pad_channels(out)
    sizes = window_sizes(channels, out, padded, row_of(padded))
    p = Pointers(x, weight, bias, y)
    convolve_pixels[(triton.cdiv(windows, WINDOWS),)](
        p, batch, height, width, S=sizes, T=WINDOWS, num_warps=4
    )
    return y


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return convolve_all(x, weight, bias, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        d_y = d_y.contiguous()
        batch, height, width, channels = x.shape
        pixels = batch * height * width
        sizes, shares = gradient_sizes(channels, len(bias))
        programs = min(PROGRAMS, triton.cdiv(pixels, PIXELS))
        p = Pointers(x, weight, d_y=d_y, partials=scratch(x, programs, sizes.COUNT))
        sum_weight_gradient[(programs, shares)](
            p, pixels, height, width, S=sizes, M=PIXELS, num_warps=4
        )
        (total,) = sum_partials(p.partials)
        d_x = convolve_all(d_y, weight, None, x.dtype) if ctx.needs_input_grad[0] else None
        return d_x, *split_as(total, weight, bias)


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3×3 convolution with padding 1.

    Args:
        x: (batch, height, width, in), contiguous.
        weight: float32 (out, in, 3, 3), as in nn.Conv2d.
        bias: float32 (out,).

    Returns:
        (batch, height, width, out) in the dtype of x.
    """
    return _Conv.apply(x, weight, bias)
