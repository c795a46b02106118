"""What the kernels share: group normalisation from partial sums, the exact GELU, SiLU.

A kernel that makes an activation also writes what each of its programs saw, as *partials*
(batch, blocks, 2, channels) float32: per channel the sum, and the sum of squared differences
from the block's own mean. The next kernel combines the blocks of its image without
cancellation (Chan et al. 1983, "Algorithms for computing the sample variance") and so needs
no launch in between. Nothing is added atomically, so results repeat bit by bit.

S holds the sizes that a kernel is compiled for, among them CHANNELS, a multiple of four where they
are normalised in groups, and C, that padded to a power of two. Of the four groups a *norm*
(batch, 2, 4) float32 keeps mean and 1/deviation for backward.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

GROUPS = tl.constexpr(4)


@triton.jit
def zeros(M: tl.constexpr, N: tl.constexpr = None):
    """float32 (M, N), or (M,)."""
    if N is None:
        return tl.zeros((M,), tl.float32)
    else:
        return tl.zeros((M, N), tl.float32)


@triton.jit
def gelu(x):
    """x · Φ(x), exact."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    """Derivative of ``gelu``: Φ(x) + x · φ(x)."""
    normal = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * normal


@triton.jit
def reciprocal(x):
    """1/x for x > 0: two instructions, where a division takes nine."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return reciprocal(1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit
def silu_slope(x):
    """Derivative of x · sigmoid(x)."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def places(row, inside, S: tl.constexpr):
    """(rows, C) places of some rows (rows,) of an array (any, CHANNELS), and which exist."""
    channel = tl.arange(0, S.C)[None, :]
    return row[:, None] * S.CHANNELS + channel, inside[:, None] & (channel < S.CHANNELS)


@triton.jit
def load_channels(pointer, S: tl.constexpr):
    """(C,) parameters of the channels in float32, zero for padding."""
    channel = tl.arange(0, S.C)
    return tl.load(pointer + channel, mask=channel < S.CHANNELS, other=0.0).to(tl.float32)


@triton.jit
def group_totals(per_channel, GROUP: tl.constexpr):
    """(C,) numbers → (C,) the sum over each channel's group of GROUP neighbours.

    Padding must be zero; what comes back for it means nothing.
    """
    C: tl.constexpr = per_channel.shape[0]
    row = tl.arange(0, C) // GROUP
    same = row[:, None] == row[None, :]
    return tl.sum(tl.where(same, per_channel[None, :], 0.0), 1)


@triton.jit
def write_sums(partials, image, block, blocks, first, second, S: tl.constexpr):
    """Write two (C,) numbers of one block into partials (batch, blocks, 2, CHANNELS)."""
    channel = tl.arange(0, S.C)
    here = partials + (image * blocks + block) * 2 * S.CHANNELS + channel
    tl.store(here, first, mask=channel < S.CHANNELS)
    tl.store(here + S.CHANNELS, second, mask=channel < S.CHANNELS)


@triton.jit
def _load_blocks(partials, image, blocks, block, S: tl.constexpr):
    """Both numbers of some blocks (TILE, 1) of one image, (TILE, C) each; zero outside."""
    channel = tl.arange(0, S.C)[None, :]
    keep = (block < blocks) & (channel < S.CHANNELS)
    here = partials + (image * blocks + block) * 2 * S.CHANNELS + channel
    first = tl.load(here, mask=keep, other=0.0)
    return first, tl.load(here + S.CHANNELS, mask=keep, other=0.0)


@triton.jit
def read_sums(partials, image, blocks, S: tl.constexpr):
    """Add up both numbers of all blocks of one image, always in the same order: (C,), (C,)."""
    TILE: tl.constexpr = 2048 // S.C  # blocks read at once; most sizes need one round
    first, second = zeros(TILE, S.C), zeros(TILE, S.C)
    start = 0
    while start < blocks:
        block = start + tl.arange(0, TILE)[:, None]
        more_first, more_second = _load_blocks(partials, image, blocks, block, S)
        first += more_first
        second += more_second
        start += TILE
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def read_norm(partials, image, blocks, block_pixels, pixels, eps, S: tl.constexpr):
    """Statistics of an image from its partials: (C,) mean and (C,) 1/deviation of the group.

    Every block holds ``block_pixels`` of the image's ``pixels``, the last one the rest.
    """
    TILE: tl.constexpr = 2048 // S.C
    total, centred = zeros(S.C), zeros(S.C)
    seen = 0.0
    start = 0
    while start < blocks:
        block = start + tl.arange(0, TILE)[:, None]
        sums, squares = _load_blocks(partials, image, blocks, block, S)
        count = tl.maximum(tl.minimum(pixels - block * block_pixels, block_pixels), 0)
        count = count.to(tl.float32)
        new = tl.minimum(pixels - start * block_pixels, TILE * block_pixels).to(tl.float32)
        new_total = tl.sum(sums, 0)
        off = sums / tl.maximum(count, 1.0) - (new_total / new)[None, :]
        apart = new_total / new - total / tl.maximum(seen, 1.0)
        centred += tl.sum(squares + count * off * off, 0) + apart * apart * (
            seen * new / (seen + new)
        )
        total += new_total
        seen += new
        start += TILE
    return combine_channels(total, centred, seen, eps, S)


@triton.jit
def combine_channels(total, centred, pixels, eps, S: tl.constexpr):
    """(C,) sums and centred sums of squares per channel → (C,) mean and 1/deviation of the group.

    ``pixels`` is a float: how many pixels each channel's sums run over.
    """
    GROUP: tl.constexpr = S.CHANNELS // GROUPS
    own = total / pixels
    mean = group_totals(own, GROUP) / GROUP
    off = own - mean
    variance = group_totals(centred / pixels + off * off, GROUP) / GROUP
    return mean, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def save_norm(norm, image, mean, rstd, S: tl.constexpr):
    """Keep (C,) mean and 1/deviation for backward in norms (batch, 2, 4) float32."""
    GROUP: tl.constexpr = S.CHANNELS // GROUPS
    channel = tl.arange(0, S.C)
    first = (channel < S.CHANNELS) & (channel % GROUP == 0)
    here = norm + image * 2 * GROUPS + channel // GROUP
    tl.store(here, mean, mask=first)
    tl.store(here + GROUPS, rstd, mask=first)


class Norm(NamedTuple):
    """A GroupNorm of one image, (C,) each."""

    mean: Any
    rstd: Any
    weight: Any
    bias: Any


@triton.jit
def load_image_norm(p, image, S: tl.constexpr):
    """The ``Norm`` of an image from p.norm, p.norm_weight and p.norm_bias; zero for padding."""
    GROUP: tl.constexpr = S.CHANNELS // GROUPS
    channel = tl.arange(0, S.C)
    here = p.norm + image * 2 * GROUPS + channel // GROUP
    mean = tl.load(here, mask=channel < S.CHANNELS, other=0.0)
    rstd = tl.load(here + GROUPS, mask=channel < S.CHANNELS, other=0.0)
    return Norm(mean, rstd, load_channels(p.norm_weight, S), load_channels(p.norm_bias, S))


@triton.jit
def standardise(x, norm):
    """(pixels, C) before weight and bias."""
    return (x - norm.mean[None, :]) * norm.rstd[None, :]


@triton.jit
def norm_gradient(partials, image, blocks, weight, pixels, S: tl.constexpr):
    """What an image's gradient before the norm loses, from the sums of g and of g · x̂ in partials.

    It is 1/deviation times ``g · weight − shift − x̂ · slope``; ``pixels`` is a float.

    Returns:
        (C,) each: shift, slope, and both sums: the gradients of bias and weight.
    """
    GROUP: tl.constexpr = S.CHANNELS // GROUPS
    sums, products = read_sums(partials, image, blocks, S)
    members = pixels * GROUP
    shift = group_totals(weight * sums, GROUP) / members
    return shift, group_totals(weight * products, GROUP) / members, sums, products
