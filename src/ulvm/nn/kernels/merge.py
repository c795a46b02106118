"""The decoder's steps around its blocks: normalise, double, GELU, add the skip; and the head.

Doubling is bilinear with the corners kept: fine row f of 2n lies at f · (n − 1) / (2n − 1)
among the n coarse ones. So coarse row i only touches the fine rows 2i − 1 … 2i + 2, and the
weight is the tent 1 − |f · (n − 1) − i · (2n − 1)| / (2n − 1), exact in integers. The weights
of a fine pixel sum to one, hence doubling commutes with the normalisation's scale and shift
and with the head's 1×1 convolution.
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
from ulvm.nn.kernels.norms import (
    combine_channels,
    gelu,
    gelu_slope,
    load_channels,
    load_image_norm,
    norm_gradient,
    places,
    read_norm,
    read_sums,
    save_norm,
    standardise,
    write_sums,
    zeros,
)
from ulvm.nn.kernels.sums import sum_partials

# A tile of 2048 numbers is 8 a thread: the four neighbours, skip and result fit the registers.
_TILE = 2048
_WARPS = 8
# With more blocks the next kernel reads more sums.
_PROGRAMS = device.TWO_ON_EACH
# Up to here a program reads its whole image for the statistics itself (64 KB from the L2 cache),
# which takes less than launching a kernel that leaves partial sums behind.
_WHOLE = 16384
# Triton would otherwise compile anew for sizes of 1 and for multiples of 16.
_LENGTHS = ["height", "width", "blocks", "tiles", "batch", "classes"]


class Pointers(NamedTuple):
    """What the kernels here read and write; None where one does not. *Fine* maps have twice the
    height and width where they are doubled."""

    x: Any  # (batch, height, width, channels)
    norm_weight: Any = None  # (channels,)
    norm_bias: Any = None  # (channels,)
    norm: Any = None  # (batch, 2, 4): each group's mean and 1/deviation
    partials: Any = None  # (batch, blocks, 2, channels); None where a program reads all of x
    skip: Any = None  # (batch, fine height, fine width, channels)
    merged: Any = None  # (batch, fine height, fine width, channels)
    d_merged: Any = None  # (batch, fine height, fine width, channels)
    d_up: Any = None  # (batch, fine height, fine width, channels), before GELU
    d_x: Any = None  # (batch, height, width, channels)
    d_norm: Any = None  # (2, channels): of bias and weight
    weight: Any = None  # (classes, channels)
    bias: Any = None  # (classes,)
    logits: Any = None  # (batch, classes, fine height, fine width)
    d_logits: Any = None  # (batch, classes, fine height, fine width)
    d_parameters: Any = None  # (programs, classes · (channels + 1)): of weight, then of bias


class Sizes(NamedTuple):
    """What the kernels are compiled for."""

    CHANNELS: int
    C: int  # that, padded
    PIXELS: int  # of a tile
    DOUBLED: bool = True
    WHOLE: int = 0  # pixels of an image, padded, where a program reads all of it


def norm_merge(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, skip: Tensor, doubled: bool
) -> Tensor:
    """GELU(up(GroupNorm4(x))) + skip.

    Args:
        x: (batch, height, width, channels), channels a multiple of 4.
        norm_weight, norm_bias: (channels,), float32.
        eps: The normalisation's, added to the variance.
        skip: (batch, 2·height, 2·width, channels) if doubled, else the shape of ``x``.
        doubled: Whether up is bilinear doubling with the corners kept, or nothing.

    Returns:
        The shape of ``skip``, the type of ``x``.
    """
    return _NormMerge.apply(x, norm_weight, norm_bias, eps, skip, doubled)


def head_double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1×1 convolution to classes, then bilinear doubling with the corners kept.

    Args:
        x: (batch, height, width, channels).
        weight: (classes, channels, 1, 1), float32.
        bias: (classes,), float32.

    Returns:
        Logits, float32 (batch, classes, 2·height, 2·width).
    """
    return _HeadDouble.apply(x, weight, bias)


class _NormMerge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        skip: Tensor,
        doubled: bool,
    ) -> Tensor:
        x, skip = x.contiguous(), skip.contiguous()
        batch, height, width, channels = x.shape
        pixels = height * width
        sizes = _sizes(channels)._replace(DOUBLED=doubled)
        p = Pointers(
            x,
            norm_weight,
            norm_bias,
            norm=scratch(x, batch, 2, 4),
            skip=skip,
            merged=torch.empty_like(skip, dtype=x.dtype),
        )
        blocks = triton.cdiv(pixels, sizes.PIXELS)
        if triton.next_power_of_2(pixels) * sizes.C <= _WHOLE:
            sizes = sizes._replace(WHOLE=triton.next_power_of_2(pixels))
        else:
            p = p._replace(partials=scratch(x, batch, blocks, 2, channels))
            _sum_block[(blocks, batch)](p, height, width, S=sizes, num_warps=_WARPS)
        tiles, programs = _split(batch, 4 * pixels if doubled else pixels, sizes.PIXELS)
        _merge[(programs, batch)](p, height, width, blocks, tiles, eps, S=sizes, num_warps=_WARPS)
        keep(ctx, p._replace(skip=None, merged=None, partials=None))
        ctx.sizes, ctx.skip_dtype = sizes, skip.dtype
        return p.merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_merged: Tensor) -> tuple[Tensor | None, ...]:
        p = kept(ctx, Pointers)
        d_merged = d_merged.contiguous()
        batch, height, width, channels = p.x.shape
        sizes = ctx.sizes._replace(WHOLE=0)
        tiles, blocks = _split(batch, d_merged[0, ..., 0].numel(), sizes.PIXELS)
        p = p._replace(
            partials=scratch(p.x, batch, blocks, 2, channels),
            d_merged=d_merged,
            d_up=torch.empty_like(d_merged),
            d_x=torch.empty_like(p.x),
            d_norm=scratch(p.x, 2, channels),
        )
        _merge_back[(blocks, batch)](p, height, width, tiles, S=sizes, num_warps=_WARPS)
        programs = triton.cdiv(height * width, sizes.PIXELS) * batch + 1
        _norm_back[(programs,)](p, batch, height, width, blocks, S=sizes, num_warps=_WARPS)
        return p.d_x, p.d_norm[1], p.d_norm[0], None, d_merged.to(ctx.skip_dtype), None


class _HeadDouble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        batch, height, width, channels = x.shape
        classes, sizes = len(weight), _sizes(channels)
        logits = scratch(x, batch, classes, 2 * height, 2 * width)
        p = Pointers(x, weight=weight, bias=bias, logits=logits)
        programs = triton.cdiv(4 * height * width, sizes.PIXELS)
        _head[(programs, batch)](p, height, width, classes, S=sizes, num_warps=_WARPS)
        keep(ctx, p._replace(logits=None))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = kept(ctx, Pointers)
        batch, height, width, channels = p.x.shape
        classes, sizes = len(p.weight), {"S": _sizes(channels), "PLANE": _sizes(1)}  # of one class
        blocks = triton.cdiv(height * width, sizes["S"].PIXELS)
        p = p._replace(
            d_x=torch.empty_like(p.x),
            d_logits=d_logits.contiguous(),
            d_parameters=scratch(p.x, batch * blocks, classes * (channels + 1)),
        )
        _head_back[(blocks, batch)](p, height, width, classes, **sizes, num_warps=_WARPS)
        (total,) = sum_partials(p.d_parameters)
        return p.d_x, *split_as(total, p.weight, p.bias)


def _sizes(channels: int) -> Sizes:
    padded = triton.next_power_of_2(channels)
    return Sizes(channels, padded, _TILE // padded)


def _split(batch: int, pixels: int, pixels_per_tile: int) -> tuple[int, int]:
    """Tiles that each program takes one after the other, and programs for each image."""
    tiles = triton.cdiv(pixels, pixels_per_tile)
    tiles_per_program = triton.cdiv(tiles, triton.cdiv(_PROGRAMS, batch))
    return tiles_per_program, triton.cdiv(tiles, tiles_per_program)


@triton.jit
def _tent(fine, coarse, size):
    """Weight of a coarse row in a fine one that it touches; columns alike."""
    span = 2 * size - 1
    return 1.0 - tl.abs(fine * (size - 1) - coarse * span).to(tl.float32) / span


@triton.jit
def _read(pointer, pixel, keep, S: tl.constexpr):
    """float32 (pixels, C) of an activation; zero outside."""
    here, mask = places(pixel, keep, S)
    return tl.load(pointer + here, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _read_up(x, image, pixel, keep, height, width, S: tl.constexpr):
    """float32 (pixels, C) of the doubled map of coarse ``height`` by ``width``, or of the map."""
    x += image * height * width * S.CHANNELS
    if not S.DOUBLED:
        return _read(x, pixel, keep, S)
    row, column = pixel // (2 * width), pixel % (2 * width)
    top = tl.maximum((row - 1) // 2, 0)
    bottom = tl.minimum((row + 1) // 2, height - 1)
    left = tl.maximum((column - 1) // 2, 0)
    right = tl.minimum((column + 1) // 2, width - 1)
    across = _tent(column, right, width)[:, None]
    upper = _read(x, top * width + left, keep, S)
    upper += across * (_read(x, top * width + right, keep, S) - upper)
    lower = _read(x, bottom * width + left, keep, S)
    lower += across * (_read(x, bottom * width + right, keep, S) - lower)
    return upper + _tent(row, bottom, height)[:, None] * (lower - upper)


@triton.jit
def _sum_pixels(x, image, pixel, count, pixels, S: tl.constexpr):
    """(C,) sums over ``count`` pixels, and sums of squared differences from their mean."""
    inside = pixel < pixels
    values = _read(x + image * pixels * S.CHANNELS, pixel, inside, S)
    total = tl.sum(values, 0)
    offset = tl.where(inside[:, None], values - (total / count)[None, :], 0.0)
    return total, tl.sum(offset * offset, 0)


@triton.jit(do_not_specialize=_LENGTHS)
def _sum_block(p, height, width, S: tl.constexpr):
    """A program leaves the partial sums of one tile of an image."""
    block, image = tl.program_id(0), tl.program_id(1)
    pixels = height * width
    pixel = block * S.PIXELS + tl.arange(0, S.PIXELS)
    count = tl.minimum(pixels - block * S.PIXELS, S.PIXELS)
    total, centred = _sum_pixels(p.x, image, pixel, count, pixels, S)
    write_sums(p.partials, image, block, tl.num_programs(0), total, centred, S)


@triton.jit(do_not_specialize=_LENGTHS)
def _merge(p, height, width, blocks, tiles, eps, S: tl.constexpr):
    """A program gets its image's statistics and writes ``tiles`` tiles of the merged map."""
    image = tl.program_id(1)
    pixels = height * width
    if p.partials is None:
        count = pixels.to(tl.float32)
        total, centred = _sum_pixels(p.x, image, tl.arange(0, S.WHOLE), count, pixels, S)
        mean, rstd = combine_channels(total, centred, count, eps, S)
    else:
        mean, rstd = read_norm(p.partials, image, blocks, S.PIXELS, pixels, eps, S)
    if tl.program_id(0) == 0:
        save_norm(p.norm, image, mean, rstd, S)
    scale = rstd * load_channels(p.norm_weight, S)
    bias = load_channels(p.norm_bias, S)
    if S.DOUBLED:
        pixels *= 4
    tile = tl.program_id(0) * tiles
    end = tile + tiles
    while tile < end:
        pixel = tile * S.PIXELS + tl.arange(0, S.PIXELS)
        keep = pixel < pixels
        up = _read_up(p.x, image, pixel, keep, height, width, S)
        here, mask = places(image * pixels + pixel, keep, S)
        skip = tl.load(p.skip + here, mask=mask, other=0.0).to(tl.float32)
        merged = gelu((up - mean[None, :]) * scale[None, :] + bias[None, :]) + skip
        tl.store(p.merged + here, merged.to(p.merged.dtype.element_ty), mask=mask)
        tile += 1


@triton.jit(do_not_specialize=_LENGTHS)
def _merge_back(p, height, width, tiles, S: tl.constexpr):
    """A program takes ``tiles`` tiles back through GELU and sums the norm's Σg and Σg·x̂.

    Both sums may run over the doubled map, for its weights sum to one: Σ up(x̂)·d = Σ x̂·upᵀ(d).
    """
    image = tl.program_id(1)
    norm = load_image_norm(p, image, S)
    pixels = height * width
    if S.DOUBLED:
        pixels *= 4
    sums, products = zeros(S.PIXELS, S.C), zeros(S.PIXELS, S.C)
    tile = tl.program_id(0) * tiles
    end = tile + tiles
    while tile < end:
        pixel = tile * S.PIXELS + tl.arange(0, S.PIXELS)
        keep = pixel < pixels
        normal = standardise(_read_up(p.x, image, pixel, keep, height, width, S), norm)
        here, mask = places(image * pixels + pixel, keep, S)
        d_merged = tl.load(p.d_merged + here, mask=mask, other=0.0).to(tl.float32)
        d_up = d_merged * gelu_slope(normal * norm.weight[None, :] + norm.bias[None, :])
        tl.store(p.d_up + here, d_up.to(p.d_up.dtype.element_ty), mask=mask)
        sums += d_up
        products += d_up * normal
        tile += 1
    block, blocks = tl.program_id(0), tl.num_programs(0)
    sums, products = tl.sum(sums, 0), tl.sum(products, 0)
    write_sums(p.partials, image, block, blocks, sums, products, S)


@triton.jit
def _read_up_transposed(fine, image, pixel, keep, height, width, S: tl.constexpr):
    """float32 (pixels, C): each coarse pixel gathers from its 4 by 4 fine ones what it gave."""
    fine += image * 4 * height * width * S.CHANNELS
    row, column = pixel // width, pixel % width
    gathered = zeros(pixel.shape[0], S.C)
    for down in tl.static_range(4):
        fine_row = 2 * row - 1 + down
        in_height = keep & (fine_row >= 0) & (fine_row < 2 * height)
        row_weight = _tent(fine_row, row, height)
        for across in tl.static_range(4):
            fine_column = 2 * column - 1 + across
            inside = in_height & (fine_column >= 0) & (fine_column < 2 * width)
            weight = row_weight * _tent(fine_column, column, width)
            values = _read(fine, fine_row * 2 * width + fine_column, inside, S)
            gathered += weight[:, None] * values
    return gathered


@triton.jit(do_not_specialize=_LENGTHS)
def _norm_back(p, batch, height, width, blocks, S: tl.constexpr):
    """Program 0 adds up the parameters' gradients; each other one writes a tile of d_x."""
    if tl.program_id(0) == 0:
        sums, products = read_sums(p.partials, 0, batch * blocks, S)
        write_sums(p.d_norm, 0, 0, 1, sums, products, S)
    else:
        pixels = height * width
        programs = tl.cdiv(pixels, S.PIXELS)
        image = (tl.program_id(0) - 1) // programs
        pixel = (tl.program_id(0) - 1) % programs * S.PIXELS + tl.arange(0, S.PIXELS)
        keep = pixel < pixels
        if S.DOUBLED:
            d_normal = _read_up_transposed(p.d_up, image, pixel, keep, height, width, S)
        else:
            d_normal = _read(p.d_up, image * pixels + pixel, keep, S)
        norm = load_image_norm(p, image, S)
        shift, slope, _, _ = norm_gradient(
            p.partials, image, blocks, norm.weight, pixels.to(tl.float32), S
        )
        here, mask = places(image * pixels + pixel, keep, S)
        x = tl.load(p.x + here, mask=mask, other=0.0).to(tl.float32)
        normal = standardise(x, norm)
        d_x = d_normal * norm.weight[None, :] - shift[None, :] - normal * slope[None, :]
        d_x *= norm.rstd[None, :]
        tl.store(p.d_x + here, d_x.to(p.d_x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_LENGTHS)
def _head(p, height, width, classes, S: tl.constexpr):
    """A program doubles the features of one tile of fine pixels and writes all their logits."""
    image = tl.program_id(1)
    fine_pixels = 4 * height * width
    pixel = tl.program_id(0) * S.PIXELS + tl.arange(0, S.PIXELS)
    keep = pixel < fine_pixels
    up = _read_up(p.x, image, pixel, keep, height, width, S)
    of_class = 0
    while of_class < classes:
        weight = load_channels(p.weight + of_class * S.CHANNELS, S)
        logits = tl.sum(up * weight[None, :], 1) + tl.load(p.bias + of_class)
        plane = (image * classes + of_class) * fine_pixels
        tl.store(p.logits + plane + pixel, logits, mask=keep)
        of_class += 1


@triton.jit(do_not_specialize=_LENGTHS)
def _head_back(p, height, width, classes, S: tl.constexpr, PLANE: tl.constexpr):
    """A program writes d_x of one tile of coarse pixels and sums its share for weight and bias."""
    image = tl.program_id(1)
    pixels = height * width
    pixel = tl.program_id(0) * S.PIXELS + tl.arange(0, S.PIXELS)
    keep = pixel < pixels
    channel = tl.arange(0, S.C)
    here, mask = places(image * pixels + pixel, keep, S)
    x = tl.load(p.x + here, mask=mask, other=0.0).to(tl.float32)
    d_x = zeros(S.PIXELS, S.C)
    program = image * tl.num_programs(0) + tl.program_id(0)
    to = p.d_parameters + program * classes * (S.CHANNELS + 1)
    of_class = 0
    while of_class < classes:
        plane = image * classes + of_class
        d_low = _read_up_transposed(p.d_logits, plane, pixel, keep, height, width, PLANE)
        d_x += d_low * load_channels(p.weight + of_class * S.CHANNELS, S)[None, :]
        d_weight = tl.sum(x * d_low, 0)
        tl.store(to + of_class * S.CHANNELS + channel, d_weight, mask=channel < S.CHANNELS)
        tl.store(to + classes * S.CHANNELS + of_class, tl.sum(d_low))
        of_class += 1
    tl.store(p.d_x + here, d_x.to(p.d_x.dtype.element_ty), mask=mask)
