"""The selective scan of ``nn/scan.py``: kernels over steps, for the PVM layer and any other Mamba.

Each sequence is cut into chunks; one warp walks through one chunk with the states of some inner
channels in registers. The state that enters a chunk is put together from what each earlier chunk
adds to it. Forward keeps every fourth state; backward recomputes the three between.

Arrays of states are (…, W, N): the inner width padded to whole programs, the state size padded to a
power of two.

Source: Gu & Dao 2023, arXiv 2312.00752, section 3.3.2 (recomputation).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels import device
from ulvm.nn.kernels.arrays import keep, kept, scratch, split_as
from ulvm.nn.kernels.norms import zeros
from ulvm.nn.kernels.sums import sum_partials

LARGEST_STATE = 64
TILE = 256  # states of one program at most: eight registers of each thread
MOST_LANES = 32  # inner channels of one program at most
STEPS = 4  # steps whose operands are loaded together, and between two kept states
REGISTERS = 160  # of a thread of backward: twelve programs fit on each multiprocessor
LONGEST = 1024  # steps of one chunk at most
SCANNERS = 2 * device.EIGHT_ON_EACH  # programs that a scan should have at least


class Sizes(NamedTuple):
    """What the kernels are compiled for."""

    INNER: int
    STATE: int
    W: int  # INNER, padded to whole programs
    N: int  # STATE, padded
    LANES: int  # inner channels of one program
    E_ROW: int  # numbers between two steps of x; INNER, or W where the padding is stored too
    N_ROW: int  # of B
    EVEN: bool  # all chunks are full, and nothing is padded
    STEPS: int = STEPS
    LONG: bool = False  # places may need 64 bits
    OF_LOG: bool = False  # A is given as log(−A), and so is its gradient
    DRIVEN: bool = False  # x is delta · x already, whose gradient is wanted; D is not added


class Pointers(NamedTuple):
    """What the kernels read and write; None where one does not. ``d_`` are gradients."""

    A: Any  # (INNER, STATE)
    D: Any  # (INNER,)
    delta: Any  # (sequences, length, E_ROW)
    x: Any  # (sequences, length, E_ROW)
    B: Any  # (sequences, length, N_ROW)
    C: Any  # (sequences, length, N_ROW)
    y: Any = None  # (sequences, length, E_ROW)
    gate: Any = None  # (sequences, length, E_ROW), to multiply y with
    states: Any = None  # (sequences, chunks, W, N), what each chunk alone adds
    spans: Any = None  # (sequences, chunks, W), the sum of a chunk's step sizes
    kept: Any = None  # (sequences, length / STEPS, W, N)
    d_y: Any = None  # (sequences, length, E_ROW)
    d_x: Any = None  # (sequences, length, E_ROW)
    d_delta: Any = None  # (sequences, length, E_ROW); if DRIVEN only by way of delta · A
    d_B: Any = None  # (blocks, sequences, length, N_ROW)
    d_C: Any = None  # (blocks, sequences, length, N_ROW)
    d_A: Any = None  # (sequences · chunks, INNER · STATE)
    d_D: Any = None  # (sequences · chunks, INNER)


def padded(size: int) -> int:
    """The smallest power of two that is at least ``size`` and 16."""
    return max(16, triton.next_power_of_2(size))


def choose_chunk(walks: int, length: int, scanners: int) -> int:
    """Steps of one scanning program: √length at least, more while enough programs are left.

    Args:
        walks: Programs that would walk through whole sequences.
        length: Steps of a sequence.
        scanners: Programs that are enough.
    """
    steps = walks * length // scanners
    return min(max(padded(steps), padded(math.isqrt(length))), LONGEST, padded(length))


def scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """``nn.scan.selective_scan`` for states of at most LARGEST_STATE, in the same terms."""
    operands = (x, delta, A, B, C, D)
    # Inside the function below it would be too late to ask whether gradients are on.
    train = torch.is_grad_enabled() and any(each.requires_grad for each in operands)
    y: Tensor = _Scan.apply(*operands, train)
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, train: bool
    ) -> Tensor:
        # B and C are slices of one projection: as rows of their own they are read in fours.
        x, delta, A, B, C, D = (each.contiguous() for each in (x, delta, A, B, C, D))
        batch, length, inner = x.shape
        state = A.shape[1]
        N = triton.next_power_of_2(state)
        lanes = min(TILE // N, MOST_LANES, triton.next_power_of_2(inner))
        blocks = triton.cdiv(inner, lanes)
        steps = choose_chunk(batch * blocks, length, SCANNERS)
        W = blocks * lanes
        even = length % steps == 0 and (inner, state) == (W, N)
        sizes = Sizes(inner, state, W, N, lanes, inner, state, even, LONG=True)
        p = run_scan(Pointers(A, D, delta, x, B, C, torch.empty_like(x)), steps, sizes, keep=train)
        if train:
            keep(ctx, p._replace(y=None, states=None, spans=None))
            ctx.steps, ctx.sizes = steps, sizes
        return p.y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        p = kept(ctx, Pointers)
        chunks = triton.cdiv(p.x.shape[1], ctx.steps)
        p = p._replace(
            d_y=d_y.contiguous(),
            d_x=torch.empty_like(p.x),
            d_delta=torch.empty_like(p.delta),
            d_D=scratch(p.x, len(p.x) * chunks, len(p.D)),
        )
        p = run_scan_back(p, ctx.steps, ctx.sizes, maxnreg=REGISTERS)
        d_A, d_D = sum_partials(p.d_A, p.d_D)
        d_B, d_C = (each.sum(0) if len(each) > 1 else each[0] for each in (p.d_B, p.d_C))
        (d_A,), (d_D,) = split_as(d_A, p.A), split_as(d_D, p.D)
        return p.d_x, p.d_delta, d_A, d_B.to(p.B.dtype), d_C.to(p.C.dtype), d_D, None


def run_scan(p: Pointers, steps: int, sizes: Sizes, *, keep: bool) -> Pointers:
    """Fill ``y``, in chunks of so many steps; ``kept`` is made and filled too, to go back."""
    if keep:
        sequences, length, _ = p.x.shape
        states = scratch(p.x, sequences, triton.cdiv(length, STEPS), sizes.W, sizes.N)
        p = p._replace(kept=states)
    return _walk(p, steps, sizes)


def run_scan_back(p: Pointers, steps: int, sizes: Sizes, **options: int) -> Pointers:
    """Fill the gradients; those of A, B and C are made here, and need to be added up."""
    sequences, length, _ = p.x.shape
    blocks = sizes.W // sizes.LANES
    p = p._replace(
        d_B=scratch(p.x, blocks, *p.B.shape),
        d_C=scratch(p.x, blocks, *p.C.shape),
        d_A=scratch(p.x, sequences * triton.cdiv(length, steps), p.A.numel()),
    )
    return _walk(p, steps, sizes, back=True, **options)


def _walk(p: Pointers, steps: int, sizes: Sizes, *, back: bool = False, **options: int) -> Pointers:
    """Launch what each chunk adds alone, then what each gives from what enters it."""
    sequences, length, _ = p.x.shape
    chunks, blocks = triton.cdiv(length, steps), sizes.W // sizes.LANES
    p = p._replace(
        states=scratch(p.x, sequences, chunks, sizes.W, sizes.N),
        spans=scratch(p.x, sequences, chunks, sizes.W),
    )
    if chunks > 1:  # forward nothing follows the last
        grid = (sequences, chunks if back else chunks - 1, blocks)
        ends_kernel[grid](p, length, steps, S=sizes, BACK=back, num_warps=1)
    kernel = scan_back_kernel if back else scan_kernel
    kernel[(sequences, chunks, blocks)](p, length, steps, S=sizes, num_warps=1, **options)
    return p


_LENGTHS = ["length", "steps"]  # one compiled kernel serves all


@triton.jit
def _program(S: tl.constexpr):
    """Sequence, chunk, (e,) inner channels and (n,) states of this program."""
    sequence = tl.program_id(0)
    if S.LONG:
        sequence = sequence.to(tl.int64)
    e = tl.program_id(2) * S.LANES + tl.arange(0, S.LANES)
    return sequence, tl.program_id(1), e, tl.arange(0, S.N)


@triton.jit
def _decay_rates(A, e, n, S: tl.constexpr):
    """A · log2(e) of some inner channels, (N, e), zero outside."""
    n, e = n[:, None], e[None, :]
    inside = (n < S.STATE) & (e < S.INNER)
    rates = tl.load(A + e * S.STATE + n, inside, 0.0).to(tl.float32)
    if S.OF_LOG:
        rates = tl.where(inside, -tl.exp(rates), 0.0)
    return rates * 1.4426950408889634


@triton.jit
def _decay(rates, delta):
    """exp(delta · A), (N, e)."""
    return tl.exp2(rates * delta[None, :])


@triton.jit
def _enter(delta, x, B, S: tl.constexpr):
    """What one step adds to the state, (N, e)."""
    driven = x.to(tl.float32)
    if not S.DRIVEN:
        driven *= delta.to(tl.float32)
    return B.to(tl.float32)[:, None] * driven[None, :]


@triton.jit
def _advance(state, rates, delta, x, B, S: tl.constexpr):
    """The state after one step."""
    return _decay(rates, delta.to(tl.float32)) * state + _enter(delta, x, B, S)


@triton.jit
def _state(pointer, place, e, n, S: tl.constexpr):
    """Where the state (N, e) of a (places, W, N) array lies."""
    return pointer + place * S.W * S.N + e[None, :] * S.N + n[:, None]


@triton.jit
def _gather_chunks(p, rates, first, count, direction, e, n, S: tl.constexpr):
    """What ``count`` chunks from the ``first`` on, one way or the other, leave behind: (N, e)."""
    STEPS: tl.constexpr = S.STEPS
    total = zeros(S.N, e.shape[0])
    for done in range(0, count, STEPS):
        for i in tl.static_range(STEPS):
            there = done + i < count
            place = first + direction * (done + i)
            left = tl.load(_state(p.states, place, e, n, S), there, 0.0)
            total = _decay(rates, tl.load(p.spans + place * S.W + e, there, 0.0)) * total + left
    return total


@triton.jit
def _inside(step, length, column, COUNT: tl.constexpr, ROW: tl.constexpr):
    """Which numbers of a step exist; with the padding stored, all of a step that does."""
    return (step < length) & (column < COUNT) if ROW == COUNT else step < length


@triton.jit
def _load(pointer, inside, EVEN: tl.constexpr):
    """Numbers, zero outside; nothing is outside if EVEN."""
    if EVEN:
        return tl.load(pointer)
    else:
        return tl.load(pointer, inside, 0.0)


@triton.jit
def _store(pointer, value, inside, EVEN: tl.constexpr):
    """Numbers, those inside; all if EVEN."""
    if EVEN:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, inside)


@triton.jit
def _load_steps(
    pointer, sequence, start, length, column,
    COUNT: tl.constexpr, ROW: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """An operand's numbers at STEPS steps, a tuple; of None, none.

    Past the end all are zero, which changes no state.
    """
    STEPS: tl.constexpr = S.STEPS
    steps = ()
    if pointer is not None:
        here = pointer + (sequence * length + start) * ROW + column
        for i in tl.static_range(STEPS):
            inside = _inside(start + i, length, column, COUNT, ROW)
            steps = steps + (_load(here + i * ROW, inside, S.EVEN),)
    return steps


@triton.jit
def _load_operands(delta, x, B, C, gate, sequence, start, length, e, n, S: tl.constexpr):
    """Five operands at STEPS steps."""
    return (
        _load_steps(delta, sequence, start, length, e, S.INNER, S.E_ROW, S),
        _load_steps(x, sequence, start, length, e, S.INNER, S.E_ROW, S),
        _load_steps(B, sequence, start, length, n, S.STATE, S.N_ROW, S),
        _load_steps(C, sequence, start, length, n, S.STATE, S.N_ROW, S),
        _load_steps(gate, sequence, start, length, e, S.INNER, S.E_ROW, S),
    )


@triton.jit(do_not_specialize=_LENGTHS)
def ends_kernel(p, length, steps, S: tl.constexpr, BACK: tl.constexpr):
    """What a chunk alone adds to the state after it, and the sum of its step sizes.

    BACK: what its outputs alone add to the gradient of the state before it.
    """
    STEPS: tl.constexpr = S.STEPS
    sequence, chunk, e, n = _program(S)
    rates = _decay_rates(p.A, e, n, S)
    state, span = zeros(S.N, S.LANES), zeros(S.LANES)
    x, B = (p.d_y, p.C) if BACK else (p.x, p.B)
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    start = last if BACK else first
    ahead = _load_operands(p.delta, x, B, None, None, sequence, start, length, e, n, S)
    for done in range(STEPS, steps + STEPS, STEPS):
        deltas, xs, Bs, _, _ = ahead
        following = tl.maximum(last - done, first) if BACK else tl.minimum(first + done, last)
        ahead = _load_operands(p.delta, x, B, None, None, sequence, following, length, e, n, S)
        if BACK:
            for i in tl.static_range(STEPS - 1, -1, -1):
                delta = deltas[i].to(tl.float32)
                state += Bs[i].to(tl.float32)[:, None] * xs[i].to(tl.float32)[None, :]
                state *= _decay(rates, delta)
                span += delta
        else:
            for i in tl.static_range(STEPS):
                state = _advance(state, rates, deltas[i], xs[i], Bs[i], S)
                span += deltas[i].to(tl.float32)
    place = sequence * tl.cdiv(length, steps) + chunk
    tl.store(_state(p.states, place, e, n, S), state)
    tl.store(p.spans + place * S.W + e, span)


@triton.jit(do_not_specialize=_LENGTHS)
def scan_kernel(p, length, steps, S: tl.constexpr):
    """A chunk's outputs C · state + D · x, gated, from the state that enters it."""
    STEPS: tl.constexpr = S.STEPS
    sequence, chunk, e, n = _program(S)
    rates = _decay_rates(p.A, e, n, S)
    direct = tl.load(p.D + e, e < S.INNER, 0.0).to(tl.float32)
    chunks = tl.num_programs(1)
    state = _gather_chunks(p, rates, sequence * chunks, chunk, 1, e, n, S)
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    ahead = _load_operands(p.delta, p.x, p.B, p.C, p.gate, sequence, first, length, e, n, S)
    for start in range(first, last + STEPS, STEPS):
        if p.kept is not None:
            place = sequence * tl.cdiv(length, STEPS) + start // STEPS
            _store(_state(p.kept, place, e, n, S), state, start < length, S.EVEN)
        deltas, xs, Bs, Cs, gates = ahead
        # While these steps are computed, the next ones' operands are on their way.
        following = tl.minimum(start + STEPS, last)
        ahead = _load_operands(p.delta, p.x, p.B, p.C, p.gate, sequence, following, length, e, n, S)
        to = p.y + (sequence * length + start) * S.E_ROW + e
        for i in tl.static_range(STEPS):
            state = _advance(state, rates, deltas[i], xs[i], Bs[i], S)
            y = tl.sum(Cs[i].to(tl.float32)[:, None] * state, 0)
            if not S.DRIVEN:
                y += direct * xs[i].to(tl.float32)
            if p.gate is not None:
                y *= gates[i].to(tl.float32)
            inside = _inside(start + i, length, e, S.INNER, S.E_ROW)
            _store(to + i * S.E_ROW, y, inside, S.EVEN)


@triton.jit(do_not_specialize=_LENGTHS)
def scan_back_kernel(p, length, steps, S: tl.constexpr):
    """A chunk's gradients; those of A and D are this chunk's part, of B and C these channels'."""
    STEPS: tl.constexpr = S.STEPS
    sequence, chunk, e, n = _program(S)
    rates = _decay_rates(p.A, e, n, S)
    if not S.DRIVEN:
        direct = tl.load(p.D + e, e < S.INNER, 0.0).to(tl.float32)
    # The gradient of the state at this chunk's end, with the decay of the next step in it.
    chunks = tl.num_programs(1)
    final = (sequence + 1) * chunks - 1
    d_state = _gather_chunks(p, rates, final, chunks - 1 - chunk, -1, e, n, S)
    d_A, d_D = zeros(S.N, S.LANES), zeros(S.LANES)
    part = tl.program_id(2) * tl.num_programs(0) + sequence
    for done in range(0, steps, STEPS):
        start = (chunk + 1) * steps - STEPS - done
        deltas, xs, Bs, Cs, d_ys = _load_operands(
            p.delta, p.x, p.B, p.C, p.d_y, sequence, start, length, e, n, S
        )
        place = sequence * tl.cdiv(length, STEPS) + start // STEPS
        states = (_load(_state(p.kept, place, e, n, S), start < length, S.EVEN),)
        decays = ()
        for i in tl.static_range(STEPS):
            decays = decays + (_decay(rates, deltas[i].to(tl.float32)),)
            states = states + (decays[i] * states[i] + _enter(deltas[i], xs[i], Bs[i], S),)
        row = (sequence * length + start) * S.E_ROW + e
        part_row = (part * length + start) * S.N_ROW + n
        for i in tl.static_range(STEPS - 1, -1, -1):
            delta, x = deltas[i].to(tl.float32), xs[i].to(tl.float32)
            B, C = Bs[i].to(tl.float32), Cs[i].to(tl.float32)
            d_y = d_ys[i].to(tl.float32)
            driven = x if S.DRIVEN else delta * x
            d_state += C[:, None] * d_y[None, :]
            d_C = tl.sum(states[i + 1] * d_y[None, :], 1)
            d_B = tl.sum(d_state * driven[None, :], 1)
            d_x = tl.sum(d_state * B[:, None], 0)  # of delta · x
            d_state *= decays[i]
            d_exponent = d_state * states[i]  # of delta · A
            d_A += d_exponent * delta[None, :]
            # ln 2, for rates are A · log2(e).
            d_delta = tl.sum(d_exponent * rates, 0) * 0.6931471805599453
            if not S.DRIVEN:
                d_D += d_y * x
                d_delta += d_x * x
                d_x = d_x * delta + direct * d_y
            of_e = _inside(start + i, length, e, S.INNER, S.E_ROW)
            of_n = _inside(start + i, length, n, S.STATE, S.N_ROW)
            _store(p.d_delta + row + i * S.E_ROW, d_delta, of_e, S.EVEN)
            _store(p.d_x + row + i * S.E_ROW, d_x, of_e, S.EVEN)
            _store(p.d_B + part_row + i * S.N_ROW, d_B, of_n, S.EVEN)
            _store(p.d_C + part_row + i * S.N_ROW, d_C, of_n, S.EVEN)
    if S.OF_LOG:  # A is its own slope
        d_A *= rates * 0.6931471805599453
    place = sequence * chunks + chunk
    inside = (n < S.STATE)[:, None] & (e < S.INNER)[None, :]
    here = place * S.INNER * S.STATE + e[None, :] * S.STATE + n[:, None]
    tl.store(p.d_A + here, d_A, inside)
    if p.d_D is not None:
        tl.store(p.d_D + place * S.INNER + e, d_D, e < S.INNER)
