"""3×3 convolution as products of matrices, and what its kernels share.

A program makes the four pixels of 2×2 windows at once from the 4×4 pixels around each. Pixels
side by side are contiguous numbers; they are loaded once and multiplied with the weights of every
place and neighbour that they serve, 2.25 on average.

For the weight's gradient a pixel's neighbourhood is a row of 9 · channels + 1 numbers, the last
one 1: its weight is the bias, so that the bias and its gradient cost nothing of their own. Rows
are taken in blocks, for tl.dot wants powers of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels.sums import sum_partials

K_BLOCK = 32  # wastes 13 % of 28, 24 % of 73 and 9 % of 145 numbers; 16 makes twice the products
WINDOWS = 64  # rows of one wgmma of four warps
PIXELS = 64  # likewise
SUM_BLOCK = 64  # in the weight's gradient K is the product's height, and wgmma wants 64
PROGRAMS = 264  # for sums over all pixels: two for each of an H100's 132 multiprocessors


@triton.jit
def load_columns(
    x_ptr, start, image, row, column, inside, height, width, IN: tl.constexpr, K: tl.constexpr
):
    """Neighbourhoods: (M,) pixels → (M, K), their numbers ``start`` .. ``start + K``.

    x (batch, height, width, IN); number k is channel k % IN of neighbour k // IN.
    """
    k = start + tl.arange(0, K)[None, :]
    down = k // IN // 3 - 1
    right = k // IN % 3 - 1
    y = row[:, None] + down
    x = column[:, None] + right
    keep = inside[:, None] & (k < 9 * IN) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    centre = ((image * height + row) * width + column) * IN
    here = centre[:, None] + ((down * width + right) * IN + k % IN)
    values = tl.load(x_ptr + here, mask=keep, other=0.0).to(tl.float32)
    return tl.where(k == 9 * IN, 1.0, values)


@triton.jit
def weight_places(start, IN: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """(K, N) places of numbers ``start`` .. in a weight (OUT, IN, 3, 3) with its bias after it."""
    k = start + tl.arange(0, K)[:, None]
    out = tl.arange(0, N)[None, :]
    place = tl.where(k < 9 * IN, (out * IN + k % IN) * 9 + k // IN, OUT * IN * 9 + out)
    return place, (k <= 9 * IN) & (out < OUT)


@triton.jit
def load_weights(
    weight_ptr,
    bias_ptr,
    start,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
):
    """(K, N) numbers ``start`` .. of weight (OUT, IN, 3, 3), for ``load_columns``."""
    k = start + tl.arange(0, K)[:, None]
    out = tl.arange(0, N)[None, :]
    keep = (k < 9 * IN) & (out < OUT)
    weight = tl.load(weight_ptr + (out * IN + k % IN) * 9 + k // IN, mask=keep, other=0.0)
    bias = tl.load(bias_ptr + out, mask=out < OUT, other=0.0)
    return tl.where(k == 9 * IN, bias, weight)


@triton.jit
def convolve(
    x_ptr,
    weight_ptr,
    bias_ptr,
    image,
    row,
    column,
    inside,
    height,
    width,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
):
    """(M,) pixels → (M, N), the convolution there in float32."""
    result = tl.zeros((row.shape[0], N), tl.float32)
    for block in tl.static_range((9 * IN + K) // K):
        columns = load_columns(x_ptr, block * K, image, row, column, inside, height, width, IN, K)
        weights = load_weights(weight_ptr, bias_ptr, block * K, IN, OUT, K, N)
        result = tl.dot(columns, weights, result, input_precision="tf32x3")
    return result


@triton.jit
def zero_sums(BLOCKS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """Tuple of BLOCKS zeros (K, N), for ``add_products``."""
    if BLOCKS == 0:
        return ()
    else:
        first = (tl.zeros((K, N), tl.float32),)
        return first + zero_sums(BLOCKS - 1, K, N)


@triton.jit
def add_products(
    sums,
    grad,
    x_ptr,
    first,
    image,
    row,
    column,
    inside,
    height,
    width,
    IN: tl.constexpr,
    K: tl.constexpr,
):
    """Add neighbourhoodᵀ · grad of (M,) pixels, grad (M, N), to the sums of blocks ``first`` on."""
    added = ()
    for block in tl.static_range(len(sums)):
        columns = load_columns(
            x_ptr, (first + block) * K, image, row, column, inside, height, width, IN, K
        )
        product = tl.dot(tl.trans(columns), grad, sums[block], input_precision="tf32x3")
        added = added + (product,)
    return added


@triton.jit
def store_sums(
    sums,
    row_ptr,
    first,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
):
    """Write the sums as a weight (OUT, IN, 3, 3) and after it a bias (OUT,)."""
    for block in tl.static_range(len(sums)):
        place, keep = weight_places((first + block) * K, IN, OUT, K, N)
        tl.store(row_ptr + place, sums[block], mask=keep)


@triton.jit
def find_pixels(block, pixels, height, width, M: tl.constexpr):
    """Block of M of all images' pixels → (M,) number, image, row, column, and whether it exists."""
    pixel = block * M + tl.arange(0, M)
    return (
        pixel,
        pixel // (height * width),
        pixel // width % height,
        pixel % width,
        pixel < pixels,
    )


@triton.jit
def load_row_weights(
    weight_ptr,
    down,
    right,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """(K, N) weights of pixels side by side, the first one the neighbour (down, right).

    weight (OUT, IN, 3, 3), or (IN, OUT, 3, 3) if TRANSPOSED (then of the gradient).
    """
    k = tl.arange(0, K)[:, None]
    out = tl.arange(0, N)[None, :]
    right += k // IN
    keep = (right >= 0) & (right < 3) & (out < OUT)
    if TRANSPOSED:
        place = (k % IN * OUT + out) * 9 + 8 - 3 * down - right
    else:
        place = (out * IN + k % IN) * 9 + 3 * down + right
    return tl.load(weight_ptr + place, mask=keep, other=0.0)


@triton.jit
def convolve_windows(
    x_ptr,
    weight_ptr,
    image,
    row,
    column,
    inside,
    height,
    width,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    KIND: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """(T,) windows → for each of their four places (T, N) the convolution in float32, no bias.

    ``row`` and ``column`` are of the upper left pixel; factors are rounded to KIND.
    """
    k = tl.arange(0, K)[None, :]
    corner = ((image * height + row - 1) * width + column - 1) * IN
    zero = tl.zeros((row.shape[0], N), tl.float32)
    upper_left, upper_right, lower_left, lower_right = zero, zero, zero, zero
    left = tl.zeros((K, N), KIND)
    right = left
    for first in tl.static_range(0, 4, SIDE):
        x = column[:, None] + (first - 1 + k // IN)
        across = inside[:, None] & (x >= 0) & (x < width) & (k < SIDE * IN)
        for y in tl.static_range(4):
            keep = across & (row + y >= 1)[:, None] & (row + y <= height)[:, None]
            start = corner + (y * width + first) * IN
            values = tl.load(x_ptr + (start[:, None] + k), mask=keep, other=0.0).to(KIND)
            if y > 0:  # for the lower pixels this is one neighbour further up: weights at hand
                if first < 3:
                    lower_left = tl.dot(values, left, lower_left, input_precision="tf32x3")
                if first + SIDE > 1:
                    lower_right = tl.dot(values, right, lower_right, input_precision="tf32x3")
            if y < 3:
                if first < 3:
                    left = load_row_weights(weight_ptr, y, first, IN, OUT, K, N, TRANSPOSED)
                    left = left.to(KIND)
                    upper_left = tl.dot(values, left, upper_left, input_precision="tf32x3")
                if first + SIDE > 1:
                    right = load_row_weights(weight_ptr, y, first - 1, IN, OUT, K, N, TRANSPOSED)
                    right = right.to(KIND)
                    upper_right = tl.dot(values, right, upper_right, input_precision="tf32x3")
    return upper_left, upper_right, lower_left, lower_right


@triton.jit
def convolve_pixels(
    x_ptr,
    weight_ptr,
    bias_ptr,
    result_ptr,
    images,
    height,
    width,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """A program makes T windows of the result, over image borders."""
    down = tl.cdiv(height, 2)
    across = tl.cdiv(width, 2)
    _, image, row, column, inside = find_pixels(
        tl.program_id(0), images * down * across, down, across, T
    )
    row *= 2
    column *= 2
    kind: tl.constexpr = result_ptr.dtype.element_ty
    places = convolve_windows(
        x_ptr,
        weight_ptr,
        image,
        row,
        column,
        inside,
        height,
        width,
        IN,
        OUT,
        SIDE,
        K,
        N,
        kind,
        TRANSPOSED,
    )
    out = tl.arange(0, N)[None, :]
    if not TRANSPOSED:
        bias = tl.load(bias_ptr + out, mask=out < OUT, other=0.0)
    for place in tl.static_range(4):
        values = places[place]
        if not TRANSPOSED:
            values += bias
        y = row + place // 2
        x = column + place % 2
        keep = inside & (y < height) & (x < width)
        here = ((image * height + y) * width + x)[:, None] * OUT + out
        tl.store(result_ptr + here, values.to(kind), mask=keep[:, None] & (out < OUT))


@triton.jit
def sum_weight_gradient(
    x_ptr,
    grad_ptr,
    partials_ptr,
    pixels,
    height,
    width,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
):
    """A program adds up the weight's gradient over every so many blocks of M pixels.

    Programs along the second axis share the weight, SPAN blocks of K numbers each.
    """
    first = tl.program_id(1) * SPAN
    out = tl.arange(0, N)[None, :]
    sums = zero_sums(SPAN, K, N)
    block = tl.program_id(0)
    while block * M < pixels:
        pixel, image, row, column, inside = find_pixels(block, pixels, height, width, M)
        here = grad_ptr + pixel[:, None] * OUT + out
        grad = tl.load(here, mask=inside[:, None] & (out < OUT), other=0.0).to(tl.float32)
        sums = add_products(
            sums, grad, x_ptr, first, image, row, column, inside, height, width, IN, K
        )
        block += tl.num_programs(0)
    size: tl.constexpr = OUT * (9 * IN + 1)
    store_sums(sums, partials_ptr + tl.program_id(0) * size, first, IN, OUT, K, N)


def pad_channels(channels: int) -> int:
    """Power of two for tl.dot, which wants at least 16."""
    return max(16, triton.next_power_of_2(channels))


def choose_side(channels: int, most: int) -> int:
    """How many of a row's four pixels one product takes: ``most`` numbers or a single pixel."""
    return min(4, max(1, most // triton.next_power_of_2(channels)))


def choose_span(in_channels: int, padded: int) -> tuple[int, int]:
    """How many blocks of the weight one program sums up, and how many programs share it.

    8192 numbers are 64 registers of each of 128 threads; more would go to memory.
    """
    blocks = triton.cdiv(9 * in_channels + 1, SUM_BLOCK)
    span = min(blocks, max(1, 8192 // (SUM_BLOCK * padded)))
    return span, triton.cdiv(blocks, span)


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
    result = x.new_empty((batch, height, width, out), dtype=dtype)
    windows = batch * triton.cdiv(height, 2) * triton.cdiv(width, 2)
    padded = pad_channels(out)
    side = choose_side(channels, 512 // padded)  # with more, registers spill
    convolve_pixels[(triton.cdiv(windows, WINDOWS),)](
        x,
        weight,
        weight if bias is None else bias,
        result,
        batch,
        height,
        width,
        IN=channels,
        OUT=out,
        N=padded,
        T=WINDOWS,
        SIDE=side,
        K=pad_channels(side * channels),
        TRANSPOSED=bias is None,
        num_warps=4,
    )
    return result


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve_all(x, weight, bias, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        batch, height, width, channels = x.shape
        out = weight.shape[0]
        pixels = batch * height * width
        span, shares = choose_span(channels, pad_channels(out))
        programs = min(PROGRAMS, triton.cdiv(pixels, PIXELS))
        partials = x.new_empty((programs, out * (9 * channels + 1)), dtype=torch.float32)
        sum_weight_gradient[(programs, shares)](
            x,
            grad,
            partials,
            pixels,
            height,
            width,
            IN=channels,
            OUT=out,
            N=pad_channels(out),
            M=PIXELS,
            K=SUM_BLOCK,
            SPAN=span,
            num_warps=4,
        )
        (totals,) = sum_partials(partials)
        grad_x = convolve_all(grad, weight, None, x.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, totals[:-out].view(weight.shape), totals[-out:]


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
