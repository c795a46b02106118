"""Matrices, vectors and rows of arrays for kernels that work on tokens, and their products."""

from __future__ import annotations

import triton
import triton.language as tl

from ulvm.nn.kernels.norms import reciprocal


@triton.jit
def product(left, right):
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def dot(left, right, PRECISION: tl.constexpr):
    """Product in one of ``PRECISIONS``, summed in float32."""
    if PRECISION == "half":
        return tl.dot(left.to(tl.float16), right.to(tl.float16))
    else:
        return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def softplus(x):
    small = tl.exp2(-1.4426950408889634 * tl.abs(x))
    # log(1 + small) = 2 artanh(small / (2 + small)), exact also where 1 + small rounds to 1.
    z = small * reciprocal(2.0 + small)  # at most 1/3: five terms are enough
    square = z * z
    series = 1.0 / 9.0 + square * (1.0 / 11.0)
    series = 1.0 / 5.0 + square * (1.0 / 7.0 + square * series)
    series = 1.0 + square * (1.0 / 3.0 + square * series)
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def matrix(pointer, row, column, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    """Entries (row, column) of a row-major matrix of that size, zeros outside."""
    inside = (row < ROW_COUNT) & (column < COLUMN_COUNT)
    return tl.load(pointer + row * COLUMN_COUNT + column, inside, 0.0)


@triton.jit
def vector(pointer, place, COUNT: tl.constexpr):
    """Entries of a vector as a row (1, place), zeros outside."""
    return tl.load(pointer + place, place < COUNT, 0.0)[None, :]


@triton.jit
def load_rows(pointer, row, inside, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """(rows, WIDE) of a (any, WIDTH) array in float32, zeros outside."""
    column = tl.arange(0, WIDE)[None, :]
    keep = inside[:, None] & (column < WIDTH)
    return tl.load(pointer + row[:, None] * WIDTH + column, keep, 0.0).to(tl.float32)


@triton.jit
def store_rows(pointer, row, inside, value, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    column = tl.arange(0, WIDE)[None, :]
    keep = inside[:, None] & (column < WIDTH)
    tl.store(pointer + row[:, None] * WIDTH + column, value, keep)


@triton.jit
def store_sum(pointer, value, row, column, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    """Write a (row, column) matrix of that size into a row of partial sums; where it ends."""
    keep = (row < ROW_COUNT) & (column < COLUMN_COUNT)
    tl.store(pointer + row * COLUMN_COUNT + column, value, keep)
    return pointer + ROW_COUNT * COLUMN_COUNT
