"""Where the numbers of the skip bridge lie: stages, blocks, frames, partial sums."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ulvm.nn.kernels.norms import zeros

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


class Stage(NamedTuple):
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
    frame_block: int  # the same for the blocks of the frame
    size: int  # pixels
    blocks: int
    frame_width: int
    frame_size: int
    frame_blocks: int


class Layout(NamedTuple):
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
    ends = (0,) * 5  # of channels, points, frames, blocks and blocks of the frames
    for height, width, channels in shapes:
        padded = triton.next_power_of_2(channels)
        pixels = max(tile // padded, LANES.value)
        size, blocks = height * width, triton.cdiv(height * width, pixels)
        frame_width = width + 2 * REACH.value
        frame_size = (height + 2 * REACH.value) * frame_width
        frame_blocks = triton.cdiv(frame_size, pixels)
        derived = (size, blocks, frame_width, frame_size, frame_blocks)
        stages.append(Stage(height, width, channels, padded, pixels, *ends, *derived))
        lengths = (channels, size, frame_size, blocks, frame_blocks)
        ends = tuple(map(sum, zip(ends, lengths, strict=True)))
    return Layout(tuple(stages), *ends, max(stage.blocks for stage in stages))


class Pointers(NamedTuple):
    """All arrays; None without the attention that they belong to. ``d_`` are gradients."""

    skips: Any  # per stage (batch, height, width, channels), and so are the next three
    results: Any = None
    d_results: Any = None
    d_skips: Any = None

    spatial_weight: Any = None  # (2, 7, 7), for mean and maximum
    spatial_bias: Any = None  # (1,)
    maps: Any = None  # (batch, frames, 2), mean and maximum over the channels
    attention: Any = None  # (batch, points)
    d_local: Any = None  # (batch, points), the part of d_attention that needs no other pixel
    d_raw: Any = None  # (batch, frames), before the sigmoid
    spatial_partials: Any = None  # (batch, blocks, ROW)
    d_spatial: Any = None  # (99,), of weight and bias

    conv: Any = None  # (3,), along the channels
    heads: Any = None  # per stage (channels, all channels)
    biases: Any = None  # per stage (channels,)
    partials: Any = None  # (batch, most blocks, all channels)
    means: Any = None  # (batch, all channels), and so are the next three
    weights: Any = None  # the channel attention
    d_logits: Any = None
    d_means: Any = None
    conv_partials: Any = None  # (batch, parts, 4)
    d_heads: Any = None  # (all channels, all channels)
    d_biases: Any = None  # (all channels,)
    d_conv: Any = None  # (1, 1, 3)


def run_blocks(body: Any, p: Pointers, layout: Layout, *, frames: bool = False) -> None:
    """Launch ``body`` for each block of all stages and pictures, or for those of the frames."""
    blocks = layout.frame_blocks if frames else layout.blocks
    _block_kernel[(blocks, len(p.skips[0]))](
        p, BODY=body, LAYOUT=layout, FRAMES=frames, num_warps=WARPS
    )


@triton.jit
def _block_kernel(p, BODY: tl.constexpr, LAYOUT: tl.constexpr, FRAMES: tl.constexpr):
    """Run ``BODY`` for the stage that this program's block lies in."""
    block = tl.program_id(0)
    for S in tl.static_range(len(LAYOUT.stages)):
        first = LAYOUT.stages[S].frame_block if FRAMES else LAYOUT.stages[S].block
        blocks = LAYOUT.stages[S].frame_blocks if FRAMES else LAYOUT.stages[S].blocks
        if (block >= first) & (block < first + blocks):
            BODY(p, tl.program_id(1), block - first, S, LAYOUT)


@triton.jit
def block_pixels(image, block, STAGE: tl.constexpr):
    """For one block: (pixels,) pixel, which exist; (pixels, padded) place in a skip, likewise."""
    pixel = block * STAGE.pixels + tl.arange(0, STAGE.pixels)
    inside = pixel < STAGE.size
    here, real = places(image, pixel, inside, STAGE)
    return pixel, inside, here, real


@triton.jit
def frame_pixels(block, STAGE: tl.constexpr):
    """For one block of a frame: (pixels,) place in the frame, pixel below, which have a pixel."""
    place = block * STAGE.pixels + tl.arange(0, STAGE.pixels)
    y = place // STAGE.frame_width - REACH
    x = place % STAGE.frame_width - REACH
    inside = (y >= 0) & (y < STAGE.height) & (x >= 0) & (x < STAGE.width)
    return place, tl.where(inside, y * STAGE.width + x, 0), inside


@triton.jit
def first_tap(image, pixel, inside, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Where in the frames the convolution's first tap of each pixel lies."""
    y = pixel // STAGE.width
    corner = tl.where(inside, y * STAGE.frame_width + pixel - y * STAGE.width, 0)
    return image * LAYOUT.frames + STAGE.frame + corner


@triton.jit
def places(image, pixel, inside, STAGE: tl.constexpr):
    """Places (pixels, padded) in a skip and the mask of its real numbers."""
    channel = tl.arange(0, STAGE.padded)
    first = (image * STAGE.size + pixel) * STAGE.channels
    return first[:, None] + channel[None, :], inside[:, None] & (channel < STAGE.channels)[None, :]


@triton.jit
def load(pointer, here, real):
    """float32 numbers of a skip, zero outside."""
    return tl.load(pointer + here, mask=real, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, here, real, value):
    """Numbers of a skip, in its type."""
    tl.store(pointer + here, value.to(pointer.dtype.element_ty), mask=real)


@triton.jit
def per_channel(pointer, image, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """One stage's (padded,) numbers from an array (batch, all channels)."""
    channel = tl.arange(0, STAGE.padded)
    pointer += image * LAYOUT.channels + STAGE.channel
    return tl.load(pointer + channel, mask=channel < STAGE.channels, other=0.0)


@triton.jit
def write_partial(pointer, image, block, sums, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Write one block's (padded,) sums into partials (batch, most blocks, all channels)."""
    channel = tl.arange(0, STAGE.padded)
    row = image * LAYOUT.most_blocks + block
    pointer += row * LAYOUT.channels + STAGE.channel
    tl.store(pointer + channel, sums, mask=channel < STAGE.channels)


@triton.jit
def add_partials(pointer, image, STAGE: tl.constexpr, LAYOUT: tl.constexpr):
    """Add up one stage's partials of one image: (padded,)."""
    CHUNK: tl.constexpr = 32
    channel = tl.arange(0, STAGE.padded)
    pointer += image * LAYOUT.most_blocks * LAYOUT.channels + STAGE.channel
    sums = zeros(CHUNK, STAGE.padded)
    for first in range(0, STAGE.blocks, CHUNK):
        block = first + tl.arange(0, CHUNK)
        real = (block < STAGE.blocks)[:, None] & (channel < STAGE.channels)[None, :]
        at = block[:, None] * LAYOUT.channels + channel[None, :]
        sums += tl.load(pointer + at, mask=real, other=0.0)
    return tl.sum(sums, 0)
