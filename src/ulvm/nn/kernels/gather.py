"""A batch of augmented pictures straight from the data set's bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 512  # of one program


def gather_nearest(
    images: Tensor, masks: Tensor, low: Tensor, factor: Tensor, rows: Tensor, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """``F.grid_sample`` with nearest neighbours and zeros outside, on normalised pictures.

    Args:
        images: uint8 (pictures, channels, height, width), contiguous.
        masks: uint8 (pictures, height, width), contiguous.
        low: float32, each picture's minimum.
        factor: float32, what takes each picture's range to 0..255.
        rows: int64 (batch,), which pictures.
        maps: float32 (batch, 2, 3), contiguous, as ``F.affine_grid`` takes them.

    Returns:
        float32 (batch, channels, height, width), channels last in memory, in 0..255 where a
        place lies inside; and the masks (batch, height, width) in 0..1.
    """
    batch = len(rows)
    _, channels, height, width = images.shape
    out = torch.empty(
        (batch, channels, height, width),
        device=images.device,
        memory_format=torch.channels_last,
    )
    soft = torch.empty((batch, height, width), device=images.device)
    _gather_kernel[(batch, triton.cdiv(height * width, PIXELS))](
        images, masks, low, factor, rows, maps, out, soft, height, width,
        CHANNELS=channels, PIXELS=PIXELS,
    )  # fmt: skip
    return out, soft


@triton.jit
def _gather_kernel(
    images, masks, low, factor, rows, maps, out, soft, height, width,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Some pixels of one picture of the batch."""
    item = tl.program_id(0)
    picture = tl.load(rows + item)  # int64, and so is every place in the data set
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    maps += item * 6
    # -1..1 over the picture, from the outer edge of the first pixel to that of the last.
    x = (2 * (pixel % width) + 1).to(tl.float32) / width - 1.0
    y = (2 * (pixel // width) + 1).to(tl.float32) / height - 1.0
    from_x = tl.load(maps) * x + tl.load(maps + 1) * y + tl.load(maps + 2)
    from_y = tl.load(maps + 3) * x + tl.load(maps + 4) * y + tl.load(maps + 5)
    column = _round(((from_x + 1.0) * width - 1.0) / 2)
    row = _round(((from_y + 1.0) * height - 1.0) / 2)
    there = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row * width + column
    least, stretch = tl.load(low + picture), tl.load(factor + picture)
    for channel in tl.static_range(CHANNELS):
        plane = images + (picture * CHANNELS + channel) * height * width
        value = (tl.load(plane + place, there, 0).to(tl.float32) - least) * stretch
        value = tl.where(there, value, 0.0)
        tl.store(out + (item * height * width + pixel) * CHANNELS + channel, value, inside)
    value = tl.load(masks + picture * height * width + place, there, 0).to(tl.float32) / 255
    tl.store(soft + item * height * width + pixel, value, inside)


@triton.jit
def _round(x):
    """The nearest whole number; of two, the even one, as torch does."""
    down = tl.floor(x)
    odd = down - 2.0 * tl.floor(down * 0.5)
    up = (x - down > 0.5) | ((x - down == 0.5) & (odd == 1.0))
    return (down + tl.where(up, 1.0, 0.0)).to(tl.int32)
