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

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels.arrays import keep, kept, scratch
from ulvm.nn.kernels.bridge_layout import (
    COLUMNS,
    IMAGES,
    LANES,
    REACH,
    ROW,
    ROWS,
    SECTOR,
    SIDE,
    STEP,
    TAPS,
    Layout,
    Pointers,
    add_partials,
    block_pixels,
    first_tap,
    frame_pixels,
    lay_out,
    load,
    per_channel,
    places,
    run_blocks,
    store,
    write_partial,
)
from ulvm.nn.kernels.norms import zeros

# ---------------------------------------------------------------- forward


@triton.jit
def _map(p, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """A program writes mean and maximum over the channels for one block of a frame."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    place, pixel, inside = frame_pixels(block, STAGE)
    here, real = places(image, pixel, inside, STAGE)
    x = load(p.skips[S], here, real)
    mean = tl.sum(x, 1) / STAGE.channels
    highest = tl.max(tl.where(real, x, float("-inf")), 1)
    pair = tl.join(mean, tl.where(inside, highest, 0.0))  # (pixels, 2)
    to = (image * LAYOUT.frames + STAGE.frame + place)[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(p.maps + to, pair, mask=(place < STAGE.frame_size)[:, None])


@triton.jit
def _attend(p, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """A program makes one block's spatial attention, and its channel sums or the result."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside, here, real = block_pixels(image, block, STAGE)
    residual = load(p.skips[S], here, real)
    if p.attention is not None:
        half = tl.arange(0, 2)
        corner = first_tap(image, pixel, inside, STAGE, LAYOUT)
        taps = p.maps + corner[:, None] * 2 + half[None, :]  # mean and maximum side by side
        sums = zeros(STAGE.pixels, 2)
        for down in range(SIDE):
            for right in tl.static_range(SIDE):
                step = STEP * (down * STAGE.frame_width + right)
                weight = tl.load(p.spatial_weight + half * TAPS + (down * SIDE + right))
                sums += tl.load(taps + 2 * step) * weight[None, :]
        attention = tl.sigmoid(tl.sum(sums, 1) + tl.load(p.spatial_bias))  # (pixels,)
        to = p.attention + image * LAYOUT.points + STAGE.point + pixel
        tl.store(to, attention, mask=inside)
        residual += attention[:, None] * residual
    if p.weights is not None:
        write_partial(p.partials, image, block, tl.sum(residual, 0), STAGE, LAYOUT)
    else:
        store(p.results[S], here, real, residual)


@triton.jit
def _channel_kernel(p, LAYOUT: tl.constexpr):
    """A program makes the channel attention of one image and stage; that of stage 0 the means."""
    for S in tl.static_range(len(LAYOUT.stages)):
        if tl.program_id(1) == S:
            _weigh_channels(p, tl.program_id(0), S, LAYOUT)


@triton.jit
def _weigh_channels(p, image, S: tl.constexpr, LAYOUT: tl.constexpr):
    STAGE: tl.constexpr = LAYOUT.stages[S]
    out = tl.arange(0, STAGE.padded)
    logits = tl.load(p.biases[S] + out, mask=out < STAGE.channels, other=0.0)
    for T in tl.static_range(len(LAYOUT.stages)):
        logits += _head_of_stage(p, image, S, T, LAYOUT)
    to = p.weights + image * LAYOUT.channels + STAGE.channel + out
    tl.store(to, tl.sigmoid(logits), mask=out < STAGE.channels)


@triton.jit
def _head_of_stage(p, image, S: tl.constexpr, T: tl.constexpr, LAYOUT: tl.constexpr):
    """What the means of stage T add to the logits of stage S, (padded,)."""
    SOURCE: tl.constexpr = LAYOUT.stages[T]
    means = add_partials(p.partials, image, SOURCE, LAYOUT) / SOURCE.size
    column = tl.arange(0, SOURCE.padded)
    real = column < SOURCE.channels
    if S == 0:
        to = p.means + image * LAYOUT.channels + SOURCE.channel + column
        tl.store(to, means, mask=real)
    # The convolution along the channels is moved onto the head's columns, which lie in memory.
    weight = zeros(LAYOUT.stages[S].padded, SOURCE.padded)
    for tap in tl.static_range(3):
        at = SOURCE.channel + column + (1 - tap)
        weight += tl.load(p.conv + tap) * _head_tile(p.heads[S], at, real, S, LAYOUT)
    return tl.sum(weight * means[None, :], 1)


@triton.jit
def _head_tile(head, column, real, S: tl.constexpr, LAYOUT: tl.constexpr):
    """Stage S's head weights (padded, columns) at these columns, zero beyond the matrix."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    out = tl.arange(0, STAGE.padded)
    real = real & (column >= 0) & (column < LAYOUT.channels)
    at = out[:, None] * LAYOUT.channels + column[None, :]
    return tl.load(head + at, mask=(out < STAGE.channels)[:, None] & real[None, :], other=0.0)


@triton.jit
def _weigh_skip(p, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """A program weighs one block of a skip with both attentions."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside, here, real = block_pixels(image, block, STAGE)
    x = load(p.skips[S], here, real)
    attention = _per_pixel(p.attention, image, pixel, inside, STAGE, LAYOUT)
    factor = _factor(p, attention, image, STAGE, LAYOUT)
    store(p.results[S], here, real, x * factor)


@triton.jit
def _per_pixel(pointer, image, pixel, inside, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """The spatial attention (pixels, 1); zeros, never used, without one."""
    if pointer is not None:
        at = image * LAYOUT.points + STAGE.point + pixel
        attention = tl.load(pointer + at, mask=inside, other=0.0)
    else:
        attention = tl.zeros_like(pixel).to(tl.float32)
    return attention[:, None]


@triton.jit
def _factor(p, attention, image, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """The factor of a skip in the result: c·(a + 1) + a, or c + 1 without spatial attention."""
    channel = per_channel(p.weights, image, STAGE, LAYOUT)[None, :]
    return channel * (attention + 1.0) + attention if p.attention is not None else channel + 1.0


# ---------------------------------------------------------------- backward


@triton.jit
def _multiply(p, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """A program writes one block's part of dc, and the part of da that needs no other pixel."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside, here, real = block_pixels(image, block, STAGE)
    product = load(p.skips[S], here, real)
    product *= load(p.d_results[S], here, real)
    attention = _per_pixel(p.attention, image, pixel, inside, STAGE, LAYOUT)
    sums = tl.sum(product * (1.0 + attention), 0)
    write_partial(p.partials, image, block, sums, STAGE, LAYOUT)
    if p.attention is not None:
        channel = per_channel(p.weights, image, STAGE, LAYOUT)
        local = tl.sum(product * (1.0 + channel)[None, :], 1)
        tl.store(p.d_local + image * LAYOUT.points + STAGE.point + pixel, local, mask=inside)


@triton.jit
def _channel_back_kernel(p, LAYOUT: tl.constexpr):
    """A program takes one image's gradient back through the heads to COLUMNS of the means.

    It also writes its columns' part of the gradient of the convolution along the channels.
    """
    image = tl.program_id(0)
    part = tl.program_id(1)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    real = column < LAYOUT.channels
    before, middle, after = zeros(COLUMNS), zeros(COLUMNS), zeros(COLUMNS)  # through each tap
    for S in tl.static_range(len(LAYOUT.stages)):
        d_logits = _d_logits(p, image, part, S, LAYOUT)
        before += tl.sum(d_logits * _head_tile(p.heads[S], column + 1, real, S, LAYOUT), 0)
        middle += tl.sum(d_logits * _head_tile(p.heads[S], column, real, S, LAYOUT), 0)
        after += tl.sum(d_logits * _head_tile(p.heads[S], column - 1, real, S, LAYOUT), 0)
    d_means = tl.load(p.conv) * before + tl.load(p.conv + 1) * middle
    d_means += tl.load(p.conv + 2) * after
    at = image * LAYOUT.channels + column
    tl.store(p.d_means + at, d_means, mask=real)
    means = tl.load(p.means + at, mask=real, other=0.0)
    to = p.conv_partials + (image * tl.num_programs(1) + part) * 4
    tl.store(to, tl.sum(means * before, 0))
    tl.store(to + 1, tl.sum(means * middle, 0))
    tl.store(to + 2, tl.sum(means * after, 0))


@triton.jit
def _d_logits(p, image, part, S: tl.constexpr, LAYOUT: tl.constexpr):
    """The gradient (padded, 1) of one stage's logits, also written by the first part."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    out = tl.arange(0, STAGE.padded)
    attention = per_channel(p.weights, image, STAGE, LAYOUT)
    d_logits = add_partials(p.partials, image, STAGE, LAYOUT) * attention * (1.0 - attention)
    to = p.d_logits + image * LAYOUT.channels + STAGE.channel + out
    tl.store(to, d_logits, mask=(out < STAGE.channels) & (part == 0))
    return d_logits[:, None]


@triton.jit
def _differentiate_attention(p, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """A program writes the gradient before the sigmoid for one block of a frame."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    place, pixel, inside = frame_pixels(block, STAGE)
    here, real = places(image, pixel, inside, STAGE)
    point = image * LAYOUT.points + STAGE.point + pixel
    x = load(p.skips[S], here, real)
    if p.weights is not None:
        d_mean = per_channel(p.d_means, image, STAGE, LAYOUT)
        d_raw = tl.sum(x * d_mean[None, :], 1) / STAGE.size
        d_raw += tl.load(p.d_local + point, mask=inside, other=0.0)
    else:
        d_raw = tl.sum(x * load(p.d_results[S], here, real), 1)
    attention = tl.load(p.attention + point, mask=inside, other=0.0)
    d_raw *= attention * (1.0 - attention)  # zero in the border
    to = p.d_raw + image * LAYOUT.frames + STAGE.frame + place
    tl.store(to, d_raw, mask=place < STAGE.frame_size)


@triton.jit
def _differentiate_skip(p, image, block, S: tl.constexpr, LAYOUT: tl.constexpr):
    """A program writes one block of a skip's gradient and its part of the 7×7 weights' one."""
    STAGE: tl.constexpr = LAYOUT.stages[S]
    pixel, inside, here, real = block_pixels(image, block, STAGE)
    d_skip = load(p.d_results[S], here, real)
    attention = _per_pixel(p.attention, image, pixel, inside, STAGE, LAYOUT)
    if p.weights is not None:
        d_mean = per_channel(p.d_means, image, STAGE, LAYOUT)
        d_mean /= STAGE.size
        d_skip *= _factor(p, attention, image, STAGE, LAYOUT)
        d_skip += d_mean[None, :] * (1.0 + attention)
    else:
        d_skip *= 1.0 + attention
    if p.attention is not None:
        x = load(p.skips[S], here, real)
        x = tl.where(real, x, float("-inf"))
        at_highest = tl.where(x == tl.max(x, 1)[:, None], 1.0, 0.0)
        ties = tl.sum(at_highest, 1)  # they share the gradient, as torch's amax does
        to_mean, to_highest = _convolve_back(p, image, pixel, inside, STAGE, LAYOUT)
        d_skip += (to_mean / STAGE.channels)[:, None] + at_highest * (to_highest / ties)[:, None]
    store(p.d_skips[S], here, real, d_skip)
    if p.attention is not None:
        _sum_spatial_gradient(p, image, block, STAGE, LAYOUT)


@triton.jit
def _convolve_back(p, image, pixel, inside, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """The transposed 7×7 convolution: gradients (pixels,) of the mean and of the maximum."""
    corner = p.d_raw + first_tap(image, pixel, inside, STAGE, LAYOUT)
    to_mean = tl.zeros_like(pixel).to(tl.float32)
    to_highest = tl.zeros_like(pixel).to(tl.float32)
    for down in range(SIDE):
        for right in tl.static_range(SIDE):
            d_raw = tl.load(corner + STEP * (down * STAGE.frame_width + right))
            turned = TAPS - 1 - (down * SIDE + right)  # by half a circle
            to_mean += d_raw * tl.load(p.spatial_weight + turned)
            to_highest += d_raw * tl.load(p.spatial_weight + TAPS + turned)
    return to_mean, to_highest


@triton.jit
def _sum_spatial_gradient(p, image, block, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Write one block's part of the gradients of the 7×7 weights and of their bias."""
    tap = tl.arange(0, 64)
    kept = tl.where(tap < TAPS, tap, 0)
    step = STEP * ((kept // SIDE) * STAGE.frame_width + kept % SIDE)
    by_mean, by_highest, bias = zeros(64, LANES), zeros(64, LANES), zeros(LANES)
    for chunk in range(STAGE.pixels // LANES):
        pixel = block * STAGE.pixels + chunk * LANES + tl.arange(0, LANES)
        inside = pixel < STAGE.size
        corner = first_tap(image, pixel, inside, STAGE, LAYOUT)
        centre = corner + REACH * STAGE.frame_width + REACH
        d_raw = tl.load(p.d_raw + corner[None, :] + step[:, None])  # (64, LANES)
        mean = tl.load(p.maps + centre * 2, mask=inside, other=0.0)
        highest = tl.load(p.maps + centre * 2 + 1, mask=inside, other=0.0)
        by_mean += d_raw * mean[None, :]
        by_highest += d_raw * highest[None, :]
        bias += tl.load(p.d_raw + centre, mask=inside, other=0.0)
    to = p.spatial_partials + (image * LAYOUT.blocks + STAGE.block + block) * ROW
    turned = TAPS - 1 - tap
    tl.store(to + turned, tl.sum(by_mean, 1), mask=tap < TAPS)
    tl.store(to + TAPS + turned, tl.sum(by_highest, 1), mask=tap < TAPS)
    tl.store(to + 2 * TAPS, tl.sum(bias, 0))


@triton.jit(do_not_specialize=["batch"])
def _parameter_kernel(p, batch, LAYOUT: tl.constexpr, TILES: tl.constexpr, PARTS: tl.constexpr):
    """A program adds up over the batch one tile of the head weights, or some other gradients.

    The first TILES programs take the heads, the next the convolution along the channels, the
    rest SECTOR columns each of the 7×7 convolution. PARTS is the conv partials of one image.
    """
    part = tl.program_id(0)
    if p.weights is not None:
        if part < TILES:
            _sum_head_gradient(p, part, batch, LAYOUT, PARTS)
        elif part == TILES:
            _add_rows(p.conv_partials, p.d_conv, 0, batch * PARTS, 3, 4, 4)
        part -= TILES + 1
    if p.attention is not None:  # known when compiled, the next one is not
        if part >= 0:
            rows = batch * LAYOUT.blocks
            WIDTH: tl.constexpr = 2 * TAPS + 1
            _add_rows(p.spatial_partials, p.d_spatial, part * SECTOR, rows, WIDTH, ROW, SECTOR)


@triton.jit
def _sum_head_gradient(p, part, batch, LAYOUT: tl.constexpr, PARTS: tl.constexpr):
    """One tile (ROWS, COLUMNS) of the head weights' gradient, all stages' rows in one matrix."""
    row = (part // PARTS) * ROWS + tl.arange(0, ROWS)
    column = (part % PARTS) * COLUMNS + tl.arange(0, COLUMNS)
    d_weight, d_bias = zeros(ROWS, COLUMNS), zeros(ROWS)
    for first in range(0, batch, IMAGES):
        image = first + tl.arange(0, IMAGES)
        real = (image < batch)[None, :] & (row < LAYOUT.channels)[:, None]
        at = image[None, :] * LAYOUT.channels + row[:, None]
        d_logits = tl.load(p.d_logits + at, mask=real, other=0.0)  # (ROWS, IMAGES)
        inputs = zeros(IMAGES, COLUMNS)
        for tap in tl.static_range(3):
            source = column + (tap - 1)
            real = (source >= 0) & (source < LAYOUT.channels) & (image < batch)[:, None]
            at = image[:, None] * LAYOUT.channels + source[None, :]
            inputs += tl.load(p.conv + tap) * tl.load(p.means + at, mask=real, other=0.0)
        d_weight = tl.dot(d_logits, inputs, d_weight, input_precision="tf32x3")
        d_bias += tl.sum(d_logits, 1)
    at = row[:, None] * LAYOUT.channels + column[None, :]
    real = (row < LAYOUT.channels)[:, None] & (column < LAYOUT.channels)[None, :]
    tl.store(p.d_heads + at, d_weight, mask=real)
    tl.store(p.d_biases + row, d_bias, mask=(row < LAYOUT.channels) & (part % PARTS == 0))


@triton.jit
def _add_rows(
    pointer, to, first, rows, WIDTH: tl.constexpr, PITCH: tl.constexpr, COUNT: tl.constexpr
):
    """Add up COUNT columns, from ``first`` on, of an array (rows, PITCH) with WIDTH real ones."""
    CHUNK: tl.constexpr = 512
    column = first + tl.arange(0, COUNT)
    sums = zeros(CHUNK, COUNT)
    for start in range(0, rows, CHUNK):
        row = start + tl.arange(0, CHUNK)
        real = (row < rows)[:, None] & (column < WIDTH)[None, :]
        sums += tl.load(pointer + row[:, None] * PITCH + column[None, :], mask=real, other=0.0)
    tl.store(to + column, tl.sum(sums, 0), mask=column < WIDTH)


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
        skips = tensors[:stages]
        layout = lay_out(tuple((t.shape[1], t.shape[2], t.shape[3]) for t in skips))
        batch, empty = len(skips[0]), partial(scratch, skips[0])
        p = Pointers(skips, tuple(torch.empty_like(skip) for skip in skips))
        if spatial:
            p = p._replace(
                spatial_weight=spatial_weight,
                spatial_bias=spatial_bias,
                maps=empty(batch, layout.frames, 2),
                attention=empty(batch, layout.points),
            )
            run_blocks(_map, p, layout, frames=True)
        if channel:
            p = p._replace(
                conv=conv_weight,
                heads=tensors[stages : 2 * stages],
                biases=tensors[2 * stages :],
                partials=empty(batch, layout.most_blocks, layout.channels),
                means=empty(batch, layout.channels),
                weights=empty(batch, layout.channels),
            )
        run_blocks(_attend, p, layout)
        if channel:
            _channel_kernel[(batch, stages)](p, LAYOUT=layout)
            run_blocks(_weigh_skip, p, layout)
        ctx.layout = layout
        keep(ctx, p._replace(results=None, partials=None, biases=None))
        return p.results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        p = kept(ctx, Pointers)
        spatial, channel = p.attention is not None, p.weights is not None
        batch, width, empty = len(p.skips[0]), layout.channels, partial(scratch, p.skips[0])
        parts = triton.cdiv(width, COLUMNS.value)
        p = p._replace(
            d_results=tuple(each.contiguous() for each in d_results),
            d_skips=tuple(torch.empty_like(skip) for skip in p.skips),
        )
        if channel:
            p = p._replace(
                partials=empty(batch, layout.most_blocks, width),
                d_local=empty(batch, layout.points) if spatial else None,
                d_logits=empty(batch, width),
                d_means=empty(batch, width),
                conv_partials=empty(batch, parts, 4),
                d_heads=empty(width, width),
                d_biases=empty(width),
                d_conv=empty(1, 1, 3),
            )
            run_blocks(_multiply, p, layout)
            _channel_back_kernel[(batch, parts)](p, LAYOUT=layout)
        if spatial:
            p = p._replace(
                d_raw=empty(batch, layout.frames),
                spatial_partials=empty(batch, layout.blocks, ROW.value),
                d_spatial=empty(2 * TAPS.value + 1),
            )
            run_blocks(_differentiate_attention, p, layout, frames=True)
        run_blocks(_differentiate_skip, p, layout)
        tiles = triton.cdiv(width, ROWS.value) * parts if channel else 0
        sectors = ROW.value // SECTOR.value if spatial else 0
        programs = tiles + channel + sectors
        _parameter_kernel[(programs,)](p, batch, LAYOUT=layout, TILES=tiles, PARTS=parts)
        gradients: list[Tensor | None] = [None, None, p.d_conv, *p.d_skips]
        if spatial:
            taps = 2 * TAPS.value
            gradients[:2] = [p.d_spatial[:taps].view_as(p.spatial_weight), p.d_spatial[taps:]]
        if channel:
            widths = [stage.channels for stage in layout.stages]
            gradients += [*p.d_heads.split(widths), *p.d_biases.split(widths)]
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
