"""Adding up the partial sums that kernels leave, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 16
ROWS = 128


def sum_partials(*partials: Tensor) -> list[Tensor]:
    """Sum over the first axis of one or several arrays, in one launch.

    Args:
        partials: (programs, numbers) each, float32, contiguous.

    Returns:
        (numbers,) each; they share one memory.
    """
    widths = [each.shape[1] for each in partials]
    out = partials[0].new_empty(sum(widths))
    blocks = sum(triton.cdiv(width, COLUMNS) for width in widths)
    heights = tuple(len(each) for each in partials)
    _sum_kernel[(blocks,)](partials, heights, tuple(widths), out, COLUMNS=COLUMNS, ROWS=ROWS)
    return list(out.split(widths))


@triton.jit(do_not_specialize=["heights", "widths"])
def _sum_kernel(partials, heights, widths, out, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Some columns of the array that this program's number falls into."""
    block = tl.program_id(0)
    for array in tl.static_range(len(partials)):
        blocks = tl.cdiv(widths[array], COLUMNS)
        if (block >= 0) & (block < blocks):
            column = block * COLUMNS + tl.arange(0, COLUMNS)
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in range(0, heights[array], ROWS):
                row = start + tl.arange(0, ROWS)
                keep = (row < heights[array])[:, None] & (column < widths[array])[None, :]
                place = row[:, None] * widths[array] + column[None, :]
                total += tl.load(partials[array] + place, keep, 0.0)
            tl.store(out + column, tl.sum(total, 0), column < widths[array])
        block -= blocks
        out += widths[array]
