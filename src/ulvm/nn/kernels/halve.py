"""Half the size: (3×3 convolution,) GroupNorm of four groups, 2×2 max-pool, GELU.

The full-size maps never reach memory on the way forward. Normalisation keeps the order of a
channel's values (or turns it round, by the sign of its weight), so the convolution's own maximum
(or minimum) is pooled at once and normalised later, when the statistics are complete.

A *block* is P pooled pixels of one image and the 4·P pixels under them, the four places of the
2×2 windows one after the other: places in row-major order, each with P pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels import device
from ulvm.nn.kernels.arrays import keep, kept, scratch, split_as
from ulvm.nn.kernels.conv import (
    HALVING_ROW,
    WINDOWS,
    Plane,
    Spots,
    add_products,
    convolve,
    convolve_all,
    convolve_windows,
    gradient_sizes,
    sizes_of,
    store_sums,
    window_sizes,
    zero_sums,
)
from ulvm.nn.kernels.halve_picture import convolve_picture_back, hand_in_norms
from ulvm.nn.kernels.norms import (
    GROUPS,
    gelu,
    gelu_slope,
    load_channels,
    load_image_norm,
    norm_gradient,
    places,
    read_norm,
    save_norm,
    standardise,
    write_sums,
    zeros,
)
from ulvm.nn.kernels.sums import sum_partials

# Pooled pixels of a block on the way back: there are four rows for each, and wgmma wants 64.
POOLED_BACK = 16
PICTURE = 128  # windows of a picture on the way back, one for each thread
PROGRAMS = device.TWO_ON_EACH  # on the way back: as many as the chip holds at once
ELEMENTS = 2048  # numbers of an elementwise program: 16 of each of 128 threads


class Pointers(NamedTuple):
    """What the kernels here read and write; None where one does not. Pooled maps have half the
    height and width; OUT is the number of channels of all maps but a convolution's input."""

    x: Any  # (batch, height, width, IN), or OUT where nothing is convolved
    norm_weight: Any  # (OUT,)
    norm_bias: Any  # (OUT,)
    norm: Any = None  # (batch, 2, 4): each group's mean and 1/deviation
    y: Any = None  # pooled, the result
    d_y: Any = None  # pooled
    d_x: Any = None  # as x
    weight: Any = None  # (OUT, IN, 3, 3)
    bias: Any = None  # (OUT,)
    pooled: Any = None  # pooled, before the norm
    place: Any = None  # pooled, uint8: which of a window's four pixels it is; None is not kept
    partials: Any = None  # (batch, blocks, 2, OUT): sums and centred squares of the convolution
    d_normal: Any = None  # pooled, float32: the gradient g before GELU
    d_partials: Any = None  # (batch, blocks, 2, OUT): the sums of g and of g · x̂
    d_raw: Any = None  # (batch, height, width, OUT): the convolution's gradient; None is not kept
    d_parameters: Any = None  # (programs, numbers): of the convolution, then of the norm


@triton.jit
def find_windows(block, pooled, half, P: tl.constexpr):
    """Block of an image → (4·P,) row, column, and whether it exists.

    ``pooled`` pixels in rows of ``half`` are what the image has after pooling.
    """
    number = tl.arange(0, 4 * P)
    place = number // P
    pixel = block * P + number % P
    row = pixel // half * 2 + place // 2
    column = pixel % half * 2 + place % 2
    return row, column, pixel < pooled


@triton.jit
def find_pooled(image, block, pooled, P: tl.constexpr, S: tl.constexpr):
    """Block of an image → (P, C) places in a map (batch, pooled, CHANNELS), and which exist."""
    pixel = block * P + tl.arange(0, P)
    return places(image * pooled + pixel, pixel < pooled, S)


@triton.jit
def to_place(values, place, P: tl.constexpr, C: tl.constexpr):
    """(P, C) values and places → (4·P, C), each value at its place and zeros elsewhere."""
    each = tl.arange(0, 4)[:, None, None]
    return tl.reshape(tl.where(each == place[None, :, :], values[None, :, :], 0.0), (4 * P, C))


@triton.jit
def convolve_and_pool(p, height, width, S: tl.constexpr, P: tl.constexpr):
    """A program convolves P windows, keeps each one's winner (and its place), and the sums."""
    C: tl.constexpr = S.C
    block, image = tl.program_id(0), tl.program_id(1)
    half = width // 2
    pooled = height // 2 * half
    window = block * P + tl.arange(0, P)
    inside = window < pooled
    kind: tl.constexpr = p.pooled.dtype.element_ty
    at = Spots(image, window // half * 2, window % half * 2, inside)
    raw = convolve_windows(Plane(p.x, height, width), at, p.weight, S, kind, False)
    bias = load_channels(p.bias, S)
    weight = load_channels(p.norm_weight, S)
    sign = tl.where(weight > 0, 1.0, tl.where(weight < 0, -1.0, 0.0))[None, :]  # 0: all are equal
    count = 4 * tl.minimum(pooled - block * P, P)
    total = tl.sum(raw[0] + raw[1] + raw[2] + raw[3], 0)  # windows outside are zero
    centred = zeros(P, C)
    best = raw[0]
    place = tl.zeros((P, C), tl.int32)
    for other in tl.static_range(4):
        off = tl.where(inside[:, None], raw[other] - (total / count)[None, :], 0.0)
        centred += off * off
        more = raw[other] * sign > best * sign
        best = tl.where(more, raw[other], best)
        place = tl.where(more, other, place)
    total += count * bias
    blocks = tl.num_programs(0)
    write_sums(p.partials, image, block, blocks, total, tl.sum(centred, 0), S)
    here, keep = find_pooled(image, block, pooled, P, S)
    tl.store(p.pooled + here, (best + bias[None, :]).to(kind), mask=keep)
    if p.place is not None:
        tl.store(p.place + here, place.to(tl.uint8), mask=keep)


@triton.jit
def normalise_pooled(p, pooled, blocks, block_pixels, eps, S: tl.constexpr, P: tl.constexpr):
    """A program finds its image's statistics and writes GELU(norm(·)) of P pooled pixels."""
    block, image = tl.program_id(0), tl.program_id(1)
    mean, rstd = read_norm(p.partials, image, blocks, block_pixels, 4 * pooled, eps, S)
    if block == 0:
        save_norm(p.norm, image, mean, rstd, S)
    scale = rstd * load_channels(p.norm_weight, S)
    bias = load_channels(p.norm_bias, S)
    here, keep = find_pooled(image, block, pooled, P, S)
    raw = tl.load(p.pooled + here, mask=keep, other=0.0).to(tl.float32)
    y = gelu((raw - mean[None, :]) * scale[None, :] + bias[None, :])
    tl.store(p.y + here, y.to(p.y.dtype.element_ty), mask=keep)


@triton.jit
def gelu_back(p, pooled, S: tl.constexpr, P: tl.constexpr):
    """A program takes P pooled pixels back through GELU: g, and the sums of g and of g · x̂."""
    block, image = tl.program_id(0), tl.program_id(1)
    norm = load_image_norm(p, image, S)
    here, keep = find_pooled(image, block, pooled, P, S)
    raw = tl.load(p.pooled + here, mask=keep, other=0.0).to(tl.float32)
    d_y = tl.load(p.d_y + here, mask=keep, other=0.0).to(tl.float32)
    normal = standardise(raw, norm)
    d_normal = d_y * gelu_slope(normal * norm.weight[None, :] + norm.bias[None, :])
    tl.store(p.d_normal + here, d_normal, mask=keep)
    sums, products = tl.sum(d_normal, 0), tl.sum(d_normal * normal, 0)
    write_sums(p.d_partials, image, block, tl.num_programs(0), sums, products, S)


@triton.jit
def convolve_back(p, height, width, blocks, S: tl.constexpr, P: tl.constexpr):
    """A program makes the convolution's gradient over every so many blocks of one image.

    It convolves again, adds up the parameters' gradients, and writes the gradient at full size
    where it is wanted. Programs along the third axis share the weight, SPAN blocks each.
    """
    image = tl.program_id(1)
    first = tl.program_id(2) * S.SPAN
    half = width // 2
    pooled = height // 2 * half
    norm = load_image_norm(p, image, S)
    shift, slope, sum_normal, sum_product = norm_gradient(
        p.d_partials, image, blocks, norm.weight, 4.0 * pooled, S
    )
    out = tl.arange(0, S.C)[None, :]
    plane = Plane(p.x, height, width)
    sums = zero_sums(S.SPAN, S.C)
    block = tl.program_id(0)
    while block * P < pooled:
        row, column, inside = find_windows(block, pooled, half, P)
        at = Spots(image, row, column, inside)
        raw = convolve(plane, at, p.weight, p.bias, S)  # (4·P, C)
        here, keep = find_pooled(image, block, pooled, P, S)
        d_normal = tl.load(p.d_normal + here, mask=keep, other=0.0) * norm.weight[None, :]
        place = tl.load(p.place + here, mask=keep, other=0).to(tl.int32)
        dense = shift[None, :] + standardise(raw, norm) * slope[None, :]
        d_raw = norm.rstd[None, :] * (to_place(d_normal, place, P, S.C) - dense)
        keep_all = inside[:, None] & (out < S.CHANNELS)
        d_raw = tl.where(keep_all, d_raw, 0.0)
        if p.d_raw is not None:  # known when compiled
            if first == 0:
                pixel = (image * height + row) * width + column
                there = p.d_raw + pixel[:, None] * S.CHANNELS + out
                tl.store(there, d_raw.to(p.d_raw.dtype.element_ty), mask=keep_all)
        sums = add_products(sums, d_raw, plane, at, first, S.IN)
        block += tl.num_programs(0)
    size: tl.constexpr = S.COUNT + 2 * S.CHANNELS
    numbers = p.d_parameters + (image * tl.num_programs(0) + tl.program_id(0)) * size
    store_sums(sums, numbers, first, S)
    hand_in_norms(numbers, sum_normal, sum_product, S)


class GroupSizes(NamedTuple):
    """What the kernels are compiled for that do a whole group of an image without a convolution."""

    CHANNELS: int
    SIZE: int  # channels of a group
    N: int  # that, padded
    P: int  # pooled pixels of a block


@triton.jit
def load_windows(p, image, group, block, height, width, S: tl.constexpr):
    """Block of a group → (4·P, N) values, their places and which exist."""
    row, column, inside = find_windows(block, height // 2 * (width // 2), width // 2, S.P)
    member = tl.arange(0, S.N)[None, :]
    keep = inside[:, None] & (member < S.SIZE)
    pixel = (image * height + row) * width + column
    here = pixel[:, None] * S.CHANNELS + group * S.SIZE + member
    return tl.load(p.x + here, mask=keep, other=0.0).to(tl.float32), here, keep


@triton.jit
def find_pooled_group(image, group, block, pooled, S: tl.constexpr):
    """Block of a group → (P, N) places in a map (batch, pooled, CHANNELS), and which exist."""
    pixel = block * S.P + tl.arange(0, S.P)[:, None]
    member = tl.arange(0, S.N)[None, :]
    here = (image * pooled + pixel) * S.CHANNELS + group * S.SIZE + member
    return here, (pixel < pooled) & (member < S.SIZE)


@triton.jit
def load_members(p, group, S: tl.constexpr):
    """(1, N) weight and bias of a group's channels, zero for padding."""
    member = tl.arange(0, S.N)
    here, keep = group * S.SIZE + member, member < S.SIZE
    weight = tl.load(p.norm_weight + here, mask=keep, other=0.0)
    return weight[None, :], tl.load(p.norm_bias + here, mask=keep, other=0.0)[None, :]


@triton.jit
def normalise_group(p, height, width, eps, S: tl.constexpr):
    """A program does a whole group of one image: statistics, then pool and GELU from the cache."""
    P: tl.constexpr = S.P
    N: tl.constexpr = S.N
    group, image = tl.program_id(0), tl.program_id(1)
    pooled = height // 2 * (width // 2)
    mean = 0.0
    centred = 0.0
    seen = 0.0
    block = 0
    while block * S.P < pooled:
        values, _, keep = load_windows(p, image, group, block, height, width, S)
        new = 4.0 * S.SIZE * tl.minimum(pooled - block * S.P, S.P)
        new_mean = tl.sum(values) / new
        off = tl.where(keep, values - new_mean, 0.0)
        apart = new_mean - mean
        centred += tl.sum(off * off) + apart * apart * (seen * new / (seen + new))
        mean += apart * (new / (seen + new))
        seen += new
        block += 1
    rstd = 1.0 / tl.sqrt_rn(centred / seen + eps)
    tl.store(p.norm + image * 2 * GROUPS + group, mean)
    tl.store(p.norm + image * 2 * GROUPS + GROUPS + group, rstd)

    weight, bias = load_members(p, group, S)
    block = 0
    while block * S.P < pooled:
        values, _, _ = load_windows(p, image, group, block, height, width, S)
        normal = (values - mean) * rstd * weight + bias
        y = gelu(tl.max(tl.reshape(normal, (4, P, N)), 0))
        here, keep = find_pooled_group(image, group, block, pooled, S)
        tl.store(p.y + here, y.to(p.y.dtype.element_ty), mask=keep)
        block += 1


@triton.jit
def gelu_back_windows(
    p, image, group, block, height, width, mean, rstd, weight, bias, S: tl.constexpr
):
    """Block of a group → (4·P, N) g and x̂, with their places and which exist."""
    P: tl.constexpr = S.P
    N: tl.constexpr = S.N
    values, here, keep = load_windows(p, image, group, block, height, width, S)
    normal = (values - mean) * rstd
    windows = tl.reshape(normal * weight + bias, (4, P, N))
    each = tl.arange(0, 4)[:, None, None]
    # The place of each window's largest, the first among equals, and that number.
    place = tl.min(tl.where(windows == tl.max(windows, 0)[None, :, :], each, 4), 0)
    largest = tl.sum(tl.where(each == place[None, :, :], windows, 0.0), 0)
    pooled = height // 2 * (width // 2)
    there, keep_pooled = find_pooled_group(image, group, block, pooled, S)
    d_y = tl.load(p.d_y + there, mask=keep_pooled, other=0.0).to(tl.float32)
    return to_place(d_y * gelu_slope(largest), place, S.P, S.N), normal, here, keep


@triton.jit
def normalise_group_back(p, height, width, S: tl.constexpr):
    """A program does a whole group of one image: the sums of g and g · x̂, then the gradient."""
    group, image = tl.program_id(0), tl.program_id(1)
    pooled = height // 2 * (width // 2)
    mean = tl.load(p.norm + image * 2 * GROUPS + group)
    rstd = tl.load(p.norm + image * 2 * GROUPS + GROUPS + group)
    weight, bias = load_members(p, group, S)
    sums, products = zeros(S.N), zeros(S.N)
    block = 0
    while block * S.P < pooled:
        d_normal, normal, _, _ = gelu_back_windows(
            p, image, group, block, height, width, mean, rstd, weight, bias, S
        )
        sums += tl.sum(d_normal, 0)
        products += tl.sum(d_normal * normal, 0)
        block += 1
    member = tl.arange(0, S.N)
    row = p.d_parameters + image * 2 * S.CHANNELS + group * S.SIZE + member
    tl.store(row, products, mask=member < S.SIZE)
    tl.store(row + S.CHANNELS, sums, mask=member < S.SIZE)

    members = 4.0 * pooled * S.SIZE
    shift = tl.sum(sums[None, :] * weight) / members
    slope = tl.sum(products[None, :] * weight) / members
    block = 0
    while block * S.P < pooled:
        d_normal, normal, here, keep = gelu_back_windows(
            p, image, group, block, height, width, mean, rstd, weight, bias, S
        )
        d_x = rstd * (d_normal * weight - shift - normal * slope)
        tl.store(p.d_x + here, d_x.to(p.d_x.dtype.element_ty), mask=keep)
        block += 1


class _ConvHalve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        dtype: torch.dtype,
        train: bool,
    ) -> Tensor:
        batch, height, width, channels = x.shape
        out = len(weight)
        shape = (batch, height // 2, width // 2, out)
        pixels = shape[1] * shape[2]
        windows = 2 * WINDOWS if channels < 8 else WINDOWS  # few channels leave registers free
        blocks = triton.cdiv(pixels, windows)
        p = Pointers(
            x,
            norm_weight,
            norm_bias,
            norm=scratch(x, batch, 2, 4),
            y=x.new_empty(shape, dtype=dtype),
            weight=weight,
            bias=bias,
            pooled=x.new_empty(shape, dtype=dtype),
            place=x.new_empty(shape, dtype=torch.uint8) if train else None,
            partials=scratch(x, batch, blocks, 2, out),
        )
        padded = triton.next_power_of_2(out)
        sizes = window_sizes(channels, out, max(8, padded), HALVING_ROW)
        convolve_and_pool[(blocks, batch)](p, height, width, S=sizes, P=windows, num_warps=4)
        sizes, elements = sizes_of(channels, out, padded), ELEMENTS // padded
        normalise_pooled[(triton.cdiv(pixels, elements), batch)](
            p, pixels, blocks, 4 * windows, eps, S=sizes, P=elements, num_warps=4
        )
        keep(ctx, p._replace(y=None, partials=None))
        return p.y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        p = kept(ctx, Pointers)
        batch, height, width, channels = p.x.shape
        out, wants_x = len(p.weight), ctx.needs_input_grad[0]
        pixels = p.pooled.shape[1] * p.pooled.shape[2]
        padded = triton.next_power_of_2(out)
        elements = ELEMENTS // padded
        blocks = triton.cdiv(pixels, elements)
        p = p._replace(
            d_y=d_y.contiguous(),
            d_normal=torch.empty_like(p.pooled, dtype=torch.float32),
            d_partials=scratch(p.x, batch, blocks, 2, out),
            d_raw=p.x.new_empty((batch, height, width, out)) if wants_x else None,
        )
        sizes = sizes_of(channels, out, padded)
        gelu_back[(blocks, batch)](p, pixels, S=sizes, P=elements, num_warps=4)
        if channels <= 3 and not wants_x:
            kernel, windows, shares = convolve_picture_back, PICTURE, out // 4
            programs = max(1, PROGRAMS // (batch * shares))
        else:
            kernel, windows = convolve_back, POOLED_BACK
            sizes, shares = gradient_sizes(channels, out)
            programs = triton.cdiv(PROGRAMS, batch)
        programs = min(triton.cdiv(pixels, windows), programs)
        p = p._replace(d_parameters=scratch(p.x, batch * programs, sizes.COUNT + 2 * out))
        kernel[(programs, batch, shares)](p, height, width, blocks, S=sizes, P=windows, num_warps=4)
        d_x = convolve_all(p.d_raw, p.weight, None, p.x.dtype) if wants_x else None
        (total,) = sum_partials(p.d_parameters)
        parameters = (p.weight, p.bias, p.norm_weight, p.norm_bias)
        return d_x, *split_as(total, *parameters), None, None, None


class _NormHalve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
        batch, height, width, channels = x.shape
        y = x.new_empty((batch, height // 2, width // 2, channels))
        p = Pointers(x, norm_weight, norm_bias, scratch(x, batch, 2, 4), y)
        normalise_group[(4, batch)](p, height, width, eps, S=_group_sizes(x), num_warps=8)
        keep(ctx, p._replace(y=None))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        p = kept(ctx, Pointers)
        batch, height, width, channels = p.x.shape
        p = p._replace(d_y=d_y.contiguous(), d_x=torch.empty_like(p.x))
        p = p._replace(d_parameters=scratch(p.x, batch, 2 * channels))
        normalise_group_back[(4, batch)](p, height, width, S=_group_sizes(p.x), num_warps=8)
        (total,) = sum_partials(p.d_parameters)
        return p.d_x, *split_as(total, p.norm_weight, p.norm_bias), None


def _group_sizes(x: Tensor) -> GroupSizes:
    """8192 numbers, 32 of each of 256 threads, hold a group of 32 channels at 32×32 at once."""
    _, height, width, channels = x.shape
    padded = triton.next_power_of_2(channels // 4)
    pooled = min(2048 // padded, triton.next_power_of_2(height * width // 4))
    return GroupSizes(channels, channels // 4, padded, pooled)


def conv_halve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """GELU(maxpool2(GroupNorm4(conv3×3(x)))).

    Args:
        x: (batch, height, width, in), contiguous, height and width even.
        weight, bias: float32 (out, in, 3, 3) and (out,); out is a multiple of four.
        norm_weight, norm_bias: float32 (out,).
        eps: Added to the variance.
        dtype: Of the result; that of x if None.

    Returns:
        (batch, height / 2, width / 2, out).
    """
    train = torch.is_grad_enabled()  # then backward needs the places
    return _ConvHalve.apply(x, weight, bias, norm_weight, norm_bias, eps, dtype or x.dtype, train)


def norm_halve(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
    """GELU(maxpool2(GroupNorm4(x))).

    Args:
        x: (batch, height, width, channels), contiguous, height and width even.
        norm_weight, norm_bias: float32 (channels,), a multiple of four.
        eps: Added to the variance.

    Returns:
        (batch, height / 2, width / 2, channels) in the dtype of x.
    """
    return _NormHalve.apply(x, norm_weight, norm_bias, eps)
