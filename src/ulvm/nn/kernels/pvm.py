"""The PVM layer: kernels over tokens for its projections; ``scan.py`` for the steps between.

A sequence is one branch of one picture. Without a gradient, what the scan does not need is neither
made nor stored, and the scan applies the gate as well.

Arrays between the kernels are float32, or without a gradient of the tokens' type; E and N are the
inner width and the state size, padded to powers of two.

Source: arXiv 2403.20035, section 3.2; Gu & Dao 2023, arXiv 2312.00752, algorithm 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels import device
from ulvm.nn.kernels import scan as scans
from ulvm.nn.kernels.arrays import scratch, split_as
from ulvm.nn.kernels.layer_norm import row_gradient, row_statistics
from ulvm.nn.kernels.matrices import (
    dot,
    load_rows,
    matrix,
    product,
    softplus,
    store_rows,
    store_sum,
    vector,
)
from ulvm.nn.kernels.norms import sigmoid, silu_slope, write_sums, zeros
from ulvm.nn.kernels.scan import choose_chunk, padded, run_scan, run_scan_back
from ulvm.nn.kernels.sums import sum_partials

ROWS, WARPS = 16, 2  # tokens and warps of one program that works on tokens
WIDE_WARPS = 8  # where the matrices exceed the registers of two warps
MANY_ROWS = 32  # tokens of one forward, where that leaves enough programs
ENOUGH = device.EIGHT_ON_EACH  # of these programs
LANES = tl.constexpr(16)  # inner channels of one program that scans
MANY_STEPS = 8  # loaded together without a gradient, where more registers are free
PROGRAMS = device.EIGHT_ON_EACH  # of the kernels that sum parameter gradients
SCANNERS = device.EIGHT_ON_EACH  # programs that a scan should have at least

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


class Pointers(NamedTuple):
    """What the kernels read and write besides; None where one does not. ``d_`` are gradients."""

    tokens: Any  # (batch, length, channels)
    inner: Any  # (sequences, length, E), before the convolution
    before: Any  # (sequences, length, E), the convolution before its SiLU; None without a gradient
    gate: Any  # (sequences, length, E), before its SiLU; without a gradient after it
    delta: Any  # (sequences, length, E)
    x: Any  # (sequences, length, E), what the scan takes; with a gradient times delta
    B: Any  # (sequences, length, N)
    C: Any  # (sequences, length, N)
    y: Any  # (sequences, length, E), what the scan gives; without a gradient gated
    mixed: Any  # (batch, length, channels), before the second LayerNorm
    out: Any = None  # (batch, length, out_channels)
    d_out: Any = None  # (batch, length, out_channels)
    d_mixed: Any = None  # (batch, length, channels)
    d_gate: Any = None  # (sequences, length, E)
    d_y: Any = None  # (sequences, length, E)
    d_x: Any = None  # (sequences, length, E)
    d_delta: Any = None  # (sequences, length, E), by way of delta · A
    d_B: Any = None  # (blocks, sequences, length, N)
    d_C: Any = None  # (blocks, sequences, length, N)
    d_before: Any = None  # (sequences, length, E)
    d_normal: Any = None  # (batch, length, channels)
    d_tokens: Any = None  # (batch, length, channels)
    # Partial sums of the parameters' gradients, a row of numbers a program, in this order:
    of_mix: Any = None  # project_weight, project_bias, out_proj, D
    of_operands: Any = None  # x_proj, dt_weight, dt_bias
    of_tokens: Any = None  # in_proj, conv_weight, conv_bias, skip_scale
    of_norm: Any = None  # norm_weight, norm_bias; of the programs of ``of_mix``, then ``of_tokens``


class Sizes(NamedTuple):
    """What the kernels are compiled for; C, G, E, N, O and TAPS are padded.

    Fields only, for Triton's cache on disk knows these, not what a property makes of them.
    """

    CHANNELS: int
    BRANCHES: int
    GROUP: int
    INNER: int
    STATE: int
    RANK: int
    WIDTH: int
    OUT: int
    C: int
    G: int
    E: int
    N: int
    O: int
    TAPS: int
    ROWS: int = ROWS  # tokens of one program
    PRECISION: str = "tf32x3"
    TRAIN: bool = True

    @property
    def warps(self) -> int:
        """Of one program that works on tokens."""
        return WIDE_WARPS if self.C * self.O > 4096 or self.G * self.E > 512 else WARPS

    @property
    def shared_bytes(self) -> int:
        """At least what the backward kernels need of a multiprocessor's shared memory.

        Fitted to what the compiler reports for widths of 24 to 256.
        """
        return 4 * (2 * self.C * self.O + 5 * self.G * self.E + 2048)

    def of_scan(self, even: bool) -> scans.Sizes:
        """The sizes of the scan between; ``even`` if all chunks are full."""
        return scans.Sizes(
            INNER=self.INNER,
            STATE=self.STATE,
            W=self.E,
            N=self.N,
            LANES=LANES.value,
            E_ROW=self.E,
            N_ROW=self.N,
            EVEN=even,
            STEPS=scans.STEPS if self.TRAIN else MANY_STEPS,
            OF_LOG=True,
            DRIVEN=self.TRAIN,
        )


_LENGTHS = ["rows", "length", "tiles"]  # one compiled kernel serves all


def choose_rows(rows: int) -> int:
    """Tokens of one program of a forward kernel."""
    return MANY_ROWS if rows // MANY_ROWS >= ENOUGH else ROWS


def sizes_of(weights: Weights, branches: int) -> Sizes:
    """The sizes that the parameters have."""
    channels, out = len(weights.norm_weight), len(weights.project_bias)
    inner, state = weights.A_log.shape
    width = weights.conv_weight.shape[2]
    return Sizes(
        CHANNELS=channels,
        BRANCHES=branches,
        GROUP=channels // branches,
        INNER=inner,
        STATE=state,
        RANK=weights.dt_weight.shape[1],
        WIDTH=width,
        OUT=out,
        C=padded(channels),
        G=padded(channels // branches),
        E=padded(inner),
        N=padded(state),
        O=padded(out),
        TAPS=triton.next_power_of_2(width),
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
        # Only backward needs more than the tokens' own precision.
        kind = torch.float32 if train else tokens.dtype
        sizes = sizes_of(w, branches)._replace(TRAIN=train, PRECISION=PRECISIONS[kind])
        tokens = tokens.contiguous()
        batch, length, _ = tokens.shape
        rows, sequences = batch * length, batch * branches

        def operand(width: int) -> Tensor:
            return tokens.new_empty(sequences, length, width, dtype=kind)

        p = Pointers(
            tokens,
            inner=operand(sizes.E),
            before=operand(sizes.E) if train else None,
            gate=operand(sizes.E),
            delta=operand(sizes.E),
            x=operand(sizes.E),
            B=operand(sizes.N),
            C=operand(sizes.N),
            y=operand(sizes.E),
            mixed=torch.empty_like(tokens, dtype=kind),
            out=tokens.new_empty(batch, length, sizes.OUT),
        )
        on_tokens = sizes._replace(ROWS=choose_rows(rows * branches))
        # It needs the tokens before as well.
        tiles = triton.cdiv(rows, on_tokens.ROWS - (sizes.WIDTH - 1))
        # A program does all branches of its tokens where that leaves enough programs.
        _operands_kernel[(tiles, 1 if tiles >= ENOUGH else branches)](
            p, w, rows, length, eps, S=on_tokens, num_warps=sizes.warps
        )
        chunk = choose_chunk(sequences * (sizes.E // LANES.value), length, SCANNERS)
        gate = None if train else p.gate
        scan = scans.Pointers(w.A_log, w.D, p.delta, p.x, p.B, p.C, p.y, gate)
        scan = run_scan(scan, chunk, sizes.of_scan(length % chunk == 0), keep=train)
        on_tokens = sizes._replace(ROWS=choose_rows(rows))
        _mix_kernel[(triton.cdiv(rows, on_tokens.ROWS),)](
            p, w, rows, length, eps, S=on_tokens, num_warps=sizes.warps
        )
        if train:
            ctx.save_for_backward(scan.kept, *w, *p[: Pointers._fields.index("out")])
            ctx.eps, ctx.sizes, ctx.chunk = eps, sizes, chunk
        return p.out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        sizes, eps, chunk = ctx.sizes, ctx.eps, ctx.chunk
        kept, *saved = ctx.saved_tensors
        count = len(Weights._fields)
        w, p = Weights(*saved[:count]), Pointers(*saved[count:])
        batch, length, _ = p.tokens.shape
        rows, sequences = batch * length, batch * sizes.BRANCHES
        tiles, branch_tiles = triton.cdiv(rows, ROWS), triton.cdiv(sequences * length, ROWS)
        programs, branch_programs = min(tiles, PROGRAMS), min(branch_tiles, PROGRAMS)
        options = {"S": sizes, "num_warps": sizes.warps}

        def partials(programs: int, *parameters: Tensor) -> Tensor:
            return scratch(p.tokens, programs, sum(each.numel() for each in parameters))

        of_mix = (w.project_weight, w.project_bias, w.out_proj, w.D)
        of_operands = (w.x_proj, w.dt_weight, w.dt_bias)
        of_tokens = (w.in_proj, w.conv_weight, w.conv_bias, w.skip_scale)
        p = p._replace(
            d_out=d_out.contiguous(),
            d_mixed=torch.empty_like(p.mixed),
            d_gate=torch.empty_like(p.gate),
            d_y=torch.empty_like(p.y),
            d_x=torch.empty_like(p.x),
            d_delta=torch.empty_like(p.delta),
            d_before=torch.empty_like(p.before),
            d_normal=torch.empty_like(p.mixed),
            d_tokens=torch.empty_like(p.tokens),
            of_mix=partials(programs, *of_mix),
            of_operands=partials(branch_programs, *of_operands),
            of_tokens=partials(programs, *of_tokens),
            of_norm=partials(2 * programs, w.norm_weight, w.norm_bias),
        )
        _mix_back_kernel[(programs,)](p, w, rows, length, tiles, eps, **options)
        scan = scans.Pointers(w.A_log, w.D, p.delta, p.x, p.B, p.C, kept=kept, d_y=p.d_y)
        scan = scan._replace(d_x=p.d_x, d_delta=p.d_delta)
        scan = run_scan_back(scan, chunk, sizes.of_scan(length % chunk == 0))
        p = p._replace(d_B=scan.d_B, d_C=scan.d_C)
        _operands_back_kernel[(branch_programs,)](p, w, sequences * length, branch_tiles, **options)
        _tokens_back_kernel[(programs,)](p, w, rows, length, tiles, eps, **options)

        sums = sum_partials(p.of_mix, scan.d_A, p.of_operands, p.of_tokens, p.of_norm)
        summed = (of_mix, (w.A_log,), of_operands, of_tokens, (w.norm_weight, w.norm_bias))
        gradients: dict[int, Tensor] = {}
        for total, parameters in zip(sums, summed, strict=True):
            gradients |= zip(map(id, parameters), split_as(total, *parameters), strict=True)
        return p.d_tokens, None, None, None, *(gradients[id(each)] for each in w)


@triton.jit
def _group_places(row, inside, branch, S: tl.constexpr):
    """(rows, G) places of one branch's channels of some tokens, and which exist."""
    g = tl.arange(0, S.G)
    keep = inside[:, None] & (g < S.GROUP)[None, :]
    return row[:, None] * S.CHANNELS + branch * S.GROUP + g[None, :], keep


@triton.jit
def _normal_group(p, w, row, inside, branch, mean, scale, S: tl.constexpr):
    """One branch's channels of some tokens after the LayerNorm, (rows, G), zeros outside."""
    g = tl.arange(0, S.G)
    place, keep = _group_places(row, inside, branch, S)
    x = tl.load(p.tokens + place, keep, 0.0).to(tl.float32)
    weight = vector(w.norm_weight + branch * S.GROUP, g, S.GROUP)
    bias = vector(w.norm_bias + branch * S.GROUP, g, S.GROUP)
    return tl.where(keep, (x - mean) * scale * weight + bias, 0.0)


@triton.jit
def _place_in_sequence(row, length, branch, S: tl.constexpr):
    """Row of a (sequence · length) array that holds a token's branch."""
    return (row // length * S.BRANCHES + branch) * length + row % length


@triton.jit(do_not_specialize=_LENGTHS)
def _operands_kernel(p, w, rows, length, eps, S: tl.constexpr):
    """From some tokens of one branch, or of several in turn, to everything that the scan reads.

    A program's first WIDTH − 1 rows belong to the program before; it makes them again for the
    convolution, which reads what this program itself has written.
    """
    PRECISION: tl.constexpr = S.PRECISION
    RANK: tl.constexpr = S.RANK
    INNER: tl.constexpr = S.INNER
    E: tl.constexpr = S.E
    first = tl.program_id(0) * (S.ROWS - (S.WIDTH - 1))
    row = first - (S.WIDTH - 1) + tl.arange(0, S.ROWS)
    inside = (row >= 0) & (row < rows)
    own_row = first + tl.arange(0, S.ROWS)
    own = (own_row < rows) & (tl.arange(0, S.ROWS) < S.ROWS - (S.WIDTH - 1))
    g, e, n = tl.arange(0, S.G), tl.arange(0, E), tl.arange(0, S.N)
    tokens = load_rows(p.tokens, row, inside, S.CHANNELS, S.C)
    mean, scale = row_statistics(tokens, eps, S.CHANNELS, S.C)
    to_inner = matrix(w.in_proj, e[None, :], g[:, None], INNER, S.GROUP)  # (G, E)
    to_gate = matrix(w.in_proj + INNER * S.GROUP, e[None, :], g[:, None], INNER, S.GROUP)
    to_B = matrix(w.x_proj + RANK * INNER, n[None, :], e[:, None], S.STATE, INNER)  # (E, N)
    of_C = w.x_proj + (RANK + S.STATE) * INNER
    to_C = matrix(of_C, n[None, :], e[:, None], S.STATE, INNER)
    tap = tl.arange(0, S.TAPS)
    back = S.WIDTH - 1 - tap
    weight = tl.load(
        w.conv_weight + (e * S.WIDTH)[None, None, :] + tap[None, :, None],
        (e < INNER)[None, None, :] & (tap < S.WIDTH)[None, :, None],
        0.0,
    )
    for branch in range(tl.program_id(1), S.BRANCHES, tl.num_programs(1)):
        group = _normal_group(p, w, row, inside, branch, mean, scale, S)
        z = dot(group, to_gate, PRECISION)
        if not S.TRAIN:
            z *= sigmoid(z)
        place = _place_in_sequence(row, length, branch, S)
        store_rows(p.inner, place, inside, dot(group, to_inner, PRECISION), E, E)
        store_rows(p.gate, place, inside, z, E, E)
        tl.debug_barrier()

        place = _place_in_sequence(own_row, length, branch, S)
        there = own[:, None] & (own_row[:, None] % length >= back[None, :]) & (back >= 0)[None, :]
        # Taps are the middle axis: Triton gives each thread all of a channel's.
        read = tl.load(
            p.inner + (place[:, None] - back[None, :])[:, :, None] * E + e[None, None, :],
            there[:, :, None],
            0.0,
        )  # (row, tap, e)
        convolved = tl.sum(read.to(tl.float32) * weight, 1) + vector(w.conv_bias, e, INNER)
        x = convolved * sigmoid(convolved)
        raw = zeros(S.ROWS, E) + vector(w.dt_bias, e, INNER)
        for r in tl.static_range(RANK):
            rank = tl.sum(x * vector(w.x_proj + r * INNER, e, INNER), 1)[:, None]
            raw += rank * tl.load(w.dt_weight + e * RANK + r, e < INNER, 0.0)[None, :]
        delta = tl.where((e < INNER)[None, :], softplus(raw), 0.0)
        if S.TRAIN:
            store_rows(p.before, place, own, convolved, E, E)
            store_rows(p.x, place, own, delta * x, E, E)
        else:
            store_rows(p.x, place, own, x, E, E)
        store_rows(p.delta, place, own, delta, E, E)
        store_rows(p.B, place, own, dot(x, to_B, PRECISION), S.N, S.N)
        store_rows(p.C, place, own, dot(x, to_C, PRECISION), S.N, S.N)


@triton.jit(do_not_specialize=_LENGTHS)
def _mix_kernel(p, w, rows, length, eps, S: tl.constexpr):
    """Gate, way out and skip of every branch of some tokens, then LayerNorm and projection."""
    PRECISION: tl.constexpr = S.PRECISION
    BRANCHES: tl.constexpr = S.BRANCHES
    row = tl.program_id(0) * S.ROWS + tl.arange(0, S.ROWS)
    inside = row < rows
    g, e, c, o = tl.arange(0, S.G), tl.arange(0, S.E), tl.arange(0, S.C), tl.arange(0, S.O)
    to_out = matrix(w.out_proj, g[None, :], e[:, None], S.GROUP, S.INNER)  # (E, G)
    direct = vector(w.D, e, S.INNER)
    skip = tl.load(w.skip_scale)
    tokens = load_rows(p.tokens, row, inside, S.CHANNELS, S.C)
    mean, scale = row_statistics(tokens, eps, S.CHANNELS, S.C)
    for branch in tl.static_range(BRANCHES):
        place = _place_in_sequence(row, length, branch, S)
        gated = load_rows(p.y, place, inside, S.E, S.E)
        if S.TRAIN:
            convolved = load_rows(p.before, place, inside, S.E, S.E)
            z = load_rows(p.gate, place, inside, S.E, S.E)
            gated = (gated + direct * convolved * sigmoid(convolved)) * z * sigmoid(z)
        group = _normal_group(p, w, row, inside, branch, mean, scale, S)
        left = dot(gated, to_out, PRECISION) + skip * group
        here, keep = _group_places(row, inside, branch, S)
        tl.store(p.mixed + here, left, keep)
    tl.debug_barrier()  # the branches are read as whole rows below
    x = load_rows(p.mixed, row, inside, S.CHANNELS, S.C)
    mean, scale = row_statistics(x, eps, S.CHANNELS, S.C)
    normal = (x - mean) * scale * vector(w.norm_weight, c, S.CHANNELS)
    normal += vector(w.norm_bias, c, S.CHANNELS)
    to_channels = matrix(w.project_weight, o[None, :], c[:, None], S.OUT, S.CHANNELS)
    projected = dot(normal, to_channels, PRECISION) + vector(w.project_bias, o, S.OUT)
    store_rows(p.out, row, inside, projected, S.OUT, S.O)


@triton.jit(do_not_specialize=_LENGTHS)
def _mix_back_kernel(p, w, rows, length, tiles, eps, S: tl.constexpr):
    """Back through ``_mix_kernel`` for some tiles of tokens, with their parameters' sums."""
    E: tl.constexpr = S.E
    g, e, c, o = tl.arange(0, S.G), tl.arange(0, E), tl.arange(0, S.C), tl.arange(0, S.O)
    gain = vector(w.norm_weight, c, S.CHANNELS)
    shift = vector(w.norm_bias, c, S.CHANNELS)
    project_back = matrix(w.project_weight, o[:, None], c[None, :], S.OUT, S.CHANNELS)  # (O, C)
    out_back = matrix(w.out_proj, g[:, None], e[None, :], S.GROUP, S.INNER)  # (G, E)
    direct = vector(w.D, e, S.INNER)
    d_project, d_bias = zeros(S.O, S.C), zeros(S.O)
    d_gain, d_shift = zeros(S.C), zeros(S.C)
    d_out_proj, d_D = zeros(S.G, E), zeros(E)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * S.ROWS + tl.arange(0, S.ROWS)
        inside = row < rows
        x = load_rows(p.mixed, row, inside, S.CHANNELS, S.C)
        mean, scale = row_statistics(x, eps, S.CHANNELS, S.C)
        standard = tl.where((c < S.CHANNELS)[None, :], (x - mean) * scale, 0.0)
        d_out = load_rows(p.d_out, row, inside, S.OUT, S.O)
        d_project += product(tl.trans(d_out), standard * gain + shift)
        d_bias += tl.sum(d_out, 0)
        d_normal = product(d_out, project_back)
        d_gain += tl.sum(d_normal * standard, 0)
        d_shift += tl.sum(d_normal, 0)
        d_mixed = row_gradient(d_normal * gain, standard, scale, S.CHANNELS)
        store_rows(p.d_mixed, row, inside, d_mixed, S.CHANNELS, S.C)
        tl.debug_barrier()  # the rows are read by branches below
        for branch in range(S.BRANCHES):
            here, keep = _group_places(row, inside, branch, S)
            d_left = tl.load(p.d_mixed + here, keep, 0.0)
            place = _place_in_sequence(row, length, branch, S)
            convolved = load_rows(p.before, place, inside, E, E)
            own = convolved * sigmoid(convolved)
            z = load_rows(p.gate, place, inside, E, E)
            y = load_rows(p.y, place, inside, E, E) + direct * own
            opened = z * sigmoid(z)
            d_gated = product(d_left, out_back)
            d_y = d_gated * opened
            d_out_proj += product(tl.trans(d_left), y * opened)
            d_D += tl.sum(d_y * own, 0)
            store_rows(p.d_y, place, inside, d_y, E, E)
            store_rows(p.d_gate, place, inside, d_gated * y * silu_slope(z), E, E)
    size: tl.constexpr = S.OUT * S.CHANNELS + S.OUT + S.GROUP * S.INNER + S.INNER
    to = p.of_mix + tl.program_id(0) * size
    to = store_sum(to, d_project, o[:, None], c[None, :], S.OUT, S.CHANNELS)
    tl.store(to + o, d_bias, o < S.OUT)
    to = store_sum(to + S.OUT, d_out_proj, g[:, None], e[None, :], S.GROUP, S.INNER)
    tl.store(to + e, d_D, e < S.INNER)
    write_sums(p.of_norm, 0, tl.program_id(0), 0, d_gain, d_shift, S)


@triton.jit(do_not_specialize=_LENGTHS)
def _operands_back_kernel(p, w, rows, tiles, S: tl.constexpr):
    """Back from the scan's operands to the convolution's output, for rows (sequence, token)."""
    RANK: tl.constexpr = S.RANK
    INNER: tl.constexpr = S.INNER
    E: tl.constexpr = S.E
    N: tl.constexpr = S.N
    e, n = tl.arange(0, E), tl.arange(0, N)
    B_back = matrix(w.x_proj + RANK * INNER, n[:, None], e[None, :], S.STATE, INNER)  # (N, E)
    of_C = w.x_proj + (RANK + S.STATE) * INNER
    C_back = matrix(of_C, n[:, None], e[None, :], S.STATE, INNER)
    direct = vector(w.D, e, INNER)
    d_to_B, d_to_C = zeros(N, E), zeros(N, E)
    d_dt_bias = zeros(E)
    ranks = tl.arange(0, 8)[:, None]  # rows beyond RANK stay zero
    d_to_rank, d_dt_weight = zeros(8, E), zeros(8, E)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * S.ROWS + tl.arange(0, S.ROWS)
        inside = row < rows
        convolved = load_rows(p.before, row, inside, E, E)
        x = convolved * sigmoid(convolved)
        delta = load_rows(p.delta, row, inside, E, E)
        d_driven = load_rows(p.d_x, row, inside, E, E)
        d_B, d_C = zeros(S.ROWS, N), zeros(S.ROWS, N)
        for block in tl.static_range(E // LANES):
            d_B += load_rows(p.d_B + block * rows * N, row, inside, N, N)
            d_C += load_rows(p.d_C + block * rows * N, row, inside, N, N)
        d_delta = d_driven * x + load_rows(p.d_delta, row, inside, E, E)
        d_raw = d_delta * (1.0 - tl.exp(-delta))  # the slope of softplus
        d_x = d_driven * delta + direct * load_rows(p.d_y, row, inside, E, E)
        d_x += product(d_B, B_back) + product(d_C, C_back)
        for r in tl.static_range(RANK):
            to_rank = vector(w.x_proj + r * INNER, e, INNER)
            from_rank = tl.load(w.dt_weight + e * RANK + r, e < INNER, 0.0)[None, :]
            d_rank = tl.sum(d_raw * from_rank, 1)[:, None]
            d_x += d_rank * to_rank
            rank = tl.sum(x * to_rank, 1)[:, None]
            d_dt_weight += tl.where(ranks == r, tl.sum(d_raw * rank, 0)[None, :], 0.0)
            d_to_rank += tl.where(ranks == r, tl.sum(d_rank * x, 0)[None, :], 0.0)
        d_dt_bias += tl.sum(d_raw, 0)
        d_to_B += product(tl.trans(d_B), x)
        d_to_C += product(tl.trans(d_C), x)
        store_rows(p.d_before, row, inside, d_x * silu_slope(convolved), E, E)
    to = p.of_operands + tl.program_id(0) * ((2 * RANK + 2 * S.STATE) * INNER + INNER)
    to = store_sum(to, d_to_rank, ranks, e[None, :], RANK, INNER)
    to = store_sum(to, d_to_B, n[:, None], e[None, :], S.STATE, INNER)
    to = store_sum(to, d_to_C, n[:, None], e[None, :], S.STATE, INNER)
    to = store_sum(to, d_dt_weight, e[None, :], ranks, INNER, RANK)
    tl.store(to + e, d_dt_bias, e < INNER)


@triton.jit(do_not_specialize=_LENGTHS)
def _tokens_back_kernel(p, w, rows, length, tiles, eps, S: tl.constexpr):
    """Back through convolution, projection, skip and LayerNorm to some tiles of tokens."""
    WIDTH: tl.constexpr = S.WIDTH
    INNER: tl.constexpr = S.INNER
    E: tl.constexpr = S.E
    g, e, c = tl.arange(0, S.G), tl.arange(0, E), tl.arange(0, S.C)
    inner_back = matrix(w.in_proj, e[:, None], g[None, :], INNER, S.GROUP)  # (E, G)
    gate_back = matrix(w.in_proj + INNER * S.GROUP, e[:, None], g[None, :], INNER, S.GROUP)
    skip = tl.load(w.skip_scale)
    taps = tl.arange(0, 8)[:, None]  # rows beyond WIDTH stay zero
    d_conv_weight, d_conv_bias = zeros(8, E), zeros(E)
    d_to_inner, d_to_gate = zeros(E, S.G), zeros(E, S.G)
    d_gain, d_shift = zeros(S.C), zeros(S.C)
    d_skip = zeros(S.ROWS)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * S.ROWS + tl.arange(0, S.ROWS)
        inside = row < rows
        x = load_rows(p.tokens, row, inside, S.CHANNELS, S.C)
        mean, scale = row_statistics(x, eps, S.CHANNELS, S.C)
        for branch in range(S.BRANCHES):
            place = _place_in_sequence(row, length, branch, S)
            group = _normal_group(p, w, row, inside, branch, mean, scale, S)
            own = load_rows(p.inner, place, inside, E, E)
            d_inner = zeros(S.ROWS, E)
            for tap in tl.static_range(WIDTH):
                # The token went into the output of the token WIDTH − 1 − tap further on.
                there = inside & (row % length < length - (WIDTH - 1 - tap))
                d_before = load_rows(p.d_before, place + (WIDTH - 1 - tap), there, E, E)
                weight = tl.load(w.conv_weight + e * WIDTH + tap, e < INNER, 0.0)[None, :]
                d_inner += d_before * weight
                d_conv_weight += tl.where(taps == tap, tl.sum(d_before * own, 0)[None, :], 0.0)
            d_conv_bias += tl.sum(d_before, 0)  # the last tap is the token itself
            d_gate = load_rows(p.d_gate, place, inside, E, E)
            here, keep = _group_places(row, inside, branch, S)
            d_left = tl.load(p.d_mixed + here, keep, 0.0)
            d_group = product(d_inner, inner_back) + product(d_gate, gate_back)
            d_to_inner += product(tl.trans(d_inner), group)
            d_to_gate += product(tl.trans(d_gate), group)
            d_skip += tl.sum(d_left * group, 1)
            tl.store(p.d_normal + here, d_group + skip * d_left, keep)
        tl.debug_barrier()  # the branches are read as whole rows below
        standard = tl.where((c < S.CHANNELS)[None, :] & inside[:, None], (x - mean) * scale, 0.0)
        d_normal = load_rows(p.d_normal, row, inside, S.CHANNELS, S.C)
        d_gain += tl.sum(d_normal * standard, 0)
        d_shift += tl.sum(d_normal, 0)
        d_normal *= vector(w.norm_weight, c, S.CHANNELS)
        d_tokens = row_gradient(d_normal, standard, scale, S.CHANNELS)
        store_rows(p.d_tokens, row, inside, d_tokens, S.CHANNELS, S.C)
    to = p.of_tokens + tl.program_id(0) * (2 * INNER * S.GROUP + INNER * WIDTH + INNER + 1)
    to = store_sum(to, d_to_inner, e[:, None], g[None, :], INNER, S.GROUP)
    to = store_sum(to, d_to_gate, e[:, None], g[None, :], INNER, S.GROUP)
    to = store_sum(to, d_conv_weight, e[None, :], taps, INNER, WIDTH)
    tl.store(to + e, d_conv_bias, e < INNER)
    tl.store(to + INNER, tl.sum(d_skip, 0))
    # The programs of ``_mix_back_kernel``, as many, come before.
    program = tl.num_programs(0) + tl.program_id(0)
    write_sums(p.of_norm, 0, program, 0, d_gain, d_shift, S)
