"""The decoder's steps around its blocks: normalise, double, GELU, add the skip; and the head.

Doubling is bilinear with the corners kept: fine row f of 2n lies at f · (n − 1) / (2n − 1)
among the n coarse ones. So coarse row i only touches the fine rows 2i − 1 … 2i + 2, and the
weight is the tent 1 − |f · (n − 1) − i · (2n − 1)| / (2n − 1), exact in integers. The weights
of a fine pixel sum to one, hence doubling commutes with the normalisation's scale and shift
and with the head's 1×1 convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels.norms import (
    combine_channels,
    gelu,
    gelu_slope,
    group_totals,
    load_channels,
    load_norm,
    read_norm,
    read_sums,
    save_norm,
    write_block,
    write_sums,
)
from ulvm.nn.kernels.sums import sum_partials

# A tile of 2048 numbers is 8 a thread: the four neighbours, skip and result fit the registers.
_TILE = 2048
_WARPS = 8
# Two programs for each of 132 multiprocessors; with more blocks the next kernel reads more sums.
_PROGRAMS = 264
# Up to here a program reads its whole image for the statistics itself (64 KB from the L2 cache),
# which takes less than launching a kernel that leaves partial sums behind.
_WHOLE = 16384
# Triton would otherwise compile anew for sizes of 1 and for multiples of 16.
_SIZES = ["height", "width", "blocks", "tiles", "batch", "classes"]


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
        sizes = _sizes(channels)
        norms = x.new_empty(batch, 2, 4, dtype=torch.float32)
        whole = triton.next_power_of_2(pixels) * sizes["C"] <= _WHOLE
        blocks = triton.cdiv(pixels, sizes["PIXELS"])
        if whole:
            partials = norms  # not read
        else:
            partials = x.new_empty(batch, blocks, 2, channels, dtype=torch.float32)
            _sum_block[(blocks, batch)](x, partials, height, width, **sizes)
        merged = torch.empty_like(skip, dtype=x.dtype)
        tiles, programs = _split(batch, 4 * pixels if doubled else pixels, sizes["PIXELS"])
        _merge[(programs, batch)](
            x,
            norm_weight,
            norm_bias,
            skip,
            merged,
            partials,
            norms,
            height,
            width,
            blocks,
            tiles,
            eps,
            DOUBLED=doubled,
            WHOLE=triton.next_power_of_2(pixels) if whole else 0,
            **sizes,
        )
        ctx.save_for_backward(x, norm_weight, norm_bias, norms)
        ctx.doubled, ctx.skip_dtype = doubled, skip.dtype
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, norms = ctx.saved_tensors
        grad = grad.contiguous()
        batch, height, width, channels = x.shape
        pixels = height * width
        sizes = _sizes(channels)
        tiles, blocks = _split(batch, grad[0, ..., 0].numel(), sizes["PIXELS"])
        d_up = torch.empty_like(grad)
        partials = x.new_empty(batch, blocks, 2, channels, dtype=torch.float32)
        _merge_d_up[(blocks, batch)](
            x,
            norm_weight,
            norm_bias,
            norms,
            grad,
            d_up,
            partials,
            height,
            width,
            tiles,
            DOUBLED=ctx.doubled,
            **sizes,
        )
        d_x = torch.empty_like(x)
        d_norm = torch.empty_like(partials[0, 0])  # (2, channels)
        _merge_d_x[(triton.cdiv(pixels, sizes["PIXELS"]) * batch + 1,)](
            x,
            norm_weight,
            norms,
            d_up,
            partials,
            d_x,
            d_norm,
            batch,
            height,
            width,
            blocks,
            DOUBLED=ctx.doubled,
            **sizes,
        )
        return d_x, d_norm[1], d_norm[0], None, grad.to(ctx.skip_dtype), None


class _HeadDouble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        batch, height, width, channels = x.shape
        classes = weight.shape[0]
        sizes = _sizes(channels)
        logits = x.new_empty(batch, classes, 2 * height, 2 * width, dtype=torch.float32)
        _head[(triton.cdiv(4 * height * width, sizes["PIXELS"]), batch)](
            x, weight, bias, logits, height, width, classes, **sizes
        )
        ctx.save_for_backward(x, weight)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        batch, height, width, channels = x.shape
        classes = weight.shape[0]
        sizes = _sizes(channels)
        blocks = triton.cdiv(height * width, sizes["PIXELS"])
        d_x = torch.empty_like(x)
        # Of each program: the weight's gradient, then the bias's.
        partials = grad.new_empty(batch * blocks, classes * (channels + 1))
        _head_d_x[(blocks, batch)](
            x, weight, grad.contiguous(), d_x, partials, height, width, classes, **sizes
        )
        (totals,) = sum_partials(partials)
        d_weight, d_bias = totals.split([classes * channels, classes])
        return d_x, d_weight.view_as(weight), d_bias


def _sizes(channels: int) -> dict[str, int]:
    """The constants that every kernel here takes: padded and real channels, pixels of a tile."""
    padded = triton.next_power_of_2(channels)
    return {"C": padded, "CHANNELS": channels, "PIXELS": _TILE // padded, "num_warps": _WARPS}


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
def _place(pixel, keep, C: tl.constexpr, CHANNELS: tl.constexpr):
    """Offsets and mask (pixels, C) of the channels of some pixels."""
    channel = tl.arange(0, C)[None, :]
    return pixel[:, None] * CHANNELS + channel, keep[:, None] & (channel < CHANNELS)


@triton.jit
def _read(ptr, pixel, keep, C: tl.constexpr, CHANNELS: tl.constexpr):
    """float32 (pixels, C) of an activation; zero outside."""
    offset, mask = _place(pixel, keep, C, CHANNELS)
    return tl.load(ptr + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _read_up(
    x_ptr,
    image,
    pixel,
    keep,
    height,
    width,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    DOUBLED: tl.constexpr,
):
    """float32 (pixels, C) of the doubled map of coarse ``height`` by ``width``, or of the map."""
    x_ptr += image * height * width * CHANNELS
    if not DOUBLED:
        return _read(x_ptr, pixel, keep, C, CHANNELS)
    row, column = pixel // (2 * width), pixel % (2 * width)
    top = tl.maximum((row - 1) // 2, 0)
    bottom = tl.minimum((row + 1) // 2, height - 1)
    left = tl.maximum((column - 1) // 2, 0)
    right = tl.minimum((column + 1) // 2, width - 1)
    across = _tent(column, right, width)[:, None]
    upper = _read(x_ptr, top * width + left, keep, C, CHANNELS)
    upper += across * (_read(x_ptr, top * width + right, keep, C, CHANNELS) - upper)
    lower = _read(x_ptr, bottom * width + left, keep, C, CHANNELS)
    lower += across * (_read(x_ptr, bottom * width + right, keep, C, CHANNELS) - lower)
    return upper + _tent(row, bottom, height)[:, None] * (lower - upper)


@triton.jit(do_not_specialize=_SIZES)
def _sum_block(
    x_ptr,
    partials_ptr,
    height,
    width,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program leaves the partial sums of one tile of an image."""
    block, image = tl.program_id(0), tl.program_id(1)
    pixels = height * width
    pixel = block * PIXELS + tl.arange(0, PIXELS)
    values = _read(x_ptr + image * pixels * CHANNELS, pixel, pixel < pixels, C, CHANNELS)
    _, keep = _place(pixel, pixel < pixels, C, CHANNELS)
    count = tl.minimum(pixels - block * PIXELS, PIXELS)
    write_block(partials_ptr, image, block, tl.num_programs(0), values, keep, count, C, CHANNELS)


@triton.jit
def _norm_of_image(
    x_ptr, image, pixels, eps, WHOLE: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr
):
    """(C,) mean and 1/deviation of the group, from one read of the whole image."""
    pixel = tl.arange(0, WHOLE)
    values = _read(x_ptr + image * pixels * CHANNELS, pixel, pixel < pixels, C, CHANNELS)
    count = pixels.to(tl.float32)
    total = tl.sum(values, 0)
    offset = tl.where((pixel < pixels)[:, None], values - (total / count)[None, :], 0.0)
    return combine_channels(total, tl.sum(offset * offset, 0), count, eps, CHANNELS)


@triton.jit(do_not_specialize=_SIZES)
def _merge(
    x_ptr,
    weight_ptr,
    bias_ptr,
    skip_ptr,
    merged_ptr,
    partials_ptr,
    norms_ptr,
    height,
    width,
    blocks,
    tiles,
    eps,
    DOUBLED: tl.constexpr,
    WHOLE: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program gets its image's statistics and writes ``tiles`` tiles of the merged map."""
    image = tl.program_id(1)
    pixels = height * width
    if WHOLE:
        mean, rstd = _norm_of_image(x_ptr, image, pixels, eps, WHOLE, C, CHANNELS)
    else:
        mean, rstd = read_norm(partials_ptr, image, blocks, PIXELS, pixels, eps, C, CHANNELS)
    if tl.program_id(0) == 0:
        save_norm(norms_ptr, image, mean, rstd, C, CHANNELS)
    scale = rstd * load_channels(weight_ptr, C, CHANNELS)
    bias = load_channels(bias_ptr, C, CHANNELS)
    if DOUBLED:
        pixels *= 4
    tile = tl.program_id(0) * tiles
    end = tile + tiles
    while tile < end:
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        keep = pixel < pixels
        up = _read_up(x_ptr, image, pixel, keep, height, width, C, CHANNELS, DOUBLED)
        offset, mask = _place(image * pixels + pixel, keep, C, CHANNELS)
        skip = tl.load(skip_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        merged = gelu((up - mean[None, :]) * scale[None, :] + bias[None, :]) + skip
        tl.store(merged_ptr + offset, merged.to(merged_ptr.dtype.element_ty), mask=mask)
        tile += 1


@triton.jit(do_not_specialize=_SIZES)
def _merge_d_up(
    x_ptr,
    weight_ptr,
    bias_ptr,
    norms_ptr,
    grad_ptr,
    d_up_ptr,
    partials_ptr,
    height,
    width,
    tiles,
    DOUBLED: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program takes ``tiles`` tiles back through GELU and sums the norm's Σg and Σg·x̂.

    Both sums may run over the doubled map, for its weights sum to one: Σ up(x̂)·d = Σ x̂·upᵀ(d).
    """
    image = tl.program_id(1)
    mean, rstd = load_norm(norms_ptr, image, C, CHANNELS)
    weight = load_channels(weight_ptr, C, CHANNELS)
    bias = load_channels(bias_ptr, C, CHANNELS)
    pixels = height * width
    if DOUBLED:
        pixels *= 4
    sums = tl.zeros((PIXELS, C), tl.float32)
    products = tl.zeros((PIXELS, C), tl.float32)
    tile = tl.program_id(0) * tiles
    end = tile + tiles
    while tile < end:
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        keep = pixel < pixels
        up = _read_up(x_ptr, image, pixel, keep, height, width, C, CHANNELS, DOUBLED)
        normal = (up - mean[None, :]) * rstd[None, :]
        offset, mask = _place(image * pixels + pixel, keep, C, CHANNELS)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        d_up = grad * gelu_slope(normal * weight[None, :] + bias[None, :])
        tl.store(d_up_ptr + offset, d_up.to(d_up_ptr.dtype.element_ty), mask=mask)
        sums += d_up
        products += d_up * normal
        tile += 1
    write_sums(
        partials_ptr,
        image,
        tl.program_id(0),
        tl.num_programs(0),
        tl.sum(sums, 0),
        tl.sum(products, 0),
        C,
        CHANNELS,
    )


@triton.jit
def _read_up_transposed(
    fine_ptr,
    image,
    pixel,
    keep,
    height,
    width,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """float32 (pixels, C): each coarse pixel gathers from its 4 by 4 fine ones what it gave."""
    fine_ptr += image * 4 * height * width * CHANNELS
    row, column = pixel // width, pixel % width
    gathered = tl.zeros((pixel.shape[0], C), tl.float32)
    for down in tl.static_range(4):
        fine_row = 2 * row - 1 + down
        in_height = keep & (fine_row >= 0) & (fine_row < 2 * height)
        row_weight = _tent(fine_row, row, height)
        for across in tl.static_range(4):
            fine_column = 2 * column - 1 + across
            inside = in_height & (fine_column >= 0) & (fine_column < 2 * width)
            weight = row_weight * _tent(fine_column, column, width)
            fine = _read(fine_ptr, fine_row * 2 * width + fine_column, inside, C, CHANNELS)
            gathered += weight[:, None] * fine
    return gathered


@triton.jit(do_not_specialize=_SIZES)
def _merge_d_x(
    x_ptr,
    weight_ptr,
    norms_ptr,
    d_up_ptr,
    partials_ptr,
    d_x_ptr,
    d_norm_ptr,
    batch,
    height,
    width,
    blocks,
    DOUBLED: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Program 0 adds up the parameters' gradients; each other one writes a tile of d_x."""
    if tl.program_id(0) == 0:
        sums, products = read_sums(partials_ptr, 0, batch * blocks, C, CHANNELS)
        write_sums(d_norm_ptr, 0, 0, 1, sums, products, C, CHANNELS)
    else:
        pixels = height * width
        programs = tl.cdiv(pixels, PIXELS)
        image = (tl.program_id(0) - 1) // programs
        pixel = (tl.program_id(0) - 1) % programs * PIXELS + tl.arange(0, PIXELS)
        keep = pixel < pixels
        if DOUBLED:
            d_normal = _read_up_transposed(d_up_ptr, image, pixel, keep, height, width, C, CHANNELS)
        else:
            d_normal = _read(d_up_ptr, image * pixels + pixel, keep, C, CHANNELS)

        mean, rstd = load_norm(norms_ptr, image, C, CHANNELS)
        weight = load_channels(weight_ptr, C, CHANNELS)
        sums, products = read_sums(partials_ptr, image, blocks, C, CHANNELS)
        GROUP: tl.constexpr = CHANNELS // 4
        count = (pixels * GROUP).to(tl.float32)
        mean_sum = group_totals(weight * sums, GROUP) / count
        mean_product = group_totals(weight * products, GROUP) / count
        offset, mask = _place(image * pixels + pixel, keep, C, CHANNELS)
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        normal = (x - mean[None, :]) * rstd[None, :]
        d_x = d_normal * weight[None, :] - mean_sum[None, :] - normal * mean_product[None, :]
        d_x *= rstd[None, :]
        tl.store(d_x_ptr + offset, d_x.to(d_x_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _head(
    x_ptr,
    weight_ptr,
    bias_ptr,
    logits_ptr,
    height,
    width,
    classes,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program doubles the features of one tile of fine pixels and writes all their logits."""
    image = tl.program_id(1)
    fine_pixels = 4 * height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    keep = pixel < fine_pixels
    up = _read_up(x_ptr, image, pixel, keep, height, width, C, CHANNELS, True)
    of_class = 0
    while of_class < classes:
        weight = load_channels(weight_ptr + of_class * CHANNELS, C, CHANNELS)
        logits = tl.sum(up * weight[None, :], 1) + tl.load(bias_ptr + of_class)
        plane = (image * classes + of_class) * fine_pixels
        tl.store(logits_ptr + plane + pixel, logits, mask=keep)
        of_class += 1


@triton.jit(do_not_specialize=_SIZES)
def _head_d_x(
    x_ptr,
    weight_ptr,
    grad_ptr,
    d_x_ptr,
    partials_ptr,
    height,
    width,
    classes,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program writes d_x of one tile of coarse pixels and sums its share for weight and bias."""
    image = tl.program_id(1)
    pixels = height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    keep = pixel < pixels
    channel = tl.arange(0, C)
    offset, mask = _place(image * pixels + pixel, keep, C, CHANNELS)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    d_x = tl.zeros((PIXELS, C), tl.float32)
    partials_ptr += (image * tl.num_programs(0) + tl.program_id(0)) * classes * (CHANNELS + 1)
    of_class = 0
    while of_class < classes:
        plane = image * classes + of_class
        d_low = _read_up_transposed(grad_ptr, plane, pixel, keep, height, width, 1, 1)
        d_x += d_low * load_channels(weight_ptr + of_class * CHANNELS, C, CHANNELS)[None, :]
        d_weight = tl.sum(x * d_low, 0)
        tl.store(partials_ptr + of_class * CHANNELS + channel, d_weight, mask=channel < CHANNELS)
        tl.store(partials_ptr + classes * CHANNELS + of_class, tl.sum(d_low))
        of_class += 1
    tl.store(d_x_ptr + offset, d_x.to(d_x_ptr.dtype.element_ty), mask=mask)
