"""The skip bridge of all stages at once: four launches forward, five backward.

Spatial attention a (per pixel) and channel attention c (per picture and channel) turn a skip x
into ``c · (a·x + x) + a·x``; without the spatial part it is ``c·x + x``, without the channel
part ``a·x + x``.

Every launch covers all stages: a program finds its stage from its block number, and the
``Layout``, known when a kernel is compiled, says which pixels that block holds. The maps that the
7×7 convolution and its transpose read lie in frames, pictures with a border of zeros as wide as
the convolution reaches, so that no tap needs a test. Sums go through partial arrays in a fixed
order, never through atomics, so results repeat bit by bit.

Source: Wu et al., arXiv 2403.20035, section 3.3; the formulas are ``SkipBridge`` in nn/model.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# The convolution of the spatial attention: 7×7 taps, 3 pixels apart.
SIDE = tl.constexpr(7)
TAPS = tl.constexpr(49)
STEP = tl.constexpr(3)
REACH = tl.constexpr(9)

# Numbers of one (pixels, channels) tile: 16 a thread, and 59 programs a picture of 256 × 256, so
# that 8 pictures fill a GPU; smaller tiles take as long and leave twice the partials to add up.
TILE = 4096
WARPS = 8
# Pixels whose taps are gathered together for the convolution's weight gradient: one a lane.
LANES = tl.constexpr(32)
# Width of a row of partial spatial gradients: 98 weights, the bias, and rounding to whole
# sectors of memory, each of which one program adds up.
ROW = tl.constexpr(104)
SECTOR = tl.constexpr(8)
# Tiles of the channel attention's matrices: rows, columns, and images added up at a time.
ROWS = tl.constexpr(16)
COLUMNS = tl.constexpr(32)
IMAGES = tl.constexpr(32)


@dataclass(frozen=True)
class Stage:
    """One skip of a picture, and where its numbers begin in the arrays shared by all stages."""

    height: int
    width: int
    channels: int
    padded: int  # channels, as a power of two
    pixels: int  # of one block
    channel: int  # its first channel among those of all stages
    point: int  # its first pixel among those of all stages
    frame: int  # its first pixel among the frames of all stages
    block: int  # its first block; the picture's pixels are cut into blocks
    blocks: int
    frame_block: int  # the same for the blocks of the frame
    frame_blocks: int


@dataclass(frozen=True)
class Layout:
    """The stages of one picture, and the sizes of the arrays shared by them."""

    stages: tuple[Stage, ...]
    channels: int
    points: int
    frames: int
    blocks: int
    frame_blocks: int
    most_blocks: int  # of one stage


@lru_cache(maxsize=64)
def lay_out(shapes: tuple[tuple[int, int, int], ...], tile: int = TILE) -> Layout:
    """Cut the stages, given as (height, width, channels), into blocks of about ``tile`` numbers."""
    stages: list[Stage] = []
    channel = point = frame = block = frame_block = 0
    for height, width, channels in shapes:
        padded = triton.next_power_of_2(channels)
        pixels = max(tile // padded, LANES.value)
        framed = (height + 2 * REACH.value) * (width + 2 * REACH.value)
        blocks = triton.cdiv(height * width, pixels)
        frame_blocks = triton.cdiv(framed, pixels)
        stages.append(
            Stage(
                height=height,
                width=width,
                channels=channels,
                padded=padded,
                pixels=pixels,
                channel=channel,
                point=point,
                frame=frame,
                block=block,
                blocks=blocks,
                frame_block=frame_block,
                frame_blocks=frame_blocks,
            )
        )
        channel += channels
        point += height * width
        frame += framed
        block += blocks
        frame_block += frame_blocks
    most = max(stage.blocks for stage in stages)
    return Layout(tuple(stages), channel, point, frame, block, frame_block, most)


@triton.jit
def _has_block(block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """Whether a block lies in stage S."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    return (block >= STAGE.block) & (block < STAGE.block + STAGE.blocks)


@triton.jit
def _has_frame_block(block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """Whether a frame's block lies in stage S."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    return (block >= STAGE.frame_block) & (block < STAGE.frame_block + STAGE.frame_blocks)


@triton.jit
def _block_pixels(block, STAGE: tl.constexpr):
    """The (pixels,) numbers of one block's pixels, and which of them the picture has."""
    pixel = (block - STAGE.block) * STAGE.pixels + tl.arange(0, STAGE.pixels)
    return pixel, pixel < STAGE.height * STAGE.width


@triton.jit
def _frame_pixels(block, STAGE: tl.constexpr):
    """For one block of a frame: (pixels,) place in the frame, pixel below, which have a pixel."""
    place = (block - STAGE.frame_block) * STAGE.pixels + tl.arange(0, STAGE.pixels)
    y = place // (STAGE.width + 2 * REACH) - REACH
    x = place % (STAGE.width + 2 * REACH) - REACH
    inside = (y >= 0) & (y < STAGE.height) & (x >= 0) & (x < STAGE.width)
    return place, tl.where(inside, y * STAGE.width + x, 0), inside


@triton.jit
def _corner(image, pixel, inside, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Where in the frames the convolution's first tap of each pixel lies."""
    y = pixel // STAGE.width
    corner = tl.where(inside, y * (STAGE.width + 2 * REACH) + pixel - y * STAGE.width, 0)
    return image * LAYOUT.frames + STAGE.frame + corner


@triton.jit
def _offsets(image, pixel, inside, STAGE: tl.constexpr):
    """Offsets (pixels, padded) into a skip and the mask of its real numbers."""
    channel = tl.arange(0, STAGE.padded)
    first = (image * (STAGE.height * STAGE.width) + pixel) * STAGE.channels
    return first[:, None] + channel[None, :], inside[:, None] & (channel < STAGE.channels)[None, :]


@triton.jit
def _per_channel(pointer, image, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """One stage's (padded,) numbers from an array (batch, all channels)."""
    channel = tl.arange(0, STAGE.padded)
    pointer += image * LAYOUT.channels + STAGE.channel
    return tl.load(pointer + channel, mask=channel < STAGE.channels, other=0.0)


@triton.jit
def _write_partial(pointer, image, block, sums, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Write one block's (padded,) sums into partials (batch, most blocks, all channels)."""
    channel = tl.arange(0, STAGE.padded)
    row = image * LAYOUT.most_blocks + block - STAGE.block
    pointer += row * LAYOUT.channels + STAGE.channel
    tl.store(pointer + channel, sums, mask=channel < STAGE.channels)


@triton.jit
def _add_partials(pointer, image, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Add up one stage's partials of one image: (padded,)."""
    CHUNK: tl.constexpr = 32
    PADDED: tl.constexpr = STAGE.padded
    channel = tl.arange(0, PADDED)
    pointer += image * LAYOUT.most_blocks * LAYOUT.channels + STAGE.channel
    sums = tl.zeros((CHUNK, PADDED), tl.float32)
    for first in range(0, STAGE.blocks, CHUNK):
        block = first + tl.arange(0, CHUNK)
        real = (block < STAGE.blocks)[:, None] & (channel < STAGE.channels)[None, :]
        at = block[:, None] * LAYOUT.channels + channel[None, :]
        sums += tl.load(pointer + at, mask=real, other=0.0)
    return tl.sum(sums, 0)


# ---------------------------------------------------------------- forward


@triton.jit
def _map_kernel(skips, maps_ptr, LAYOUT: tl.constexpr):
    """A program writes mean and maximum over the channels for one block of a frame."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    for S in tl.static_range(len(LAYOUT.stages)):
        if _has_frame_block(block, S, LAYOUT):
            _map_block(skips[S], maps_ptr, image, block, S, LAYOUT)


@triton.jit
def _map_block(skip_ptr, maps_ptr, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    place, pixel, inside = _frame_pixels(block, STAGE)
    at, real = _offsets(image, pixel, inside, STAGE)
    x = tl.load(skip_ptr + at, mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / STAGE.channels
    highest = tl.max(tl.where(real, x, float("-inf")), 1)
    pair = tl.join(mean, tl.where(inside, highest, 0.0))  # (pixels, 2)
    to = (image * LAYOUT.frames + STAGE.frame + place)[:, None] * 2 + tl.arange(0, 2)[None, :]
    SIZE: tl.constexpr = (STAGE.height + 2 * REACH) * (STAGE.width + 2 * REACH)
    tl.store(maps_ptr + to, pair, mask=(place < SIZE)[:, None])


@triton.jit
def _attend_kernel(
    skips,
    results,
    maps_ptr,
    weight_ptr,
    bias_ptr,
    attention_ptr,
    partials_ptr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    """A program makes one block's spatial attention, and its channel sums or the result."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    for S in tl.static_range(len(LAYOUT.stages)):
        if _has_block(block, S, LAYOUT):
            _attend_block(
                skips[S],
                results[S],
                maps_ptr,
                weight_ptr,
                bias_ptr,
                attention_ptr,
                partials_ptr,
                image,
                block,
                S,
                LAYOUT,
                SPATIAL,
                CHANNEL,
            )


@triton.jit
def _attend_block(
    skip_ptr,
    result_ptr,
    maps_ptr,
    weight_ptr,
    bias_ptr,
    attention_ptr,
    partials_ptr,
    image,
    block,
    S: tl.constexpr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside = _block_pixels(block, STAGE)
    at, real = _offsets(image, pixel, inside, STAGE)
    residual = tl.load(skip_ptr + at, mask=real, other=0.0).to(tl.float32)
    if SPATIAL:
        PIXELS: tl.constexpr = STAGE.pixels
        half = tl.arange(0, 2)
        corner = _corner(image, pixel, inside, STAGE, LAYOUT)
        taps_ptr = maps_ptr + corner[:, None] * 2 + half[None, :]  # mean and maximum side by side
        sums = tl.zeros((PIXELS, 2), tl.float32)
        for down in range(SIDE):
            for right in tl.static_range(SIDE):
                step = STEP * (down * (STAGE.width + 2 * REACH) + right)
                weight = tl.load(weight_ptr + half * TAPS + (down * SIDE + right))
                sums += tl.load(taps_ptr + 2 * step) * weight[None, :]
        attention = tl.sigmoid(tl.sum(sums, 1) + tl.load(bias_ptr))  # (pixels,)
        to = attention_ptr + image * LAYOUT.points + STAGE.point + pixel
        tl.store(to, attention, mask=inside)
        residual += attention[:, None] * residual
    if CHANNEL:
        _write_partial(partials_ptr, image, block, tl.sum(residual, 0), STAGE, LAYOUT)
    else:
        tl.store(result_ptr + at, residual.to(result_ptr.dtype.element_ty), mask=real)


@triton.jit
def _channel_kernel(
    partials_ptr, conv_ptr, heads, biases, means_ptr, channel_ptr, LAYOUT: tl.constexpr
):
    """A program makes the channel attention of one image and stage; that of stage 0 the means."""
    image = tl.program_id(0)
    for S in tl.static_range(len(LAYOUT.stages)):
        if tl.program_id(1) == S:
            _channel_stage(
                partials_ptr,
                conv_ptr,
                heads[S],
                biases[S],
                means_ptr,
                channel_ptr,
                image,
                S,
                LAYOUT,
            )


@triton.jit
def _channel_stage(
    partials_ptr,
    conv_ptr,
    head_ptr,
    bias_ptr,
    means_ptr,
    channel_ptr,
    image,
    S: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    out = tl.arange(0, STAGE.padded)
    logits = tl.load(bias_ptr + out, mask=out < STAGE.channels, other=0.0)
    for T in tl.static_range(len(LAYOUT.stages)):
        logits += _head_of_stage(partials_ptr, conv_ptr, head_ptr, means_ptr, image, S, T, LAYOUT)
    to = channel_ptr + image * LAYOUT.channels + STAGE.channel + out
    tl.store(to, tl.sigmoid(logits), mask=out < STAGE.channels)


@triton.jit
def _head_of_stage(
    partials_ptr,
    conv_ptr,
    head_ptr,
    means_ptr,
    image,
    S: tl.constexpr,
    T: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """What the means of stage T add to the logits of stage S, (padded,)."""
    SOURCE: tl.constexpr = LAYOUT.stages[T]
    means = _add_partials(partials_ptr, image, SOURCE, LAYOUT) / (SOURCE.height * SOURCE.width)
    column = tl.arange(0, SOURCE.padded)
    real = column < SOURCE.channels
    if S == 0:
        to = means_ptr + image * LAYOUT.channels + SOURCE.channel + column
        tl.store(to, means, mask=real)
    # The convolution along the channels is moved onto the head's columns, which lie in memory.
    PADDED: tl.constexpr = LAYOUT.stages[S].padded
    WIDTH: tl.constexpr = SOURCE.padded
    weight = tl.zeros((PADDED, WIDTH), tl.float32)
    for tap in tl.static_range(3):
        at = SOURCE.channel + column + (1 - tap)
        weight += tl.load(conv_ptr + tap) * _head_tile(head_ptr, at, real, S, LAYOUT)
    return tl.sum(weight * means[None, :], 1)


@triton.jit
def _head_tile(head_ptr, column, real, S: tl.constexpr, LAYOUT: tl.constexpr):
    """Stage S's head weights (padded, columns) at these columns, zero beyond the matrix."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    out = tl.arange(0, STAGE.padded)
    real = real & (column >= 0) & (column < LAYOUT.channels)
    at = out[:, None] * LAYOUT.channels + column[None, :]
    return tl.load(head_ptr + at, mask=(out < STAGE.channels)[:, None] & real[None, :], other=0.0)


@triton.jit
def _result_kernel(
    skips, results, attention_ptr, channel_ptr, LAYOUT: tl.constexpr, SPATIAL: tl.constexpr
):
    """A program weighs one block of a skip with both attentions."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    for S in tl.static_range(len(LAYOUT.stages)):
        if _has_block(block, S, LAYOUT):
            _result_block(
                skips[S],
                results[S],
                attention_ptr,
                channel_ptr,
                image,
                block,
                S,
                LAYOUT,
                SPATIAL,
            )


@triton.jit
def _result_block(
    skip_ptr,
    result_ptr,
    attention_ptr,
    channel_ptr,
    image,
    block,
    S: tl.constexpr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside = _block_pixels(block, STAGE)
    at, real = _offsets(image, pixel, inside, STAGE)
    x = tl.load(skip_ptr + at, mask=real, other=0.0).to(tl.float32)
    attention = _per_pixel(attention_ptr, image, pixel, inside, STAGE, LAYOUT, SPATIAL)
    channel = _per_channel(channel_ptr, image, STAGE, LAYOUT)
    result = x * _weigh(attention, channel[None, :], SPATIAL)
    tl.store(result_ptr + at, result.to(result_ptr.dtype.element_ty), mask=real)


@triton.jit
def _per_pixel(
    attention_ptr,
    image,
    pixel,
    inside,
    STAGE: tl.constexpr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
):
    """The spatial attention (pixels, 1); zeros, never used, without one."""
    if SPATIAL:
        at = image * LAYOUT.points + STAGE.point + pixel
        attention = tl.load(attention_ptr + at, mask=inside, other=0.0)
    else:
        attention = tl.zeros_like(pixel).to(tl.float32)
    return attention[:, None]


@triton.jit
def _weigh(attention, channel, SPATIAL: tl.constexpr):
    """The factor of a skip in the result: c·(a + 1) + a, or c + 1 without spatial attention."""
    return channel * (attention + 1.0) + attention if SPATIAL else channel + 1.0


# ---------------------------------------------------------------- backward


@triton.jit
def _product_kernel(
    skips,
    slopes,
    attention_ptr,
    channel_ptr,
    partials_ptr,
    local_ptr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
):
    """A program writes one block's part of dc, and the part of da that needs no other pixel."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    for S in tl.static_range(len(LAYOUT.stages)):
        if _has_block(block, S, LAYOUT):
            _product_block(
                skips[S],
                slopes[S],
                attention_ptr,
                channel_ptr,
                partials_ptr,
                local_ptr,
                image,
                block,
                S,
                LAYOUT,
                SPATIAL,
            )


@triton.jit
def _product_block(
    skip_ptr,
    slope_ptr,
    attention_ptr,
    channel_ptr,
    partials_ptr,
    local_ptr,
    image,
    block,
    S: tl.constexpr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside = _block_pixels(block, STAGE)
    at, real = _offsets(image, pixel, inside, STAGE)
    product = tl.load(skip_ptr + at, mask=real, other=0.0).to(tl.float32)
    product *= tl.load(slope_ptr + at, mask=real, other=0.0).to(tl.float32)
    attention = _per_pixel(attention_ptr, image, pixel, inside, STAGE, LAYOUT, SPATIAL)
    sums = tl.sum(product * (1.0 + attention), 0)
    _write_partial(partials_ptr, image, block, sums, STAGE, LAYOUT)
    if SPATIAL:
        channel = _per_channel(channel_ptr, image, STAGE, LAYOUT)
        local = tl.sum(product * (1.0 + channel)[None, :], 1)
        tl.store(local_ptr + image * LAYOUT.points + STAGE.point + pixel, local, mask=inside)


@triton.jit
def _channel_back_kernel(
    partials_ptr,
    channel_ptr,
    means_ptr,
    conv_ptr,
    heads,
    logit_slopes_ptr,
    mean_slopes_ptr,
    conv_partials_ptr,
    LAYOUT: tl.constexpr,
):
    """A program takes one image's gradient back through the heads to COLUMNS of the means.

    It also writes its columns' part of the gradient of the convolution along the channels.
    """
    image = tl.program_id(0)
    part = tl.program_id(1)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    real = column < LAYOUT.channels
    before = tl.zeros((COLUMNS,), tl.float32)  # through each tap of the convolution
    middle = tl.zeros((COLUMNS,), tl.float32)
    after = tl.zeros((COLUMNS,), tl.float32)
    for S in tl.static_range(len(LAYOUT.stages)):
        slopes = _logit_slopes(partials_ptr, channel_ptr, logit_slopes_ptr, image, part, S, LAYOUT)
        before += tl.sum(slopes * _head_tile(heads[S], column + 1, real, S, LAYOUT), 0)
        middle += tl.sum(slopes * _head_tile(heads[S], column, real, S, LAYOUT), 0)
        after += tl.sum(slopes * _head_tile(heads[S], column - 1, real, S, LAYOUT), 0)
    slope = tl.load(conv_ptr) * before + tl.load(conv_ptr + 1) * middle
    slope += tl.load(conv_ptr + 2) * after
    at = image * LAYOUT.channels + column
    tl.store(mean_slopes_ptr + at, slope, mask=real)
    means = tl.load(means_ptr + at, mask=real, other=0.0)
    conv_partials_ptr += (image * tl.num_programs(1) + part) * 4
    tl.store(conv_partials_ptr, tl.sum(means * before, 0))
    tl.store(conv_partials_ptr + 1, tl.sum(means * middle, 0))
    tl.store(conv_partials_ptr + 2, tl.sum(means * after, 0))


@triton.jit
def _logit_slopes(
    partials_ptr, channel_ptr, logit_slopes_ptr, image, part, S: tl.constexpr, LAYOUT: tl.constexpr
):
    """The gradient (padded, 1) of one stage's logits, also written by the first part."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    out = tl.arange(0, STAGE.padded)
    attention = _per_channel(channel_ptr, image, STAGE, LAYOUT)
    slopes = _add_partials(partials_ptr, image, STAGE, LAYOUT) * attention * (1.0 - attention)
    to = logit_slopes_ptr + image * LAYOUT.channels + STAGE.channel + out
    tl.store(to, slopes, mask=(out < STAGE.channels) & (part == 0))
    return slopes[:, None]


@triton.jit
def _spatial_slope_kernel(
    skips,
    slopes,
    attention_ptr,
    local_ptr,
    mean_slopes_ptr,
    frame_slopes_ptr,
    LAYOUT: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    """A program writes the gradient before the sigmoid for one block of a frame."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    for S in tl.static_range(len(LAYOUT.stages)):
        if _has_frame_block(block, S, LAYOUT):
            _spatial_slope_block(
                skips[S],
                slopes[S],
                attention_ptr,
                local_ptr,
                mean_slopes_ptr,
                frame_slopes_ptr,
                image,
                block,
                S,
                LAYOUT,
                CHANNEL,
            )


@triton.jit
def _spatial_slope_block(
    skip_ptr,
    slope_ptr,
    attention_ptr,
    local_ptr,
    mean_slopes_ptr,
    frame_slopes_ptr,
    image,
    block,
    S: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    place, pixel, inside = _frame_pixels(block, STAGE)
    at, real = _offsets(image, pixel, inside, STAGE)
    point = image * LAYOUT.points + STAGE.point + pixel
    x = tl.load(skip_ptr + at, mask=real, other=0.0).to(tl.float32)
    if CHANNEL:
        mean_slope = _per_channel(mean_slopes_ptr, image, STAGE, LAYOUT)
        slope = tl.sum(x * mean_slope[None, :], 1) / (STAGE.height * STAGE.width)
        slope += tl.load(local_ptr + point, mask=inside, other=0.0)
    else:
        slope = tl.sum(x * tl.load(slope_ptr + at, mask=real, other=0.0).to(tl.float32), 1)
    attention = tl.load(attention_ptr + point, mask=inside, other=0.0)
    slope *= attention * (1.0 - attention)  # zero in the border
    SIZE: tl.constexpr = (STAGE.height + 2 * REACH) * (STAGE.width + 2 * REACH)
    to = frame_slopes_ptr + image * LAYOUT.frames + STAGE.frame + place
    tl.store(to, slope, mask=place < SIZE)


@triton.jit
def _skip_slope_kernel(
    skips,
    slopes,
    skip_slopes,
    attention_ptr,
    channel_ptr,
    mean_slopes_ptr,
    frame_slopes_ptr,
    maps_ptr,
    weight_ptr,
    partials_ptr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    """A program writes one block of a skip's gradient and its part of the 7×7 weights' one."""
    block = tl.program_id(0)
    image = tl.program_id(1)
    for S in tl.static_range(len(LAYOUT.stages)):
        if _has_block(block, S, LAYOUT):
            _skip_slope_block(
                skips[S],
                slopes[S],
                skip_slopes[S],
                attention_ptr,
                channel_ptr,
                mean_slopes_ptr,
                frame_slopes_ptr,
                weight_ptr,
                image,
                block,
                S,
                LAYOUT,
                SPATIAL,
                CHANNEL,
            )
            if SPATIAL:
                _weight_slope_block(
                    maps_ptr, frame_slopes_ptr, partials_ptr, image, block, S, LAYOUT
                )


@triton.jit
def _skip_slope_block(
    skip_ptr,
    slope_ptr,
    skip_slope_ptr,
    attention_ptr,
    channel_ptr,
    mean_slopes_ptr,
    frame_slopes_ptr,
    weight_ptr,
    image,
    block,
    S: tl.constexpr,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside = _block_pixels(block, STAGE)
    at, real = _offsets(image, pixel, inside, STAGE)
    slope = tl.load(slope_ptr + at, mask=real, other=0.0).to(tl.float32)
    attention = _per_pixel(attention_ptr, image, pixel, inside, STAGE, LAYOUT, SPATIAL)
    if CHANNEL:
        channel = _per_channel(channel_ptr, image, STAGE, LAYOUT)
        mean_slope = _per_channel(mean_slopes_ptr, image, STAGE, LAYOUT)
        mean_slope /= STAGE.height * STAGE.width
        slope *= _weigh(attention, channel[None, :], SPATIAL)
        slope += mean_slope[None, :] * (1.0 + attention)
    else:
        slope *= 1.0 + attention
    if SPATIAL:
        x = tl.load(skip_ptr + at, mask=real, other=0.0).to(tl.float32)
        x = tl.where(real, x, float("-inf"))
        at_highest = tl.where(x == tl.max(x, 1)[:, None], 1.0, 0.0)
        ties = tl.sum(at_highest, 1)  # they share the gradient, as torch's amax does
        to_mean, to_highest = _convolve_back(
            frame_slopes_ptr, weight_ptr, image, pixel, inside, STAGE, LAYOUT
        )
        slope += (to_mean / STAGE.channels)[:, None] + at_highest * (to_highest / ties)[:, None]
    tl.store(skip_slope_ptr + at, slope.to(skip_slope_ptr.dtype.element_ty), mask=real)


@triton.jit
def _convolve_back(
    frame_slopes_ptr,
    weight_ptr,
    image,
    pixel,
    inside,
    STAGE: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """The transposed 7×7 convolution: gradients (pixels,) of the mean and of the maximum."""
    corner_ptr = frame_slopes_ptr + _corner(image, pixel, inside, STAGE, LAYOUT)
    to_mean = tl.zeros_like(pixel).to(tl.float32)
    to_highest = tl.zeros_like(pixel).to(tl.float32)
    for down in range(SIDE):
        for right in tl.static_range(SIDE):
            slope = tl.load(corner_ptr + STEP * (down * (STAGE.width + 2 * REACH) + right))
            turned = TAPS - 1 - (down * SIDE + right)  # by half a circle
            to_mean += slope * tl.load(weight_ptr + turned)
            to_highest += slope * tl.load(weight_ptr + TAPS + turned)
    return to_mean, to_highest


@triton.jit
def _weight_slope_block(
    maps_ptr, frame_slopes_ptr, partials_ptr, image, block, S: tl.constexpr, LAYOUT: tl.constexpr
):
    """Write one block's part of the gradients of the 7×7 weights and of their bias."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    FRAME_WIDTH: tl.constexpr = STAGE.width + 2 * REACH
    tap = tl.arange(0, 64)
    kept = tl.where(tap < TAPS, tap, 0)
    step = STEP * ((kept // SIDE) * FRAME_WIDTH + kept % SIDE)
    by_mean = tl.zeros((64, LANES), tl.float32)
    by_highest = tl.zeros((64, LANES), tl.float32)
    bias = tl.zeros((LANES,), tl.float32)
    for chunk in range(STAGE.pixels // LANES):
        pixel = (block - STAGE.block) * STAGE.pixels + chunk * LANES + tl.arange(0, LANES)
        inside = pixel < STAGE.height * STAGE.width
        corner = _corner(image, pixel, inside, STAGE, LAYOUT)
        centre = corner + REACH * FRAME_WIDTH + REACH
        slope = tl.load(frame_slopes_ptr + corner[None, :] + step[:, None])  # (64, LANES)
        mean = tl.load(maps_ptr + centre * 2, mask=inside, other=0.0)
        highest = tl.load(maps_ptr + centre * 2 + 1, mask=inside, other=0.0)
        by_mean += slope * mean[None, :]
        by_highest += slope * highest[None, :]
        bias += tl.load(frame_slopes_ptr + centre, mask=inside, other=0.0)
    partials_ptr += (image * LAYOUT.blocks + block) * ROW
    turned = TAPS - 1 - tap
    tl.store(partials_ptr + turned, tl.sum(by_mean, 1), mask=tap < TAPS)
    tl.store(partials_ptr + TAPS + turned, tl.sum(by_highest, 1), mask=tap < TAPS)
    tl.store(partials_ptr + 2 * TAPS, tl.sum(bias, 0))


@triton.jit(do_not_specialize=["batch"])
def _parameter_kernel(
    logit_slopes_ptr,
    means_ptr,
    conv_ptr,
    conv_partials_ptr,
    spatial_partials_ptr,
    head_slopes_ptr,
    bias_slopes_ptr,
    conv_slopes_ptr,
    spatial_slopes_ptr,
    batch,
    LAYOUT: tl.constexpr,
    SPATIAL: tl.constexpr,
    CHANNEL: tl.constexpr,
    TILES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A program adds up over the batch one tile of the head weights, or some other gradients.

    The first TILES programs take the heads, the next the convolution along the channels, the
    rest SECTOR columns each of the 7×7 convolution. PARTS is the conv partials of one image.
    """
    part = tl.program_id(0)
    if CHANNEL:
        if part < TILES:
            _head_slopes(
                logit_slopes_ptr,
                means_ptr,
                conv_ptr,
                head_slopes_ptr,
                bias_slopes_ptr,
                part,
                batch,
                LAYOUT,
                PARTS,
            )
        elif part == TILES:
            _add_rows(conv_partials_ptr, conv_slopes_ptr, 0, batch * PARTS, 3, 4, 4)
        part -= TILES + 1
    if SPATIAL:  # known when compiled, the next one is not
        if part >= 0:
            rows = batch * LAYOUT.blocks
            WIDTH: tl.constexpr = 2 * TAPS + 1
            _add_rows(
                spatial_partials_ptr, spatial_slopes_ptr, part * SECTOR, rows, WIDTH, ROW, SECTOR
            )


@triton.jit
def _head_slopes(
    logit_slopes_ptr,
    means_ptr,
    conv_ptr,
    head_slopes_ptr,
    bias_slopes_ptr,
    part,
    batch,
    LAYOUT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One tile (ROWS, COLUMNS) of the head weights' gradient, all stages' rows in one matrix."""
    row = (part // PARTS) * ROWS + tl.arange(0, ROWS)
    column = (part % PARTS) * COLUMNS + tl.arange(0, COLUMNS)
    weights = tl.zeros((ROWS, COLUMNS), tl.float32)
    bias = tl.zeros((ROWS,), tl.float32)
    for first in range(0, batch, IMAGES):
        image = first + tl.arange(0, IMAGES)
        real = (image < batch)[None, :] & (row < LAYOUT.channels)[:, None]
        at = image[None, :] * LAYOUT.channels + row[:, None]
        slopes = tl.load(logit_slopes_ptr + at, mask=real, other=0.0)  # (ROWS, IMAGES)
        inputs = tl.zeros((IMAGES, COLUMNS), tl.float32)
        for tap in tl.static_range(3):
            source = column + (tap - 1)
            real = (source >= 0) & (source < LAYOUT.channels) & (image < batch)[:, None]
            at = image[:, None] * LAYOUT.channels + source[None, :]
            inputs += tl.load(conv_ptr + tap) * tl.load(means_ptr + at, mask=real, other=0.0)
        weights = tl.dot(slopes, inputs, weights, input_precision="tf32x3")
        bias += tl.sum(slopes, 1)
    at = row[:, None] * LAYOUT.channels + column[None, :]
    real = (row < LAYOUT.channels)[:, None] & (column < LAYOUT.channels)[None, :]
    tl.store(head_slopes_ptr + at, weights, mask=real)
    tl.store(bias_slopes_ptr + row, bias, mask=(row < LAYOUT.channels) & (part % PARTS == 0))


@triton.jit
def _add_rows(
    pointer,
    to_ptr,
    first,
    rows,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Add up COUNT columns, from ``first`` on, of an array (rows, PITCH) with WIDTH real ones."""
    CHUNK: tl.constexpr = 512
    column = first + tl.arange(0, COUNT)
    sums = tl.zeros((CHUNK, COUNT), tl.float32)
    for start in range(0, rows, CHUNK):
        row = start + tl.arange(0, CHUNK)
        real = (row < rows)[:, None] & (column < WIDTH)[None, :]
        sums += tl.load(pointer + row[:, None] * PITCH + column[None, :], mask=real, other=0.0)
    tl.store(to_ptr + column, tl.sum(sums, 0), mask=column < WIDTH)


# ---------------------------------------------------------------- launches


class _Bridge(torch.autograd.Function):
    """Flat arguments: the parameters, then all skips, head weights and head biases."""

    @staticmethod
    def forward(
        ctx: Any,
        spatial_weight: Tensor | None,
        spatial_bias: Tensor | None,
        conv_weight: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        spatial, channel = spatial_weight is not None, conv_weight is not None
        stages = len(tensors) // 3 if channel else len(tensors)
        skips, heads = tensors[:stages], tensors[stages : 2 * stages]
        layout = lay_out(tuple((t.shape[1], t.shape[2], t.shape[3]) for t in skips))
        batch = skips[0].shape[0]
        blocks, frame_blocks = (layout.blocks, batch), (layout.frame_blocks, batch)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=skips[0].device)

        results = tuple(torch.empty_like(skip) for skip in skips)
        maps = attention = partials = means = weights = None
        if spatial:
            maps = empty(batch, layout.frames, 2)
            attention = empty(batch, layout.points)
            _map_kernel[frame_blocks](skips, maps, LAYOUT=layout, num_warps=WARPS)
        if channel:
            partials = empty(batch, layout.most_blocks, layout.channels)
            means = empty(batch, layout.channels)
            weights = empty(batch, layout.channels)
        _attend_kernel[blocks](
            skips,
            results,
            maps,
            spatial_weight,
            spatial_bias,
            attention,
            partials,
            LAYOUT=layout,
            SPATIAL=spatial,
            CHANNEL=channel,
            num_warps=WARPS,
        )
        if channel:
            _channel_kernel[(batch, stages)](
                partials, conv_weight, heads, tensors[2 * stages :], means, weights, LAYOUT=layout
            )
            _result_kernel[blocks](
                skips,
                results,
                attention,
                weights,
                LAYOUT=layout,
                SPATIAL=spatial,
                num_warps=WARPS,
            )
        ctx.layout = layout
        ctx.save_for_backward(
            spatial_weight, conv_weight, maps, attention, means, weights, *skips, *heads
        )
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        stages = len(layout.stages)
        spatial_weight, conv_weight, maps, attention, means, weights, *tensors = ctx.saved_tensors
        spatial, channel = spatial_weight is not None, conv_weight is not None
        skips, heads = tuple(tensors[:stages]), tuple(tensors[stages:])
        slopes = tuple(slope.contiguous() for slope in slopes)
        batch = skips[0].shape[0]
        blocks, frame_blocks = (layout.blocks, batch), (layout.frame_blocks, batch)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=skips[0].device)

        width = layout.channels
        parts = triton.cdiv(width, COLUMNS.value)
        skip_slopes = tuple(torch.empty_like(skip) for skip in skips)
        head_slopes = bias_slopes = conv_slopes = spatial_slopes = None
        local = logit_slopes = mean_slopes = conv_partials = None
        frame_slopes = spatial_partials = None
        if channel:
            head_slopes, bias_slopes = empty(width, width), empty(width)
            conv_slopes = empty(1, 1, 3)
            partials = empty(batch, layout.most_blocks, width)
            logit_slopes, mean_slopes = empty(batch, width), empty(batch, width)
            conv_partials = empty(batch, parts, 4)
            local = empty(batch, layout.points) if spatial else None
            _product_kernel[blocks](
                skips,
                slopes,
                attention,
                weights,
                partials,
                local,
                LAYOUT=layout,
                SPATIAL=spatial,
                num_warps=WARPS,
            )
            _channel_back_kernel[(batch, parts)](
                partials,
                weights,
                means,
                conv_weight,
                heads,
                logit_slopes,
                mean_slopes,
                conv_partials,
                LAYOUT=layout,
            )
        if spatial:
            spatial_slopes = empty(2 * TAPS.value + 1)
            spatial_partials = empty(batch, layout.blocks, ROW.value)
            frame_slopes = empty(batch, layout.frames)
            _spatial_slope_kernel[frame_blocks](
                skips,
                slopes,
                attention,
                local,
                mean_slopes,
                frame_slopes,
                LAYOUT=layout,
                CHANNEL=channel,
                num_warps=WARPS,
            )
        _skip_slope_kernel[blocks](
            skips,
            slopes,
            skip_slopes,
            attention,
            weights,
            mean_slopes,
            frame_slopes,
            maps,
            spatial_weight,
            spatial_partials,
            LAYOUT=layout,
            SPATIAL=spatial,
            CHANNEL=channel,
            num_warps=WARPS,
        )
        tiles = triton.cdiv(width, ROWS.value) * parts if channel else 0
        _parameter_kernel[(tiles + channel + spatial * ROW.value // SECTOR.value,)](
            logit_slopes,
            means,
            conv_weight,
            conv_partials,
            spatial_partials,
            head_slopes,
            bias_slopes,
            conv_slopes,
            spatial_slopes,
            batch,
            LAYOUT=layout,
            SPATIAL=spatial,
            CHANNEL=channel,
            TILES=tiles,
            PARTS=parts,
        )
        gradients: list[Tensor | None] = [None, None, conv_slopes]
        if spatial_slopes is not None:
            taps = 2 * TAPS.value
            gradients[:2] = [spatial_slopes[:taps].view_as(spatial_weight), spatial_slopes[taps:]]
        gradients += skip_slopes
        if head_slopes is not None and bias_slopes is not None:
            widths = [stage.channels for stage in layout.stages]
            gradients += [*head_slopes.split(widths), *bias_slopes.split(widths)]
        return tuple(gradients)


def bridge(
    skips: Sequence[Tensor],
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    channel_conv_weight: Tensor | None,
    head_weights: Sequence[Tensor] | None,
    head_biases: Sequence[Tensor] | None,
) -> list[Tensor]:
    """The bridged skips of all stages, differentiable in every argument.

    Args:
        skips: Per stage (batch, height, width, channels), channels last and contiguous; all
            of one type: float32, bfloat16 or float16.
        spatial_weight: (1, 2, 7, 7) of the convolution over mean and maximum, float32; None,
            with ``spatial_bias`` (1,), leaves the spatial attention out.
        spatial_bias: (1,).
        channel_conv_weight: (1, 1, 3) of the convolution along the channels, float32; None,
            with the heads, leaves the channel attention out.
        head_weights: Per stage (channels, channels of all stages), float32.
        head_biases: Per stage (channels,).

    Returns:
        Per stage the shape and type of its skip.
    """
    if spatial_weight is None and channel_conv_weight is None:
        return list(skips)
    heads: list[Tensor] = []
    if head_weights is not None and head_biases is not None:
        heads = [*head_weights, *head_biases]
    tensors = [tensor.contiguous() for tensor in [*skips, *heads]]
    return list(_Bridge.apply(spatial_weight, spatial_bias, channel_conv_weight, *tensors))
