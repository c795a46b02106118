"""The PVM layer: kernels over tokens for its projections, kernels over steps for its scan.

A sequence is one branch of one picture. The scan cuts each sequence into chunks; one warp walks
through one chunk with the states of 16 inner channels in registers. As in ``nn/scan.py``, the
state that enters a chunk is put together from what each earlier chunk adds to it. Backward starts
from every fourth state, which forward keeps, and recomputes the three between. Without a gradient,
what the scan does not need is neither made nor stored, and the scan applies the gate as well.

Arrays between the kernels are float32, or without a gradient of the tokens' type: *inner* arrays
(sequence, length, E) and *state* arrays (sequence, length, N), E and N the inner width and the
state size padded to powers of two.

Source: arXiv 2403.20035, section 3.2; Gu & Dao 2023, arXiv 2312.00752, algorithm 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels.layer_norm import row_gradient, row_statistics
from ulvm.nn.kernels.norms import reciprocal, sigmoid, silu_slope
from ulvm.nn.kernels.scan import (
    _decay,
    _gather_chunks,
    _load,
    _state,
    _store,
    choose_chunk,
    padded,
)
from ulvm.nn.kernels.sums import sum_partials

ROWS, WARPS = 16, 2  # tokens and warps of one program that works on tokens
WIDE_WARPS = 8  # where the matrices exceed the registers of two warps
MANY_ROWS = 32  # tokens of one forward, where that leaves enough programs
ENOUGH = 1056  # of these programs: eight on each multiprocessor
LANES = 16  # inner channels of one program that scans
STEPS = 4  # steps whose operands are loaded together, and between two kept states
MANY_STEPS = 8  # the first without a gradient, where more registers are free
PROGRAMS = 1056  # of the kernels that sum parameter gradients: eight on each multiprocessor
SCANNERS = 1056  # programs that a scan should have at least: eight on each multiprocessor


# How exact products are: float32, or ten bits, which those of half precision have.
PRECISIONS = {torch.float32: "tf32x3", torch.float16: "half", torch.bfloat16: "tf32"}


class Weights(NamedTuple):
    """The layer's parameters, float32, named as in ``nn/model.py``."""

    norm_weight: Tensor  # (channels,)
    norm_bias: Tensor  # (channels,)
    in_proj: Tensor  # (2 · inner, group)
    conv_weight: Tensor  # (inner, 1, width)
    conv_bias: Tensor  # (inner,)
    x_proj: Tensor  # (rank + 2 · state, inner)
    dt_weight: Tensor  # (inner, rank)
    dt_bias: Tensor  # (inner,)
    A_log: Tensor  # (inner, state)
    D: Tensor  # (inner,)
    out_proj: Tensor  # (group, inner)
    skip_scale: Tensor  # (1,)
    project_weight: Tensor  # (out_channels, channels)
    project_bias: Tensor  # (out_channels,)


class Sizes(NamedTuple):
    """What the kernels are compiled for."""

    channels: int
    branches: int
    inner: int
    state: int
    rank: int
    width: int
    out: int

    @property
    def group(self) -> int:
        return self.channels // self.branches

    def for_tokens(self, rows: int) -> dict[str, int]:
        """Keyword arguments of the kernels that work on tokens, ``rows`` in one program."""
        return {
            "CHANNELS": self.channels,
            "BRANCHES": self.branches,
            "GROUP": self.group,
            "INNER": self.inner,
            "STATE": self.state,
            "RANK": self.rank,
            "WIDTH": self.width,
            "OUT": self.out,
            "C": padded(self.channels),
            "G": padded(self.group),
            "E": padded(self.inner),
            "N": padded(self.state),
            "O": padded(self.out),
            "ROWS": rows,
            "LANES": LANES,
            "num_warps": WIDE_WARPS
            if self._products[0] > 4096 or self._products[1] > 512
            else WARPS,
        }

    @property
    def _products(self) -> tuple[int, int]:
        """Entries of the last projection's matrix, and of one branch's."""
        last = padded(self.channels) * padded(self.out)
        return last, padded(self.group) * padded(self.inner)

    @property
    def shared_bytes(self) -> int:
        """At least what the backward kernels need of a multiprocessor's shared memory.

        Fitted to what the compiler reports for widths of 24 to 256.
        """
        last, branch = self._products
        return 4 * (2 * last + 5 * branch + 2048)

    def for_scan(self, steps: int, even: bool) -> dict[str, int]:
        """Keyword arguments of the kernels that scan; ``even`` if all chunks are full."""
        return {
            "INNER": self.inner,
            "STATE": self.state,
            "E": padded(self.inner),
            "N": padded(self.state),
            "LANES": LANES,
            "STEPS": steps,
            "EVEN": even,
            "num_warps": 1,
        }


_SIZES = ["rows", "length", "tiles", "steps"]  # one compiled kernel serves all


def choose_rows(rows: int) -> int:
    """Tokens of one program of a forward kernel."""
    return MANY_ROWS if rows // MANY_ROWS >= ENOUGH else ROWS


def sizes_of(weights: Weights, branches: int) -> Sizes:
    """The sizes that the parameters have."""
    return Sizes(
        channels=weights.norm_weight.shape[0],
        branches=branches,
        inner=weights.D.shape[0],
        state=weights.A_log.shape[1],
        rank=weights.dt_weight.shape[1],
        width=weights.conv_weight.shape[2],
        out=weights.project_bias.shape[0],
    )


def pvm(tokens: Tensor, weights: Weights, eps: float, branches: int) -> Tensor:
    """The whole layer of ``nn.model.PVMLayer`` with the plain Mamba.

    Args:
        tokens: (batch, length, channels), contiguous.
        weights: The parameters.
        eps: Of the LayerNorm.
        branches: Groups of channels.

    Returns:
        (batch, length, out_channels), in the type of ``tokens``.
    """
    # Inside the function below it would be too late to ask whether gradients are on.
    train = torch.is_grad_enabled() and any(each.requires_grad for each in (tokens, *weights))
    y: Tensor = _PVM.apply(tokens, eps, branches, train, *weights)
    return y


class _PVM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, eps: float, branches: int, train: bool, *parameters: Tensor
    ) -> Tensor:
        w = Weights(*(each.contiguous() for each in parameters))
        sizes = sizes_of(w, branches)
        tokens = tokens.contiguous()
        batch, length, channels = tokens.shape
        rows, sequences = batch * length, batch * branches
        chunk = choose_chunk(sequences * (padded(sizes.inner) // LANES), length, SCANNERS)
        chunks, even = triton.cdiv(length, chunk), length % chunk == 0
        E, N = padded(sizes.inner), padded(sizes.state)

        # Only backward needs more than the tokens' own precision.
        kind = torch.float32 if train else tokens.dtype
        precision = PRECISIONS[kind]

        def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return tokens.new_empty(shape, dtype=dtype)

        def operand(width: int) -> Tensor:
            return scratch(sequences, length, width, dtype=kind)

        # Without a gradient, ``driven`` is still without its step size, ``gate`` is after its SiLU,
        # ``y`` is gated, and nothing reads ``before``.
        inner, gate, delta, driven, y = (operand(E) for _ in range(5))
        before = operand(E) if train else driven
        B, C = operand(N), operand(N)
        ends, spans = scratch(sequences, chunks, E, N), scratch(sequences, chunks, E)
        kept = scratch(sequences, triton.cdiv(length, STEPS) if train else 0, E, N)
        mixed = scratch(batch, length, channels, dtype=kind)
        out = tokens.new_empty(batch, length, sizes.out)

        tile = choose_rows(rows * branches)
        tiles = triton.cdiv(rows, tile - (sizes.width - 1))  # it needs the tokens before as well
        # A program does all branches of its tokens where that leaves enough programs.
        _operands_kernel[(tiles, 1 if tiles >= ENOUGH else branches)](
            tokens, w.norm_weight, w.norm_bias, w.in_proj, w.conv_weight, w.conv_bias, w.x_proj,
            w.dt_weight, w.dt_bias, inner, before, gate, delta, driven, B, C, rows, length, eps,
            TAPS=triton.next_power_of_2(sizes.width), TRAIN=train, PRECISION=precision,
            **sizes.for_tokens(tile),
        )  # fmt: skip
        grid = (sequences, chunks, E // LANES)
        on_steps = sizes.for_scan(STEPS if train else MANY_STEPS, even)
        if chunks > 1:
            _ends_kernel[(sequences, chunks - 1, E // LANES)](  # nothing follows the last
                w.A_log, delta, driven, B, ends, spans, length, chunk,
                TRAIN=train, **on_steps,
            )  # fmt: skip
        _scan_kernel[grid](
            w.A_log, w.D, delta, driven, B, C, None if train else gate, ends, spans, y, kept,
            length, chunk, TRAIN=train, **on_steps,
        )  # fmt: skip
        tile = choose_rows(rows)
        _mix_kernel[(triton.cdiv(rows, tile),)](
            tokens, w.norm_weight, w.norm_bias, w.D, w.out_proj, w.skip_scale, w.project_weight,
            w.project_bias, before, gate, y, mixed, out, rows, length, eps,
            TRAIN=train, PRECISION=precision, **sizes.for_tokens(tile),
        )  # fmt: skip
        if train:
            ctx.save_for_backward(
                tokens, inner, before, gate, delta, driven, B, C, y, kept, mixed, *w
            )
            ctx.eps, ctx.sizes, ctx.chunk = eps, sizes, chunk
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tokens, inner, before, gate, delta, driven, B, C, y, kept, mixed, *parameters = (
            ctx.saved_tensors
        )
        w, sizes, eps, chunk = Weights(*parameters), ctx.sizes, ctx.eps, ctx.chunk
        batch, length, channels = tokens.shape
        rows, sequences = batch * length, batch * sizes.branches
        chunks, blocks = triton.cdiv(length, chunk), padded(sizes.inner) // LANES
        on_tokens = sizes.for_tokens(ROWS)
        tiles = triton.cdiv(rows, ROWS)

        def scratch(*shape: int) -> Tensor:
            return tokens.new_empty(shape, dtype=torch.float32)

        mix_sizes = [w.project_weight.numel(), sizes.out, w.out_proj.numel(), sizes.inner]
        mix_partials = scratch(min(tiles, PROGRAMS), sum(mix_sizes))
        token_sizes = [w.in_proj.numel(), w.conv_weight.numel(), sizes.inner, 1]
        token_partials = scratch(min(tiles, PROGRAMS), sum(token_sizes))
        # Of the LayerNorm, which both of these kernels pass.
        norm_partials = scratch(len(mix_partials) + len(token_partials), 2 * channels)
        grad_mixed, grad_gate, grad_y = (torch.empty_like(each) for each in (mixed, gate, y))
        _mix_backward_kernel[(len(mix_partials),)](
            w.norm_weight, w.norm_bias, w.D, w.out_proj, w.project_weight, before, gate, y, mixed,
            grad_out.contiguous(), grad_mixed, grad_gate, grad_y, mix_partials, norm_partials,
            rows, length, tiles, eps, **on_tokens,
        )  # fmt: skip

        grid = (sequences, chunks, blocks)
        leaving = scratch(sequences, chunks, *kept.shape[2:])
        spans = scratch(sequences, chunks, kept.shape[2])
        if chunks > 1:
            _leaving_kernel[grid](
                w.A_log, delta, C, grad_y, leaving, spans, length, chunk,
                **sizes.for_scan(STEPS, length % chunk == 0),
            )  # fmt: skip
        grad_driven, grad_exponent = torch.empty_like(delta), torch.empty_like(delta)
        grad_B, grad_C = (scratch(blocks, *B.shape) for _ in range(2))
        scan_partials = scratch(sequences * chunks, w.A_log.numel())
        _scan_backward_kernel[grid](
            w.A_log, delta, driven, B, C, kept, leaving, spans, grad_y,
            grad_driven, grad_exponent, grad_B, grad_C, scan_partials, length, chunk,
            **sizes.for_scan(STEPS, length % chunk == 0),
        )  # fmt: skip

        operand_sizes = [w.x_proj.numel(), w.dt_weight.numel(), sizes.inner]
        branch_tiles = triton.cdiv(sequences * length, ROWS)
        operand_partials = scratch(min(branch_tiles, PROGRAMS), sum(operand_sizes))
        grad_before = torch.empty_like(before)
        _operands_backward_kernel[(len(operand_partials),)](
            w.x_proj, w.dt_weight, w.D, before, delta, grad_y, grad_driven, grad_exponent, grad_B,
            grad_C, grad_before, operand_partials, sequences * length, branch_tiles, **on_tokens,
        )  # fmt: skip

        grad_normal, grad_tokens = torch.empty_like(mixed), torch.empty_like(tokens)
        _tokens_backward_kernel[(len(token_partials),)](
            tokens, w.norm_weight, w.norm_bias, w.in_proj, w.conv_weight, w.skip_scale, inner,
            grad_before, grad_gate, grad_mixed, grad_normal, grad_tokens, token_partials,
            norm_partials[len(mix_partials) :], rows, length, tiles, eps, **on_tokens,
        )  # fmt: skip

        mix, A_log, operands, inputs, norm = sum_partials(
            mix_partials, scan_partials, operand_partials, token_partials, norm_partials
        )
        project_weight, project_bias, out_proj, D = mix.split(mix_sizes)
        x_proj, dt_weight, dt_bias = operands.split(operand_sizes)
        in_proj, conv_weight, conv_bias, skip_scale = inputs.split(token_sizes)
        norm_weight, norm_bias = norm.split(channels)
        grads = Weights(
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            in_proj=in_proj,
            conv_weight=conv_weight,
            conv_bias=conv_bias,
            x_proj=x_proj,
            dt_weight=dt_weight,
            dt_bias=dt_bias,
            A_log=A_log,
            D=D,
            out_proj=out_proj,
            skip_scale=skip_scale,
            project_weight=project_weight,
            project_bias=project_bias,
        )
        shaped = (grad.view_as(parameter) for grad, parameter in zip(grads, w, strict=True))
        return grad_tokens, None, None, None, *shaped


@triton.jit
def _product(left, right):
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _dot(left, right, PRECISION: tl.constexpr):
    """Product in one of ``PRECISIONS``, summed in float32."""
    if PRECISION == "half":
        return tl.dot(left.to(tl.float16), right.to(tl.float16))
    else:
        return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def _softplus(x):
    small = tl.exp2(-1.4426950408889634 * tl.abs(x))
    # log(1 + small) = 2 artanh(small / (2 + small)), exact also where 1 + small rounds to 1.
    z = small * reciprocal(2.0 + small)  # at most 1/3: five terms are enough
    square = z * z
    series = 1.0 / 9.0 + square * (1.0 / 11.0)
    series = 1.0 / 5.0 + square * (1.0 / 7.0 + square * series)
    series = 1.0 + square * (1.0 / 3.0 + square * series)
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def _matrix(pointer, row, column, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    """Entries (row, column) of a row-major matrix of that size, zeros outside."""
    inside = (row < ROW_COUNT) & (column < COLUMN_COUNT)
    return tl.load(pointer + row * COLUMN_COUNT + column, inside, 0.0)


@triton.jit
def _vector(pointer, place, COUNT: tl.constexpr):
    """Entries of a vector as a row (1, place), zeros outside."""
    return tl.load(pointer + place, place < COUNT, 0.0)[None, :]


@triton.jit
def _load_rows(pointer, row, inside, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """(rows, WIDE) of a (any, WIDTH) array in float32, zeros outside."""
    column = tl.arange(0, WIDE)[None, :]
    keep = inside[:, None] & (column < WIDTH)
    return tl.load(pointer + row[:, None] * WIDTH + column, keep, 0.0).to(tl.float32)


@triton.jit
def _store_rows(pointer, row, inside, value, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    column = tl.arange(0, WIDE)[None, :]
    keep = inside[:, None] & (column < WIDTH)
    tl.store(pointer + row[:, None] * WIDTH + column, value, keep)


@triton.jit
def _store_sum(pointer, value, row, column, ROW_COUNT: tl.constexpr, COLUMN_COUNT: tl.constexpr):
    """Write a (row, column) matrix of that size into a row of partial sums."""
    keep = (row < ROW_COUNT) & (column < COLUMN_COUNT)
    tl.store(pointer + row * COLUMN_COUNT + column, value, keep)


@triton.jit
def _normal_group(
    tokens, norm_weight, norm_bias, row, inside, branch, mean, scale,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """One branch's channels of some tokens after the LayerNorm, (rows, G), zeros outside."""
    g = tl.arange(0, G)
    keep = inside[:, None] & (g < GROUP)[None, :]
    place = row[:, None] * CHANNELS + branch * GROUP + g[None, :]
    x = tl.load(tokens + place, keep, 0.0).to(tl.float32)
    weight = _vector(norm_weight + branch * GROUP, g, GROUP)
    bias = _vector(norm_bias + branch * GROUP, g, GROUP)
    return tl.where(keep, (x - mean) * scale * weight + bias, 0.0)


@triton.jit
def _place_in_sequence(row, length, branch, BRANCHES: tl.constexpr):
    """Row of a (sequence · length) array that holds a token's branch."""
    return (row // length * BRANCHES + branch) * length + row % length


@triton.jit(do_not_specialize=_SIZES)
def _operands_kernel(
    tokens, norm_weight, norm_bias, in_proj, conv_weight, conv_bias, x_proj, dt_weight, dt_bias,
    inner, before, gate, delta_out, driven_out, B_out, C_out, rows, length, eps,
    CHANNELS: tl.constexpr, BRANCHES: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr,
    STATE: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, G: tl.constexpr, E: tl.constexpr, N: tl.constexpr, O: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, TRAIN: tl.constexpr, PRECISION: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """From some tokens of one branch, or of several in turn, to everything that the scan reads.

    A program's first WIDTH − 1 rows belong to the program before; it makes them again for the
    convolution, which reads what this program itself has written.
    """
    first = tl.program_id(0) * (ROWS - (WIDTH - 1))
    row = first - (WIDTH - 1) + tl.arange(0, ROWS)
    inside = (row >= 0) & (row < rows)
    own_row = first + tl.arange(0, ROWS)
    own = (own_row < rows) & (tl.arange(0, ROWS) < ROWS - (WIDTH - 1))
    g, e, n = tl.arange(0, G), tl.arange(0, E), tl.arange(0, N)
    mean, scale = row_statistics(_load_rows(tokens, row, inside, CHANNELS, C), eps, CHANNELS, C)
    to_inner = _matrix(in_proj, e[None, :], g[:, None], INNER, GROUP)  # (G, E)
    to_gate = _matrix(in_proj + INNER * GROUP, e[None, :], g[:, None], INNER, GROUP)
    to_B = _matrix(x_proj + RANK * INNER, n[None, :], e[:, None], STATE, INNER)  # (E, N)
    to_C = _matrix(x_proj + (RANK + STATE) * INNER, n[None, :], e[:, None], STATE, INNER)
    tap = tl.arange(0, TAPS)
    back = WIDTH - 1 - tap
    weight = tl.load(
        conv_weight + (e * WIDTH)[None, None, :] + tap[None, :, None],
        (e < INNER)[None, None, :] & (tap < WIDTH)[None, :, None],
        0.0,
    )
    for branch in range(tl.program_id(1), BRANCHES, tl.num_programs(1)):
        group = _normal_group(
            tokens, norm_weight, norm_bias, row, inside, branch, mean, scale, CHANNELS, GROUP, G
        )
        z = _dot(group, to_gate, PRECISION)
        if not TRAIN:
            z *= sigmoid(z)
        place = _place_in_sequence(row, length, branch, BRANCHES)
        _store_rows(inner, place, inside, _dot(group, to_inner, PRECISION), E, E)
        _store_rows(gate, place, inside, z, E, E)
        tl.debug_barrier()

        place = _place_in_sequence(own_row, length, branch, BRANCHES)
        there = own[:, None] & (own_row[:, None] % length >= back[None, :]) & (back >= 0)[None, :]
        # Taps are the middle axis: Triton gives each thread all of a channel's.
        read = tl.load(
            inner + (place[:, None] - back[None, :])[:, :, None] * E + e[None, None, :],
            there[:, :, None],
            0.0,
        )  # (row, tap, e)
        convolved = tl.sum(read.to(tl.float32) * weight, 1) + _vector(conv_bias, e, INNER)
        x = convolved * sigmoid(convolved)
        raw = tl.zeros((ROWS, E), tl.float32) + _vector(dt_bias, e, INNER)
        for r in tl.static_range(RANK):
            rank = tl.sum(x * _vector(x_proj + r * INNER, e, INNER), 1)[:, None]
            raw += rank * tl.load(dt_weight + e * RANK + r, e < INNER, 0.0)[None, :]
        delta = tl.where((e < INNER)[None, :], _softplus(raw), 0.0)
        if TRAIN:
            _store_rows(before, place, own, convolved, E, E)
            _store_rows(driven_out, place, own, delta * x, E, E)
        else:
            _store_rows(driven_out, place, own, x, E, E)
        _store_rows(delta_out, place, own, delta, E, E)
        _store_rows(B_out, place, own, _dot(x, to_B, PRECISION), N, N)
        _store_rows(C_out, place, own, _dot(x, to_C, PRECISION), N, N)


@triton.jit
def _decay_rates(A_log, e, INNER: tl.constexpr, STATE: tl.constexpr, N: tl.constexpr):
    """A · log2(e) of some inner channels, (N, e), zero outside."""
    n, e = tl.arange(0, N)[:, None], e[None, :]
    inside = (n < STATE) & (e < INNER)
    A = -tl.exp(tl.load(A_log + e * STATE + n, inside, 0.0))
    return tl.where(inside, A * 1.4426950408889634, 0.0)


@triton.jit
def _step(
    pointer, sequence, start, i, length, column, WIDE: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """Token start + i of a (sequences, length, WIDE) array; zeros past the end change nothing."""
    here = pointer + ((sequence * length + start) * WIDE + column) + i * WIDE
    return _load(here, start + i < length, EVEN)


@triton.jit
def _load_steps(
    delta_in, driven_in, B_in, C_in, gate, sequence, start, length, e, n,
    E: tl.constexpr, N: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Some of a scan's operands for STEPS tokens, a tuple each; of None, none."""
    deltas, drivens, Bs, Cs, gates = (), (), (), (), ()
    for i in tl.static_range(STEPS):
        deltas = deltas + (_step(delta_in, sequence, start, i, length, e, E, EVEN),)
        drivens = drivens + (_step(driven_in, sequence, start, i, length, e, E, EVEN),)
        Bs = Bs + (_step(B_in, sequence, start, i, length, n, N, EVEN),)
        if C_in is not None:
            Cs = Cs + (_step(C_in, sequence, start, i, length, n, N, EVEN),)
        if gate is not None:
            gates = gates + (_step(gate, sequence, start, i, length, e, E, EVEN),)
    return deltas, drivens, Bs, Cs, gates


@triton.jit(do_not_specialize=_SIZES)
def _ends_kernel(
    A_log, delta_in, driven_in, B_in, ends, spans, length, steps,
    TRAIN: tl.constexpr, INNER: tl.constexpr, STATE: tl.constexpr,
    E: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """What a chunk alone adds to the state, and the sum of its step sizes."""
    sequence, chunk = tl.program_id(0), tl.program_id(1)
    e, n = tl.program_id(2) * LANES + tl.arange(0, LANES), tl.arange(0, N)
    rates = _decay_rates(A_log, e, INNER, STATE, N)
    state = tl.zeros((N, LANES), tl.float32)
    span = tl.zeros((LANES,), tl.float32)
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    ahead = _load_steps(
        delta_in, driven_in, B_in, None, None, sequence, first, length, e, n, E, N, STEPS, EVEN
    )
    for start in range(first, last + STEPS, STEPS):
        deltas, drivens, Bs, _, _ = ahead
        following = tl.minimum(start + STEPS, last)
        ahead = _load_steps(
            delta_in, driven_in, B_in, None, None, sequence, following, length, e, n,
            E, N, STEPS, EVEN,
        )  # fmt: skip
        for i in tl.static_range(STEPS):
            delta, driven = deltas[i].to(tl.float32), drivens[i].to(tl.float32)
            if not TRAIN:
                driven *= delta
            state = _decay(rates, delta) * state + Bs[i].to(tl.float32)[:, None] * driven[None, :]
            span += delta
    place = sequence * tl.cdiv(length, steps) + chunk
    tl.store(_state(ends, place, e, N, E), state)
    tl.store(spans + place * E + e, span)


@triton.jit(do_not_specialize=_SIZES)
def _scan_kernel(
    A_log, D, delta_in, driven_in, B_in, C_in, gate, ends, spans, y_out, kept, length, steps,
    TRAIN: tl.constexpr, INNER: tl.constexpr, STATE: tl.constexpr,
    E: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """A chunk's outputs C · state, from the state that enters it; without TRAIN, gated."""
    sequence, chunk = tl.program_id(0), tl.program_id(1)
    e, n = tl.program_id(2) * LANES + tl.arange(0, LANES), tl.arange(0, N)
    rates = _decay_rates(A_log, e, INNER, STATE, N)
    direct = tl.load(D + e, e < INNER, 0.0)
    state = _gather_chunks(
        rates, ends, spans, sequence * tl.num_programs(1), chunk, 1, e, N, E, STEPS
    )
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    ahead = _load_steps(
        delta_in, driven_in, B_in, C_in, gate, sequence, first, length, e, n, E, N, STEPS, EVEN
    )
    for start in range(first, last + STEPS, STEPS):
        if TRAIN:
            if start < length:
                place = sequence * tl.cdiv(length, STEPS) + start // STEPS
                tl.store(_state(kept, place, e, N, E), state)
        deltas, drivens, Bs, Cs, gates = ahead
        # While these steps are computed, the next ones' operands are on their way.
        following = tl.minimum(start + STEPS, last)
        ahead = _load_steps(
            delta_in, driven_in, B_in, C_in, gate, sequence, following, length, e, n,
            E, N, STEPS, EVEN,
        )  # fmt: skip
        for i in tl.static_range(STEPS):
            delta, own = deltas[i].to(tl.float32), drivens[i].to(tl.float32)
            driven = own if TRAIN else own * delta
            state = _decay(rates, delta) * state + Bs[i].to(tl.float32)[:, None] * driven[None, :]
            y = tl.sum(Cs[i].to(tl.float32)[:, None] * state, 0)
            if not TRAIN:
                y = (y + direct * own) * gates[i].to(tl.float32)
            here = y_out + ((sequence * length + start) * E + e) + i * E
            _store(here, y, start + i < length, EVEN)


@triton.jit(do_not_specialize=_SIZES)
def _mix_kernel(
    tokens, norm_weight, norm_bias, D, out_proj, skip_scale, project_weight, project_bias,
    before, gate, y_in, mixed, out, rows, length, eps,
    CHANNELS: tl.constexpr, BRANCHES: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr,
    STATE: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, G: tl.constexpr, E: tl.constexpr, N: tl.constexpr, O: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, TRAIN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gate, way out and skip of every branch of some tokens, then LayerNorm and projection."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    g, e, c, o = tl.arange(0, G), tl.arange(0, E), tl.arange(0, C), tl.arange(0, O)
    to_out = _matrix(out_proj, g[None, :], e[:, None], GROUP, INNER)  # (E, G)
    direct = _vector(D, e, INNER)
    skip = tl.load(skip_scale)
    mean, scale = row_statistics(_load_rows(tokens, row, inside, CHANNELS, C), eps, CHANNELS, C)
    for branch in tl.static_range(BRANCHES):
        place = _place_in_sequence(row, length, branch, BRANCHES)
        gated = _load_rows(y_in, place, inside, E, E)
        if TRAIN:
            convolved = _load_rows(before, place, inside, E, E)
            z = _load_rows(gate, place, inside, E, E)
            gated = (gated + direct * convolved * sigmoid(convolved)) * z * sigmoid(z)
        group = _normal_group(
            tokens, norm_weight, norm_bias, row, inside, branch, mean, scale, CHANNELS, GROUP, G
        )
        left = _dot(gated, to_out, PRECISION) + skip * group
        keep = inside[:, None] & (g < GROUP)[None, :]
        tl.store(mixed + row[:, None] * CHANNELS + branch * GROUP + g[None, :], left, keep)
    tl.debug_barrier()  # the branches are read as whole rows below
    x = _load_rows(mixed, row, inside, CHANNELS, C)
    mean, scale = row_statistics(x, eps, CHANNELS, C)
    normal = (x - mean) * scale * _vector(norm_weight, c, CHANNELS)
    normal += _vector(norm_bias, c, CHANNELS)
    to_channels = _matrix(project_weight, o[None, :], c[:, None], OUT, CHANNELS)
    projected = _dot(normal, to_channels, PRECISION)
    _store_rows(out, row, inside, projected + _vector(project_bias, o, OUT), OUT, O)


@triton.jit(do_not_specialize=_SIZES)
def _mix_backward_kernel(
    norm_weight, norm_bias, D, out_proj, project_weight, before, gate, y_in, mixed,
    grad_out, grad_mixed, grad_gate, grad_y_out, partials, norm_partials, rows, length, tiles, eps,
    CHANNELS: tl.constexpr, BRANCHES: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr,
    STATE: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, G: tl.constexpr, E: tl.constexpr, N: tl.constexpr, O: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Back through ``_mix_kernel`` for some tiles of tokens, with their parameters' sums."""
    g, e, c, o = tl.arange(0, G), tl.arange(0, E), tl.arange(0, C), tl.arange(0, O)
    gain, shift = _vector(norm_weight, c, CHANNELS), _vector(norm_bias, c, CHANNELS)
    project_back = _matrix(project_weight, o[:, None], c[None, :], OUT, CHANNELS)  # (O, C)
    out_back = _matrix(out_proj, g[:, None], e[None, :], GROUP, INNER)  # (G, E)
    direct = _vector(D, e, INNER)
    grad_project = tl.zeros((O, C), tl.float32)
    grad_bias = tl.zeros((O,), tl.float32)
    grad_gain = tl.zeros((C,), tl.float32)
    grad_shift = tl.zeros((C,), tl.float32)
    grad_out_proj = tl.zeros((G, E), tl.float32)
    grad_D = tl.zeros((E,), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        x = _load_rows(mixed, row, inside, CHANNELS, C)
        mean, scale = row_statistics(x, eps, CHANNELS, C)
        standard = tl.where((c < CHANNELS)[None, :], (x - mean) * scale, 0.0)
        grad = _load_rows(grad_out, row, inside, OUT, O)
        grad_project += _product(tl.trans(grad), standard * gain + shift)
        grad_bias += tl.sum(grad, 0)
        grad_normal = _product(grad, project_back)
        grad_gain += tl.sum(grad_normal * standard, 0)
        grad_shift += tl.sum(grad_normal, 0)
        grad_x = row_gradient(grad_normal * gain, standard, scale, CHANNELS)
        _store_rows(grad_mixed, row, inside, grad_x, CHANNELS, C)
        tl.debug_barrier()  # the rows are read by branches below
        for branch in range(BRANCHES):
            keep = inside[:, None] & (g < GROUP)[None, :]
            here = grad_mixed + row[:, None] * CHANNELS + branch * GROUP + g[None, :]
            grad_left = tl.load(here, keep, 0.0)
            place = _place_in_sequence(row, length, branch, BRANCHES)
            convolved = _load_rows(before, place, inside, E, E)
            own = convolved * sigmoid(convolved)
            z = _load_rows(gate, place, inside, E, E)
            y = _load_rows(y_in, place, inside, E, E) + direct * own
            opened = z * sigmoid(z)
            grad_gated = _product(grad_left, out_back)
            grad_y = grad_gated * opened
            grad_out_proj += _product(tl.trans(grad_left), y * opened)
            grad_D += tl.sum(grad_y * own, 0)
            _store_rows(grad_y_out, place, inside, grad_y, E, E)
            _store_rows(grad_gate, place, inside, grad_gated * y * silu_slope(z), E, E)
    # In the order of ``mix_sizes``.
    size: tl.constexpr = OUT * CHANNELS + OUT + GROUP * INNER + INNER
    partials += tl.program_id(0) * size
    _store_sum(partials, grad_project, o[:, None], c[None, :], OUT, CHANNELS)
    partials += OUT * CHANNELS
    tl.store(partials + o, grad_bias, o < OUT)
    partials += OUT
    _store_sum(partials, grad_out_proj, g[:, None], e[None, :], GROUP, INNER)
    tl.store(partials + GROUP * INNER + e, grad_D, e < INNER)
    norm_partials += tl.program_id(0) * 2 * CHANNELS
    tl.store(norm_partials + c, grad_gain, c < CHANNELS)
    tl.store(norm_partials + CHANNELS + c, grad_shift, c < CHANNELS)


@triton.jit(do_not_specialize=_SIZES)
def _leaving_kernel(
    A_log, delta_in, C_in, grad_y_in, leaving, spans, length, steps,
    INNER: tl.constexpr, STATE: tl.constexpr,
    E: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a chunk, from this chunk's outputs alone."""
    sequence, chunk = tl.program_id(0), tl.program_id(1)
    e, n = tl.program_id(2) * LANES + tl.arange(0, LANES), tl.arange(0, N)
    rates = _decay_rates(A_log, e, INNER, STATE, N)
    grad = tl.zeros((N, LANES), tl.float32)
    span = tl.zeros((LANES,), tl.float32)
    for done in range(0, steps, STEPS):
        start = (chunk + 1) * steps - STEPS - done
        for i in tl.static_range(STEPS - 1, -1, -1):
            delta = _step(delta_in, sequence, start, i, length, e, E, EVEN)
            C = _step(C_in, sequence, start, i, length, n, N, EVEN)
            grad_y = _step(grad_y_in, sequence, start, i, length, e, E, EVEN)
            grad = _decay(rates, delta) * (grad + C[:, None] * grad_y[None, :])
            span += delta
    place = sequence * tl.num_programs(1) + chunk
    tl.store(_state(leaving, place, e, N, E), grad)
    tl.store(spans + place * E + e, span)


@triton.jit(do_not_specialize=_SIZES)
def _scan_backward_kernel(
    A_log, delta_in, driven_in, B_in, C_in, kept, leaving, spans, grad_y_in,
    grad_driven, grad_exponent, grad_B, grad_C, partials, length, steps,
    INNER: tl.constexpr, STATE: tl.constexpr,
    E: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """A chunk's gradients of delta · x, delta · A (summed over the states), B, C and A_log."""
    sequence, chunk, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequences, chunks = tl.num_programs(0), tl.num_programs(1)
    e, n = block * LANES + tl.arange(0, LANES), tl.arange(0, N)
    rates = _decay_rates(A_log, e, INNER, STATE, N)
    # The gradient of the state at this chunk's end, with the decay of the next step in it.
    final = (sequence + 1) * chunks - 1
    grad = _gather_chunks(rates, leaving, spans, final, chunks - 1 - chunk, -1, e, N, E, STEPS)
    grad_A = tl.zeros((N, LANES), tl.float32)
    for done in range(0, steps, STEPS):
        start = (chunk + 1) * steps - STEPS - done
        deltas, drivens, Bs, Cs, grad_ys = (), (), (), (), ()
        for i in tl.static_range(STEPS):
            deltas = deltas + (_step(delta_in, sequence, start, i, length, e, E, EVEN),)
            drivens = drivens + (_step(driven_in, sequence, start, i, length, e, E, EVEN),)
            Bs = Bs + (_step(B_in, sequence, start, i, length, n, N, EVEN),)
            Cs = Cs + (_step(C_in, sequence, start, i, length, n, N, EVEN),)
            grad_ys = grad_ys + (_step(grad_y_in, sequence, start, i, length, e, E, EVEN),)
        place = sequence * tl.cdiv(length, STEPS) + start // STEPS
        states = (tl.load(_state(kept, place, e, N, E), start < length, 0.0),)
        decays = ()
        for i in tl.static_range(STEPS):
            decays = decays + (_decay(rates, deltas[i]),)
            entered = Bs[i][:, None] * drivens[i][None, :]
            states = states + (decays[i] * states[i] + entered,)
        for i in tl.static_range(STEPS - 1, -1, -1):
            here, inside = sequence * length + start + i, start + i < length
            grad += Cs[i][:, None] * grad_ys[i][None, :]
            of_C = tl.sum(states[i + 1] * grad_ys[i][None, :], 1)
            of_B = tl.sum(grad * drivens[i][None, :], 1)
            of_driven = tl.sum(grad * Bs[i][:, None], 0)
            grad *= decays[i]
            exponent = grad * states[i]
            grad_A += exponent * deltas[i][None, :]
            of_exponent = tl.sum(exponent * rates, 0) * 0.6931471805599453
            tl.store(grad_driven + here * E + e, of_driven, inside)
            tl.store(grad_exponent + here * E + e, of_exponent, inside)
            tl.store(grad_B + (block * sequences * length + here) * N + n, of_B, inside)
            tl.store(grad_C + (block * sequences * length + here) * N + n, of_C, inside)
    partials += (sequence * chunks + chunk) * INNER * STATE
    # A = −exp(A_log), so A is its own slope.
    _store_sum(
        partials, grad_A * (rates * 0.6931471805599453), e[None, :], n[:, None], INNER, STATE
    )


@triton.jit(do_not_specialize=_SIZES)
def _operands_backward_kernel(
    x_proj, dt_weight, D, before, delta_in, grad_y_in, grad_driven, grad_exponent, grad_B, grad_C,
    grad_before, partials, rows, tiles,
    CHANNELS: tl.constexpr, BRANCHES: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr,
    STATE: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, G: tl.constexpr, E: tl.constexpr, N: tl.constexpr, O: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Back from the scan's operands to the convolution's output, for rows (sequence, token)."""
    e, n = tl.arange(0, E), tl.arange(0, N)
    B_back = _matrix(x_proj + RANK * INNER, n[:, None], e[None, :], STATE, INNER)  # (N, E)
    C_back = _matrix(x_proj + (RANK + STATE) * INNER, n[:, None], e[None, :], STATE, INNER)
    direct = _vector(D, e, INNER)
    grad_to_B = tl.zeros((N, E), tl.float32)
    grad_to_C = tl.zeros((N, E), tl.float32)
    grad_dt_bias = tl.zeros((E,), tl.float32)
    ranks = tl.arange(0, 8)[:, None]  # rows beyond RANK stay zero
    grad_to_rank = tl.zeros((8, E), tl.float32)
    grad_dt_weight = tl.zeros((8, E), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        convolved = _load_rows(before, row, inside, E, E)
        x = convolved * sigmoid(convolved)
        delta = _load_rows(delta_in, row, inside, E, E)
        of_driven = _load_rows(grad_driven, row, inside, E, E)
        of_B = tl.zeros((ROWS, N), tl.float32)
        of_C = tl.zeros((ROWS, N), tl.float32)
        for block in tl.static_range(E // LANES):
            of_B += _load_rows(grad_B + block * rows * N, row, inside, N, N)
            of_C += _load_rows(grad_C + block * rows * N, row, inside, N, N)
        grad_delta = of_driven * x + _load_rows(grad_exponent, row, inside, E, E)
        grad_raw = grad_delta * (1.0 - tl.exp(-delta))  # the slope of softplus
        grad_x = of_driven * delta + direct * _load_rows(grad_y_in, row, inside, E, E)
        grad_x += _product(of_B, B_back) + _product(of_C, C_back)
        for r in tl.static_range(RANK):
            to_rank = _vector(x_proj + r * INNER, e, INNER)
            from_rank = tl.load(dt_weight + e * RANK + r, e < INNER, 0.0)[None, :]
            grad_rank = tl.sum(grad_raw * from_rank, 1)[:, None]
            grad_x += grad_rank * to_rank
            rank = tl.sum(x * to_rank, 1)[:, None]
            grad_dt_weight += tl.where(ranks == r, tl.sum(grad_raw * rank, 0)[None, :], 0.0)
            grad_to_rank += tl.where(ranks == r, tl.sum(grad_rank * x, 0)[None, :], 0.0)
        grad_dt_bias += tl.sum(grad_raw, 0)
        grad_to_B += _product(tl.trans(of_B), x)
        grad_to_C += _product(tl.trans(of_C), x)
        _store_rows(grad_before, row, inside, grad_x * silu_slope(convolved), E, E)
    # In the order of ``operand_sizes``.
    partials += tl.program_id(0) * ((2 * RANK + 2 * STATE) * INNER + INNER)
    _store_sum(partials, grad_to_rank, ranks, e[None, :], RANK, INNER)
    partials += RANK * INNER
    _store_sum(partials, grad_to_B, n[:, None], e[None, :], STATE, INNER)
    partials += STATE * INNER
    _store_sum(partials, grad_to_C, n[:, None], e[None, :], STATE, INNER)
    partials += STATE * INNER
    _store_sum(partials, grad_dt_weight, e[None, :], ranks, INNER, RANK)
    tl.store(partials + INNER * RANK + e, grad_dt_bias, e < INNER)


@triton.jit(do_not_specialize=_SIZES)
def _tokens_backward_kernel(
    tokens, norm_weight, norm_bias, in_proj, conv_weight, skip_scale, inner,
    grad_before, grad_gate, grad_mixed, grad_normal, grad_tokens, partials, norm_partials,
    rows, length, tiles, eps,
    CHANNELS: tl.constexpr, BRANCHES: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr,
    STATE: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, G: tl.constexpr, E: tl.constexpr, N: tl.constexpr, O: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Back through convolution, projection, skip and LayerNorm to some tiles of tokens."""
    g, e, c = tl.arange(0, G), tl.arange(0, E), tl.arange(0, C)
    inner_back = _matrix(in_proj, e[:, None], g[None, :], INNER, GROUP)  # (E, G)
    gate_back = _matrix(in_proj + INNER * GROUP, e[:, None], g[None, :], INNER, GROUP)
    skip = tl.load(skip_scale)
    taps = tl.arange(0, 8)[:, None]  # rows beyond WIDTH stay zero
    grad_conv_weight = tl.zeros((8, E), tl.float32)
    grad_conv_bias = tl.zeros((E,), tl.float32)
    grad_to_inner = tl.zeros((E, G), tl.float32)
    grad_to_gate = tl.zeros((E, G), tl.float32)
    grad_gain = tl.zeros((C,), tl.float32)
    grad_shift = tl.zeros((C,), tl.float32)
    grad_skip = tl.zeros((ROWS,), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        x = _load_rows(tokens, row, inside, CHANNELS, C)
        mean, scale = row_statistics(x, eps, CHANNELS, C)
        for branch in range(BRANCHES):
            place = _place_in_sequence(row, length, branch, BRANCHES)
            group = _normal_group(
                tokens, norm_weight, norm_bias, row, inside, branch, mean, scale,
                CHANNELS, GROUP, G,
            )  # fmt: skip
            own = _load_rows(inner, place, inside, E, E)
            grad_inner = tl.zeros((ROWS, E), tl.float32)
            for tap in tl.static_range(WIDTH):
                # The token went into the output of the token WIDTH − 1 − tap further on.
                there = inside & (row % length < length - (WIDTH - 1 - tap))
                grad = _load_rows(grad_before, place + (WIDTH - 1 - tap), there, E, E)
                weight = tl.load(conv_weight + e * WIDTH + tap, e < INNER, 0.0)[None, :]
                grad_inner += grad * weight
                grad_conv_weight += tl.where(taps == tap, tl.sum(grad * own, 0)[None, :], 0.0)
            grad_conv_bias += tl.sum(grad, 0)  # the last tap is the token itself
            of_gate = _load_rows(grad_gate, place, inside, E, E)
            keep = inside[:, None] & (g < GROUP)[None, :]
            here = row[:, None] * CHANNELS + branch * GROUP + g[None, :]
            grad_left = tl.load(grad_mixed + here, keep, 0.0)
            grad_group = _product(grad_inner, inner_back) + _product(of_gate, gate_back)
            grad_to_inner += _product(tl.trans(grad_inner), group)
            grad_to_gate += _product(tl.trans(of_gate), group)
            grad_skip += tl.sum(grad_left * group, 1)
            tl.store(grad_normal + here, grad_group + skip * grad_left, keep)
        tl.debug_barrier()  # the branches are read as whole rows below
        standard = tl.where((c < CHANNELS)[None, :] & inside[:, None], (x - mean) * scale, 0.0)
        grad = _load_rows(grad_normal, row, inside, CHANNELS, C)
        grad_gain += tl.sum(grad * standard, 0)
        grad_shift += tl.sum(grad, 0)
        grad *= _vector(norm_weight, c, CHANNELS)
        _store_rows(
            grad_tokens, row, inside, row_gradient(grad, standard, scale, CHANNELS), CHANNELS, C
        )
    # In the order of ``token_sizes``.
    size: tl.constexpr = 2 * INNER * GROUP + INNER * WIDTH + INNER + 1
    partials += tl.program_id(0) * size
    _store_sum(partials, grad_to_inner, e[:, None], g[None, :], INNER, GROUP)
    partials += INNER * GROUP
    _store_sum(partials, grad_to_gate, e[:, None], g[None, :], INNER, GROUP)
    partials += INNER * GROUP
    _store_sum(partials, grad_conv_weight, e[None, :], taps, INNER, WIDTH)
    partials += INNER * WIDTH
    tl.store(partials + e, grad_conv_bias, e < INNER)
    tl.store(partials + INNER, tl.sum(grad_skip, 0))
    norm_partials += tl.program_id(0) * 2 * CHANNELS
    tl.store(norm_partials + c, grad_gain, c < CHANNELS)
    tl.store(norm_partials + CHANNELS + c, grad_shift, c < CHANNELS)
