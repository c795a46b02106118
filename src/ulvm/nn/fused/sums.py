"""Adding up the partial sums that kernels leave, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 16
ROWS = 128
ARRAYS = 4  # that one launch takes


def sum_partials(*partials: Tensor) -> list[Tensor]:
    """Sum over the first axis of up to four arrays, in one launch.

    Args:
        partials: (programs, numbers) each, float32, contiguous.

    Returns:
        (numbers,) each; they share one memory.
    """
    widths = [each.shape[1] for each in partials]
    out = partials[0].new_empty(sum(widths))
    spare = ARRAYS - len(partials)
    arrays = [*partials, *[partials[0]] * spare]
    heights = [*(len(each) for each in partials), *[0] * spare]
    padded = [*widths, *[0] * spare]
    blocks = sum(triton.cdiv(width, COLUMNS) for width in widths)
    _sum_kernel[(blocks,)](*arrays, out, *heights, *padded, COLUMNS=COLUMNS, ROWS=ROWS, num_warps=4)
    return list(out.split(widths))


@triton.jit
def _sum_kernel(
    first, second, third, fourth, out,
    first_height, second_height, third_height, fourth_height,
    first_width, second_width, third_width, fourth_width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some columns of the array that this program's number falls into."""
    block = tl.program_id(0)
    blocks = tl.cdiv(first_width, COLUMNS)
    if block < blocks:
        _sum_columns(first, out, block, first_height, first_width, COLUMNS, ROWS)
    else:
        block -= blocks
        out += first_width
        blocks = tl.cdiv(second_width, COLUMNS)
        if block < blocks:
            _sum_columns(second, out, block, second_height, second_width, COLUMNS, ROWS)
        else:
            block -= blocks
            out += second_width
            blocks = tl.cdiv(third_width, COLUMNS)
            if block < blocks:
                _sum_columns(third, out, block, third_height, third_width, COLUMNS, ROWS)
            else:
                out += third_width
                block -= blocks
                _sum_columns(fourth, out, block, fourth_height, fourth_width, COLUMNS, ROWS)


@triton.jit
def _sum_columns(partials, out, block, height, width, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, height, ROWS):
        row = start + tl.arange(0, ROWS)
        keep = (row < height)[:, None] & (column < width)[None, :]
        total += tl.load(partials + row[:, None] * width + column[None, :], keep, 0.0)
    tl.store(out + column, tl.sum(total, 0), column < width)
