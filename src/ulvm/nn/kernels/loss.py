"""Cross-entropy plus soft Dice of one class in three launches: two forward, one backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ulvm.nn.kernels.arrays import scratch

# 2048 pixels are 16 numbers a thread, and 256 programs for 8 pictures of 256×256.
_PIXELS = 2048
_WARPS = 4
# Partial sums that the last program of the forward pass adds up at a time.
_PARTIALS = 1024


def bce_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy plus 1 minus the pictures' mean soft Dice with smoothing 1.

    Args:
        logits: (batch, 1, height, width), float32.
        masks: (batch, height, width), float32 0..1 or uint8 0..255.

    Returns:
        A float32 scalar, the same number as ``ulvm.nn.loss.segmentation_loss``.
    """
    return _BceDice.apply(logits, masks)


class Pointers(NamedTuple):
    """What the kernels read and write; None where one does not."""

    logits: Any  # (batch, pixels)
    masks: Any  # (batch, pixels), float32 0..1 or uint8 0..255
    sums: Any  # (batch, 2): each picture's overlap and total
    partials: Any = None  # (batch, 3, blocks): of entropy, overlap and total
    loss: Any = None  # ()
    d_loss: Any = None  # ()
    d_logits: Any = None  # (batch, pixels)


class _BceDice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        logits, masks = logits.contiguous(), masks.contiguous()
        batch, pixels = logits.shape[0], logits[0].numel()
        blocks = triton.cdiv(pixels, _PIXELS)
        partials, sums = scratch(logits, batch, 3, blocks), scratch(logits, batch, 2)
        p = Pointers(logits, masks, sums, partials, loss=scratch(logits))
        _sum_picture[(blocks, batch)](p, pixels, BLOCK=_PIXELS, num_warps=_WARPS)
        padded = triton.next_power_of_2(blocks)
        pictures = max(1, _PARTIALS // padded)
        _finish[(1,)](p, batch, pixels, blocks, PICTURES=pictures, BLOCKS=padded, num_warps=_WARPS)
        ctx.save_for_backward(logits, masks, sums)
        return p.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None]:
        logits, masks, sums = ctx.saved_tensors
        batch, pixels = logits.shape[0], logits[0].numel()
        p = Pointers(logits, masks, sums, d_loss=d_loss, d_logits=torch.empty_like(logits))
        grid = (triton.cdiv(pixels, _PIXELS), batch)
        _differentiate[grid](p, batch, pixels, BLOCK=_PIXELS, num_warps=_WARPS)
        return p.d_logits, None


@triton.jit
def _read(p, pixels, BLOCK: tl.constexpr):
    """This program's pixels: where they lie, which exist, logits, sigmoid, exp(-|logit|), truth."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    pixel += tl.program_id(1) * pixels
    logits = tl.load(p.logits + pixel, mask=inside, other=0.0)
    truth = tl.load(p.masks + pixel, mask=inside, other=0).to(tl.float32)
    if p.masks.dtype.element_ty == tl.uint8:
        truth *= 1 / 255
    decay = tl.exp(-tl.abs(logits))
    probability = tl.where(logits >= 0, 1.0, decay) / (1 + decay)
    return pixel, inside, logits, probability, decay, truth


@triton.jit
def _sum_picture(p, pixels, BLOCK: tl.constexpr):
    """A program sums entropy, overlap and total over one block of a picture's pixels."""
    _, inside, logits, probability, decay, truth = _read(p, pixels, BLOCK)
    entropy = tl.maximum(logits, 0.0) - logits * truth + tl.log(1 + decay)
    blocks = tl.num_programs(0)
    to = p.partials + (tl.program_id(1) * 3 * blocks + tl.program_id(0))
    tl.store(to, tl.sum(tl.where(inside, entropy, 0.0)))
    tl.store(to + blocks, tl.sum(tl.where(inside, probability * truth, 0.0)))
    tl.store(to + 2 * blocks, tl.sum(tl.where(inside, probability + truth, 0.0)))


@triton.jit(do_not_specialize=["batch"])
def _finish(p, batch, pixels, blocks, PICTURES: tl.constexpr, BLOCKS: tl.constexpr):
    """The one program adds up the partial sums of all pictures and writes the loss."""
    block = tl.arange(0, BLOCKS)[None, :]
    entropies = tl.zeros((PICTURES,), tl.float32)
    scores = tl.zeros((PICTURES,), tl.float32)
    start = 0
    while start < batch:
        picture = start + tl.arange(0, PICTURES)
        exists = picture < batch
        there = exists[:, None] & (block < blocks)
        here = p.partials + picture[:, None] * 3 * blocks + block
        entropies += tl.sum(tl.load(here, mask=there, other=0.0), 1)
        overlap = tl.sum(tl.load(here + blocks, mask=there, other=0.0), 1)
        total = tl.sum(tl.load(here + 2 * blocks, mask=there, other=0.0), 1)
        scores += tl.where(exists, (2 * overlap + 1) / (total + 1), 0.0)
        tl.store(p.sums + picture * 2, overlap, mask=exists)
        tl.store(p.sums + picture * 2 + 1, total, mask=exists)
        start += PICTURES
    entropy = tl.sum(entropies) / pixels
    tl.store(p.loss, 1 + (entropy - tl.sum(scores)) / batch)


@triton.jit(do_not_specialize=["batch"])
def _differentiate(p, batch, pixels, BLOCK: tl.constexpr):
    """A program writes the gradient of one block of a picture's logits."""
    pixel, inside, _, probability, decay, truth = _read(p, pixels, BLOCK)
    overlap = tl.load(p.sums + tl.program_id(1) * 2)
    total = tl.load(p.sums + tl.program_id(1) * 2 + 1)
    score = (2 * overlap + 1) / (total + 1)
    slope = decay / ((1 + decay) * (1 + decay))  # p · (1 - p) without cancellation
    d_logits = (probability - truth) / pixels + (score - 2 * truth) / (total + 1) * slope
    tl.store(p.d_logits + pixel, d_logits * (tl.load(p.d_loss) / batch), mask=inside)
