"""Half the size: (3×3 convolution,) GroupNorm of four groups, 2×2 max-pool, GELU.

The full-size maps never reach memory on the way forward. Normalisation keeps the order of a
channel's values (or turns it round, by the sign of its weight), so the convolution's own maximum
(or minimum) is pooled at once and normalised later, when the statistics are complete.

A *block* is P pooled pixels of one image and the 4·P pixels under them, the four places of the
2×2 windows one after the other: places in row-major order, each with P pixels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels.conv import (
    K_BLOCK,
    SUM_BLOCK,
    WINDOWS,
    add_products,
    choose_side,
    choose_span,
    convolve,
    convolve_all,
    convolve_windows,
    pad_channels,
    store_sums,
    zero_sums,
)
from ulvm.nn.kernels.norms import (
    GROUPS,
    gelu,
    gelu_slope,
    group_totals,
    load_channels,
    load_norm,
    read_norm,
    read_sums,
    save_norm,
    write_sums,
)
from ulvm.nn.kernels.sums import sum_partials

# Pooled pixels of a block on the way back: there are four rows for each, and wgmma wants 64.
POOLED_BACK = 16
PICTURE = 128  # windows of a picture on the way back, one for each thread
PROGRAMS = 264  # on the way back: as many as an H100's 132 multiprocessors hold at once
ELEMENTS = 2048  # numbers of an elementwise program: 16 of each of 128 threads


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
def find_pooled(image, block, pooled, P: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr):
    """Block of an image → (P, N) offsets in a map (batch, pooled, CHANNELS), and which exist."""
    pixel = block * P + tl.arange(0, P)[:, None]
    channel = tl.arange(0, N)[None, :]
    keep = (pixel < pooled) & (channel < CHANNELS)
    return (image * pooled + pixel) * CHANNELS + channel, keep


@triton.jit
def first_largest(keys, P: tl.constexpr, N: tl.constexpr):
    """(4·P, N) → (P, N) the place of each window's largest key, the first among equals."""
    each = tl.arange(0, 4)[:, None, None]
    windows = tl.reshape(keys, (4, P, N))
    largest = tl.max(windows, 0)
    return tl.min(tl.where(windows == largest[None, :, :], each, 4), 0)


@triton.jit
def at_place(values, place, P: tl.constexpr, N: tl.constexpr):
    """(4·P, N) values, (P, N) places → (P, N) the value at each window's place."""
    each = tl.arange(0, 4)[:, None, None]
    windows = tl.reshape(values, (4, P, N))
    return tl.sum(tl.where(each == place[None, :, :], windows, 0.0), 0)


@triton.jit
def to_place(values, place, P: tl.constexpr, N: tl.constexpr):
    """(P, N) values and places → (4·P, N), each value at its place and zeros elsewhere."""
    each = tl.arange(0, 4)[:, None, None]
    return tl.reshape(tl.where(each == place[None, :, :], values[None, :, :], 0.0), (4 * P, N))


@triton.jit
def convolve_and_pool(
    x_ptr,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    pooled_ptr,
    place_ptr,
    partials_ptr,
    height,
    width,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    KEEP: tl.constexpr,
):
    """A program convolves P windows, keeps each one's winner (its place if KEEP), and the sums."""
    block, image = tl.program_id(0), tl.program_id(1)
    half = width // 2
    pooled = height // 2 * half
    window = block * P + tl.arange(0, P)
    inside = window < pooled
    kind: tl.constexpr = pooled_ptr.dtype.element_ty
    raw = convolve_windows(
        x_ptr,
        weight_ptr,
        image,
        window // half * 2,
        window % half * 2,
        inside,
        height,
        width,
        IN,
        OUT,
        SIDE,
        K,
        N,
        kind,
        False,
    )
    bias = load_channels(bias_ptr, N, OUT)
    weight = load_channels(norm_weight_ptr, N, OUT)
    sign = tl.where(weight > 0, 1.0, tl.where(weight < 0, -1.0, 0.0))[None, :]  # 0: all are equal
    count = 4 * tl.minimum(pooled - block * P, P)
    total = tl.sum(raw[0] + raw[1] + raw[2] + raw[3], 0)  # windows outside are zero
    centred = tl.zeros((P, N), tl.float32)
    best = raw[0]
    place = tl.zeros((P, N), tl.int32)
    for other in tl.static_range(4):
        off = tl.where(inside[:, None], raw[other] - (total / count)[None, :], 0.0)
        centred += off * off
        more = raw[other] * sign > best * sign
        best = tl.where(more, raw[other], best)
        place = tl.where(more, other, place)
    total += count * bias
    blocks = tl.num_programs(0)
    write_sums(partials_ptr, image, block, blocks, total, tl.sum(centred, 0), N, OUT)
    here, keep = find_pooled(image, block, pooled, P, N, OUT)
    tl.store(pooled_ptr + here, (best + bias[None, :]).to(kind), mask=keep)
    if KEEP:
        tl.store(place_ptr + here, place.to(tl.uint8), mask=keep)


@triton.jit
def normalise_pooled(
    pooled_ptr,
    partials_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    result_ptr,
    norm_ptr,
    pooled,
    blocks,
    pixels_per_block,
    eps,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """A program finds its image's statistics and writes GELU(norm(·)) of P pooled pixels."""
    block, image = tl.program_id(0), tl.program_id(1)
    mean, rstd = read_norm(
        partials_ptr, image, blocks, pixels_per_block, 4 * pooled, eps, N, CHANNELS
    )
    if block == 0:
        save_norm(norm_ptr, image, mean, rstd, N, CHANNELS)
    scale = rstd * load_channels(norm_weight_ptr, N, CHANNELS)
    bias = load_channels(norm_bias_ptr, N, CHANNELS)
    here, keep = find_pooled(image, block, pooled, P, N, CHANNELS)
    raw = tl.load(pooled_ptr + here, mask=keep, other=0.0).to(tl.float32)
    result = gelu((raw - mean[None, :]) * scale[None, :] + bias[None, :])
    tl.store(result_ptr + here, result.to(result_ptr.dtype.element_ty), mask=keep)


@triton.jit
def slope_pooled(
    grad_ptr,
    pooled_ptr,
    norm_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    inner_ptr,
    partials_ptr,
    pooled,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """A program takes P pooled pixels back through GELU: g, and the sums of g and of g · x̂."""
    block, image = tl.program_id(0), tl.program_id(1)
    mean, rstd = load_norm(norm_ptr, image, N, CHANNELS)
    weight = load_channels(norm_weight_ptr, N, CHANNELS)
    bias = load_channels(norm_bias_ptr, N, CHANNELS)
    here, keep = find_pooled(image, block, pooled, P, N, CHANNELS)
    raw = tl.load(pooled_ptr + here, mask=keep, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + here, mask=keep, other=0.0).to(tl.float32)
    normal = (raw - mean[None, :]) * rstd[None, :]
    inner = grad * gelu_slope(normal * weight[None, :] + bias[None, :])
    tl.store(inner_ptr + here, inner, mask=keep)
    write_sums(
        partials_ptr,
        image,
        block,
        tl.num_programs(0),
        tl.sum(inner, 0),
        tl.sum(inner * normal, 0),
        N,
        CHANNELS,
    )


@triton.jit
def hand_in_norms(
    row_ptr, sum_inner, sum_product, IN: tl.constexpr, OUT: tl.constexpr, N: tl.constexpr
):
    """An image's sums are also the normalisation's gradients; one of its programs hands them in."""
    share = tl.where(tl.program_id(0) == 0, 1.0, 0.0)
    channel = tl.arange(0, N)
    norms_ptr = row_ptr + OUT * (9 * IN + 1) + channel
    tl.store(norms_ptr, sum_product * share, mask=channel < OUT)
    tl.store(norms_ptr + OUT, sum_inner * share, mask=channel < OUT)


@triton.jit
def convolve_back(
    x_ptr,
    weight_ptr,
    bias_ptr,
    norm_ptr,
    norm_weight_ptr,
    inner_ptr,
    place_ptr,
    inner_partials_ptr,
    raw_grad_ptr,
    partials_ptr,
    height,
    width,
    inner_blocks,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    SPAN: tl.constexpr,
    KEEP: tl.constexpr,
):
    """A program makes the convolution's gradient over every so many blocks of one image.

    It convolves again, adds up the parameters' gradients, and writes the gradient at full size
    if KEEP. Programs along the third axis share the weight, SPAN blocks of S numbers each.
    """
    image = tl.program_id(1)
    first = tl.program_id(2) * SPAN
    half = width // 2
    pooled = height // 2 * half
    mean, rstd = load_norm(norm_ptr, image, N, OUT)
    weight = load_channels(norm_weight_ptr, N, OUT)
    sum_inner, sum_product = read_sums(inner_partials_ptr, image, inner_blocks, N, OUT)
    members = 4.0 * pooled * (OUT // GROUPS)
    shift = group_totals(weight * sum_inner, OUT // GROUPS) / members
    slope = group_totals(weight * sum_product, OUT // GROUPS) / members
    out = tl.arange(0, N)[None, :]

    sums = zero_sums(SPAN, S, N)
    block = tl.program_id(0)
    while block * P < pooled:
        row, column, inside = find_windows(block, pooled, half, P)
        raw = convolve(
            x_ptr,
            weight_ptr,
            bias_ptr,
            image,
            row,
            column,
            inside,
            height,
            width,
            IN,
            OUT,
            K,
            N,
        )  # (4·P, N)
        here, keep = find_pooled(image, block, pooled, P, N, OUT)
        inner = tl.load(inner_ptr + here, mask=keep, other=0.0) * weight[None, :]
        place = tl.load(place_ptr + here, mask=keep, other=0).to(tl.int32)
        normal = (raw - mean[None, :]) * rstd[None, :]
        dense = shift[None, :] + normal * slope[None, :]
        grad = rstd[None, :] * (to_place(inner, place, P, N) - dense)
        keep_all = inside[:, None] & (out < OUT)
        grad = tl.where(keep_all, grad, 0.0)
        if KEEP:  # known when compiled
            if first == 0:
                pixel = (image * height + row) * width + column
                there = raw_grad_ptr + pixel[:, None] * OUT + out
                tl.store(there, grad.to(raw_grad_ptr.dtype.element_ty), mask=keep_all)
        sums = add_products(
            sums, grad, x_ptr, first, image, row, column, inside, height, width, IN, S
        )
        block += tl.num_programs(0)

    size: tl.constexpr = OUT * (9 * IN + 3)
    row_ptr = partials_ptr + (image * tl.num_programs(0) + tl.program_id(0)) * size
    store_sums(sums, row_ptr, first, IN, OUT, S, N)
    hand_in_norms(row_ptr, sum_inner, sum_product, IN, OUT, N)


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
def load_patch(x_ptr, image, row, column, inside, height, width, IN: tl.constexpr, P: tl.constexpr):
    """(P,) windows → tuple of the 4·4·IN numbers around each, (P,) float32."""
    corner = ((image * height + row - 1) * width + column - 1) * IN
    patch = ()
    for y in tl.static_range(4):
        down = inside & (row + y >= 1) & (row + y <= height)
        start = x_ptr + (corner + y * width * IN)
        for x in tl.static_range(4):
            keep = down & (column + x >= 1) & (column + x <= width)
            for c in tl.static_range(IN):
                value = tl.load(start + (x * IN + c), mask=keep, other=0.0)
                patch = patch + (value.to(tl.float32),)
    return patch


@triton.jit
def convolve_picture_back(
    x_ptr,
    weight_ptr,
    bias_ptr,
    norm_ptr,
    norm_weight_ptr,
    inner_ptr,
    place_ptr,
    inner_partials_ptr,
    partials_ptr,
    height,
    width,
    inner_blocks,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """As ``convolve_back`` without the input's gradient, for the few channels of a picture.

    A thread keeps a window, the gradients of four output channels' weights (the third axis tells
    which four) and nothing but plain products; no matrix is wide enough to be worth gathering.
    """
    image, first = tl.program_id(1), tl.program_id(2) * 4
    half = width // 2
    pooled = height // 2 * half
    mean, rstd = load_norm(norm_ptr, image, N, OUT)
    weight = load_channels(norm_weight_ptr, N, OUT)
    sum_inner, sum_product = read_sums(inner_partials_ptr, image, inner_blocks, N, OUT)
    members = 4.0 * pooled * (OUT // GROUPS)
    slope = -rstd * rstd * group_totals(weight * sum_product, OUT // GROUPS) / members
    shift = -rstd * group_totals(weight * sum_inner, OUT // GROUPS) / members - slope * mean
    scale = rstd * weight

    four = tl.arange(0, 4)[None, :]
    sums = ()  # by neighbour, input and output channel; at the end of the bias
    for _ in tl.static_range(36 * IN + 4):
        sums = sums + (tl.zeros((P,), tl.float32),)
    block = tl.program_id(0)
    while block * P < pooled:
        window = block * P + tl.arange(0, P)
        inside = window < pooled
        row = window // half * 2
        column = window % half * 2
        patch = load_patch(x_ptr, image, row, column, inside, height, width, IN, P)
        here = ((image * pooled + window) * OUT + first)[:, None] + four
        inner = split_four(tl.load(inner_ptr + here, mask=inside[:, None], other=0.0), P)
        place = split_four(tl.load(place_ptr + here, mask=inside[:, None], other=0).to(tl.int32), P)
        # The block takes part so that the weights are loaded again: registers are too few for all.
        weights_ptr = weight_ptr + tl.minimum(block, 0) + first * IN * 9
        grads = ()
        for out in tl.static_range(4):
            bias = tl.zeros((P,), tl.float32) + tl.load(bias_ptr + first + out)
            raw = (bias, bias, bias, bias)
            for k in tl.static_range(9 * IN):
                factor = tl.load(weights_ptr + (out * IN + k % IN) * 9 + k // IN)
                new = ()
                for at in tl.static_range(4):
                    value = patch[neighbour(at, k // IN) * IN + k % IN]
                    new = new + (tl.fma(value, factor, raw[at]),)
                raw = new
            chosen = pick(scale, first + out, N) * inner[out]
            for at in tl.static_range(4):
                grad = pick(shift, first + out, N) + pick(slope, first + out, N) * raw[at]
                grad += tl.where(place[out] == at, chosen, 0.0)
                grads = grads + (tl.where(inside, grad, 0.0),)
        new = ()
        for k in tl.static_range(9 * IN):
            for out in tl.static_range(4):
                total = sums[4 * k + out]
                for at in tl.static_range(4):
                    value = patch[neighbour(at, k // IN) * IN + k % IN]
                    total = tl.fma(value, grads[4 * out + at], total)
                new = new + (total,)
        for out in tl.static_range(4):
            total = grads[4 * out] + grads[4 * out + 1] + grads[4 * out + 2] + grads[4 * out + 3]
            new = new + (sums[36 * IN + out] + total,)
        sums = new
        block += tl.num_programs(0)

    size: tl.constexpr = OUT * (9 * IN + 3)
    row_ptr = partials_ptr + (image * tl.num_programs(0) + tl.program_id(0)) * size
    each = first + tl.arange(0, 4)
    for k in tl.static_range(9 * IN):
        total = tl.sum(join_four(sums[4 * k : 4 * k + 4], P), 0)
        tl.store(row_ptr + (each * IN + k % IN) * 9 + k // IN, total)
    tl.store(row_ptr + OUT * 9 * IN + each, tl.sum(join_four(sums[36 * IN :], P), 0))
    hand_in_norms(row_ptr, sum_inner, sum_product, IN, OUT, N)


@triton.jit
def load_windows(
    x_ptr,
    image,
    group,
    block,
    height,
    width,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """Block of a group → (4·P, N) values, their offsets and which exist."""
    row, column, inside = find_windows(block, height // 2 * (width // 2), width // 2, P)
    member = tl.arange(0, N)[None, :]
    keep = inside[:, None] & (member < CHANNELS // GROUPS)
    pixel = (image * height + row) * width + column
    here = pixel[:, None] * CHANNELS + group * (CHANNELS // GROUPS) + member
    return tl.load(x_ptr + here, mask=keep, other=0.0).to(tl.float32), here, keep


@triton.jit
def find_pooled_group(
    image, group, block, pooled, CHANNELS: tl.constexpr, N: tl.constexpr, P: tl.constexpr
):
    """Block of a group → (P, N) offsets in a map (batch, pooled, CHANNELS), and which exist."""
    pixel = block * P + tl.arange(0, P)[:, None]
    member = tl.arange(0, N)[None, :]
    here = (image * pooled + pixel) * CHANNELS + group * (CHANNELS // GROUPS) + member
    return here, (pixel < pooled) & (member < CHANNELS // GROUPS)


@triton.jit
def load_members(pointer, group, CHANNELS: tl.constexpr, N: tl.constexpr):
    """(1, N) parameters of a group's channels, zero for padding."""
    member = tl.arange(0, N)
    size: tl.constexpr = CHANNELS // GROUPS
    return tl.load(pointer + group * size + member, mask=member < size, other=0.0)[None, :]


@triton.jit
def normalise_group(
    x_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    result_ptr,
    norm_ptr,
    height,
    width,
    eps,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """A program does a whole group of one image: statistics, then pool and GELU from the cache."""
    group, image = tl.program_id(0), tl.program_id(1)
    size: tl.constexpr = CHANNELS // GROUPS
    pooled = height // 2 * (width // 2)
    mean = 0.0
    centred = 0.0
    seen = 0.0
    block = 0
    while block * P < pooled:
        values, _, keep = load_windows(x_ptr, image, group, block, height, width, CHANNELS, N, P)
        new = 4.0 * size * tl.minimum(pooled - block * P, P)
        new_mean = tl.sum(values) / new
        off = tl.where(keep, values - new_mean, 0.0)
        apart = new_mean - mean
        centred += tl.sum(off * off) + apart * apart * (seen * new / (seen + new))
        mean += apart * (new / (seen + new))
        seen += new
        block += 1
    rstd = 1.0 / tl.sqrt_rn(centred / seen + eps)
    tl.store(norm_ptr + image * 2 * GROUPS + group, mean)
    tl.store(norm_ptr + image * 2 * GROUPS + GROUPS + group, rstd)

    weight = load_members(norm_weight_ptr, group, CHANNELS, N)
    bias = load_members(norm_bias_ptr, group, CHANNELS, N)
    block = 0
    while block * P < pooled:
        values, _, _ = load_windows(x_ptr, image, group, block, height, width, CHANNELS, N, P)
        normal = (values - mean) * rstd * weight + bias
        result = gelu(tl.max(tl.reshape(normal, (4, P, N)), 0))
        here, keep = find_pooled_group(image, group, block, pooled, CHANNELS, N, P)
        tl.store(result_ptr + here, result.to(result_ptr.dtype.element_ty), mask=keep)
        block += 1


@triton.jit
def slope_windows(
    x_ptr,
    grad_ptr,
    image,
    group,
    block,
    height,
    width,
    mean,
    rstd,
    weight,
    bias,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """Block of a group → (4·P, N) g and x̂, with their offsets and which exist."""
    values, here, keep = load_windows(x_ptr, image, group, block, height, width, CHANNELS, N, P)
    normal = (values - mean) * rstd
    scaled = normal * weight + bias
    place = first_largest(scaled, P, N)
    pooled = height // 2 * (width // 2)
    there, keep_pooled = find_pooled_group(image, group, block, pooled, CHANNELS, N, P)
    grad = tl.load(grad_ptr + there, mask=keep_pooled, other=0.0).to(tl.float32)
    inner = grad * gelu_slope(at_place(scaled, place, P, N))
    return to_place(inner, place, P, N), normal, here, keep


@triton.jit
def normalise_group_back(
    x_ptr,
    grad_ptr,
    norm_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    grad_x_ptr,
    partials_ptr,
    height,
    width,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    """A program does a whole group of one image: the sums of g and g · x̂, then the gradient."""
    group, image = tl.program_id(0), tl.program_id(1)
    size: tl.constexpr = CHANNELS // GROUPS
    pooled = height // 2 * (width // 2)
    mean = tl.load(norm_ptr + image * 2 * GROUPS + group)
    rstd = tl.load(norm_ptr + image * 2 * GROUPS + GROUPS + group)
    weight = load_members(norm_weight_ptr, group, CHANNELS, N)
    bias = load_members(norm_bias_ptr, group, CHANNELS, N)
    sum_inner = tl.zeros((N,), tl.float32)
    sum_product = tl.zeros((N,), tl.float32)
    block = 0
    while block * P < pooled:
        inner, normal, _, _ = slope_windows(
            x_ptr,
            grad_ptr,
            image,
            group,
            block,
            height,
            width,
            mean,
            rstd,
            weight,
            bias,
            CHANNELS,
            N,
            P,
        )
        sum_inner += tl.sum(inner, 0)
        sum_product += tl.sum(inner * normal, 0)
        block += 1
    member = tl.arange(0, N)
    row_ptr = partials_ptr + image * 2 * CHANNELS + group * size + member
    tl.store(row_ptr, sum_product, mask=member < size)
    tl.store(row_ptr + CHANNELS, sum_inner, mask=member < size)

    members = 4.0 * pooled * size
    shift = tl.sum(sum_inner[None, :] * weight) / members
    slope = tl.sum(sum_product[None, :] * weight) / members
    block = 0
    while block * P < pooled:
        inner, normal, here, keep = slope_windows(
            x_ptr,
            grad_ptr,
            image,
            group,
            block,
            height,
            width,
            mean,
            rstd,
            weight,
            bias,
            CHANNELS,
            N,
            P,
        )
        grad_x = rstd * (inner * weight - shift - normal * slope)
        tl.store(grad_x_ptr + here, grad_x.to(grad_x_ptr.dtype.element_ty), mask=keep)
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
        keep: bool,
    ) -> Tensor:
        batch, height, width, channels = x.shape
        out = weight.shape[0]
        shape = (batch, height // 2, width // 2, out)
        pixels = shape[1] * shape[2]
        side = choose_side(channels, 32)  # with more, registers spill
        windows = 2 * WINDOWS if channels < 8 else WINDOWS  # few channels leave registers free
        blocks = triton.cdiv(pixels, windows)
        pooled = x.new_empty(shape, dtype=dtype)
        place = x.new_empty(shape if keep else (0,), dtype=torch.uint8)
        partials = x.new_empty((batch, blocks, 2, out), dtype=torch.float32)
        convolve_and_pool[(blocks, batch)](
            x,
            weight,
            bias,
            norm_weight,
            pooled,
            place,
            partials,
            height,
            width,
            IN=channels,
            OUT=out,
            N=max(8, triton.next_power_of_2(out)),
            P=windows,
            SIDE=side,
            K=pad_channels(side * channels),
            KEEP=keep,
            num_warps=4,
        )
        result = x.new_empty(shape, dtype=dtype)
        norm = x.new_empty((batch, 2, 4), dtype=torch.float32)
        padded = triton.next_power_of_2(out)
        normalise_pooled[(triton.cdiv(pixels, ELEMENTS // padded), batch)](
            pooled,
            partials,
            norm_weight,
            norm_bias,
            result,
            norm,
            pixels,
            blocks,
            4 * windows,
            eps,
            CHANNELS=out,
            N=padded,
            P=ELEMENTS // padded,
            num_warps=4,
        )
        ctx.save_for_backward(x, weight, bias, norm_weight, norm_bias, pooled, place, norm)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, norm_weight, norm_bias, pooled, place, norm = ctx.saved_tensors
        batch, height, width, channels = x.shape
        out = weight.shape[0]
        pixels = pooled.shape[1] * pooled.shape[2]
        padded = triton.next_power_of_2(out)
        inner = torch.empty_like(pooled, dtype=torch.float32)
        inner_blocks = triton.cdiv(pixels, ELEMENTS // padded)
        inner_partials = x.new_empty((batch, inner_blocks, 2, out), dtype=torch.float32)
        slope_pooled[(inner_blocks, batch)](
            grad.contiguous(),
            pooled,
            norm,
            norm_weight,
            norm_bias,
            inner,
            inner_partials,
            pixels,
            CHANNELS=out,
            N=padded,
            P=ELEMENTS // padded,
            num_warps=4,
        )
        size = weight.numel() + 3 * out
        sources = (x, weight, bias, norm, norm_weight, inner, place, inner_partials)
        if channels <= 3 and not ctx.needs_input_grad[0]:
            most = max(1, PROGRAMS // (batch * (out // 4)))
            programs = min(triton.cdiv(pixels, PICTURE), most)
            partials = x.new_empty((batch * programs, size), dtype=torch.float32)
            convolve_picture_back[(programs, batch, out // 4)](
                *sources,
                partials,
                height,
                width,
                inner_blocks,
                IN=channels,
                OUT=out,
                N=padded,
                P=PICTURE,
                num_warps=4,
            )
            return None, *_split_gradients(partials, weight), None, None, None
        wants_x = ctx.needs_input_grad[0]
        raw_grad = x.new_empty((batch, height, width, out)) if wants_x else x
        padded = pad_channels(out)
        span, shares = choose_span(channels, padded)
        programs = min(triton.cdiv(pixels, POOLED_BACK), triton.cdiv(PROGRAMS, batch))
        partials = x.new_empty((batch * programs, size), dtype=torch.float32)
        convolve_back[(programs, batch, shares)](
            *sources,
            raw_grad,
            partials,
            height,
            width,
            inner_blocks,
            IN=channels,
            OUT=out,
            N=padded,
            P=POOLED_BACK,
            K=K_BLOCK,
            S=SUM_BLOCK,
            SPAN=span,
            KEEP=wants_x,
            num_warps=4,
        )
        grad_x = convolve_all(raw_grad, weight, None, x.dtype) if wants_x else None
        return grad_x, *_split_gradients(partials, weight), None, None, None


def _split_gradients(partials: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Add up (programs, numbers) to the gradients of the convolution and the normalisation."""
    out = weight.shape[0]
    (totals,) = sum_partials(partials)
    grads = totals.split([weight.numel(), out, out, out])
    return grads[0].view(weight.shape), *grads[1:]


class _NormHalve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
        batch, height, width, channels = x.shape
        result = x.new_empty((batch, height // 2, width // 2, channels))
        norm = x.new_empty((batch, 2, 4), dtype=torch.float32)
        padded, pooled = _choose_group(height * width // 4, channels)
        normalise_group[(4, batch)](
            x,
            norm_weight,
            norm_bias,
            result,
            norm,
            height,
            width,
            eps,
            CHANNELS=channels,
            N=padded,
            P=pooled,
            num_warps=8,
        )
        ctx.save_for_backward(x, norm_weight, norm_bias, norm)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, norm = ctx.saved_tensors
        batch, height, width, channels = x.shape
        padded, pooled = _choose_group(height * width // 4, channels)
        grad_x = torch.empty_like(x)
        partials = x.new_empty((batch, 2, channels), dtype=torch.float32)
        normalise_group_back[(4, batch)](
            x,
            grad.contiguous(),
            norm,
            norm_weight,
            norm_bias,
            grad_x,
            partials,
            height,
            width,
            CHANNELS=channels,
            N=padded,
            P=pooled,
            num_warps=8,
        )
        (totals,) = sum_partials(partials.flatten(1))
        return grad_x, *totals.split(channels), None


def _choose_group(pixels: int, channels: int) -> tuple[int, int]:
    """Padded width of a group, and pooled pixels of its block.

    8192 numbers, 32 of each of 256 threads, hold a group of 32 channels at 32×32 at once.
    """
    padded = triton.next_power_of_2(channels // 4)
    return padded, min(2048 // padded, triton.next_power_of_2(pixels))


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
    keep = torch.is_grad_enabled()  # what backward needs
    return _ConvHalve.apply(x, weight, bias, norm_weight, norm_bias, eps, dtype or x.dtype, keep)


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
