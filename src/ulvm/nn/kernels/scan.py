"""The selective scan of ``nn/scan.py``: kernels over steps, for any Mamba.

Each sequence is cut into chunks; one warp walks through one chunk with the states of some inner
channels in registers. The state that enters a chunk is put together from what each earlier chunk
adds to it. Forward keeps every fourth state; backward recomputes the three between.

Arrays of states are (…, W, N): the inner width padded to whole programs, the state size padded to a
power of two.

Source: Gu & Dao 2023, arXiv 2312.00752, section 3.3.2 (recomputation).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulvm.nn.kernels.sums import sum_partials

LARGEST_STATE = 64
TILE = 256  # states of one program at most: eight registers of each thread
MOST_LANES = 32  # inner channels of one program at most
STEPS = 4  # steps whose operands are loaded together, and between two kept states
REGISTERS = 160  # of a thread of backward: twelve programs fit on each multiprocessor
LONGEST = 1024  # steps of one chunk at most
SCANNERS = 2112  # programs that a scan should have at least: 16 on each multiprocessor


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
        N = triton.next_power_of_2(A.shape[1])
        lanes = min(TILE // N, MOST_LANES, triton.next_power_of_2(inner))
        blocks = triton.cdiv(inner, lanes)
        steps = choose_chunk(batch * blocks, length, SCANNERS)
        chunks = triton.cdiv(length, steps)
        W = blocks * lanes
        sizes = {
            "length": length,
            "steps": steps,
            "INNER": inner,
            "STATE": A.shape[1],
            "W": W,
            "N": N,
            "LANES": lanes,
            "STEPS": STEPS,
            "EVEN": length % steps == 0 and (inner, A.shape[1]) == (W, N),
            "num_warps": 1,
        }
        y = torch.empty_like(x)
        ends = x.new_empty(batch, chunks, W, N, dtype=torch.float32)
        spans = x.new_empty(batch, chunks, W, dtype=torch.float32)
        kept_count = triton.cdiv(length, STEPS) if train else 0
        kept = x.new_empty(batch, kept_count, W, N, dtype=torch.float32)
        if chunks > 1:
            grid = (batch * blocks, chunks - 1)  # nothing follows the last
            _selective_ends_kernel[grid](A, delta, x, B, ends, spans, **sizes)
        _selective_scan_kernel[(batch * blocks, chunks)](
            A, D, delta, x, B, C, ends, spans, y, kept, TRAIN=train, **sizes
        )
        if train:
            ctx.save_for_backward(x, delta, A, B, C, D, kept)
            ctx.sizes, ctx.blocks, ctx.chunks = sizes, blocks, chunks
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, D, kept = ctx.saved_tensors
        sizes, blocks, chunks = ctx.sizes, ctx.blocks, ctx.chunks
        batch = len(x)
        grad_y = grad_y.contiguous()

        def scratch(*shape: int) -> Tensor:
            return x.new_empty(shape, dtype=torch.float32)

        grid = (batch * blocks, chunks)
        leaving = scratch(batch, chunks, *kept.shape[2:])
        spans = scratch(batch, chunks, kept.shape[2])
        if chunks > 1:
            _selective_leaving_kernel[grid](A, delta, C, grad_y, leaving, spans, **sizes)
        grad_x, grad_delta = torch.empty_like(x), torch.empty_like(delta)
        grad_B, grad_C = (scratch(blocks, *each.shape) for each in (B, C))
        grad_A, grad_D = (scratch(batch * chunks, each.numel()) for each in (A, D))
        _selective_scan_backward_kernel[grid](
            A, D, delta, x, B, C, kept, leaving, spans, grad_y,
            grad_delta, grad_x, grad_B, grad_C, grad_A, grad_D, maxnreg=REGISTERS, **sizes,
        )  # fmt: skip
        grad_A, grad_D = sum_partials(grad_A, grad_D)
        return (
            grad_x,
            grad_delta,
            grad_A.view_as(A).to(A.dtype),
            (grad_B.sum(0) if blocks > 1 else grad_B[0]).to(B.dtype),
            (grad_C.sum(0) if blocks > 1 else grad_C[0]).to(C.dtype),
            grad_D.to(D.dtype),
            None,
        )


_LENGTHS = ["length", "steps"]  # one compiled kernel serves all


@triton.jit
def _decay_rates(A, e, INNER: tl.constexpr, STATE: tl.constexpr, N: tl.constexpr):
    """A · log2(e) of some inner channels, (N, e), zero outside."""
    n, e = tl.arange(0, N)[:, None], e[None, :]
    A = tl.load(A + e * STATE + n, (n < STATE) & (e < INNER), 0.0)
    return A.to(tl.float32) * 1.4426950408889634


@triton.jit
def _decay(rates, delta):
    """exp(delta · A), (N, e)."""
    return tl.exp2(rates * delta[None, :])


@triton.jit
def _enter(delta, x, B):
    """What one step adds to the state, (N, e)."""
    driven = delta.to(tl.float32) * x.to(tl.float32)
    return B.to(tl.float32)[:, None] * driven[None, :]


@triton.jit
def _advance(state, rates, delta, x, B):
    """The state after one step."""
    return _decay(rates, delta.to(tl.float32)) * state + _enter(delta, x, B)


@triton.jit
def _state(pointer, place, e, N: tl.constexpr, W: tl.constexpr):
    """Where the state (N, e) of a (places, W, N) array lies."""
    return pointer + place * W * N + e[None, :] * N + tl.arange(0, N)[:, None]


@triton.jit
def _gather_chunks(
    rates, states, spans, first, count, direction, e,
    N: tl.constexpr, W: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """What ``count`` chunks from the ``first`` on, one way or the other, leave behind: (N, e)."""
    total = tl.zeros((N, e.shape[0]), tl.float32)
    for done in range(0, count, STEPS):
        for i in tl.static_range(STEPS):
            there = done + i < count
            place = first + direction * (done + i)
            left = tl.load(_state(states, place, e, N, W), there, 0.0)
            total = _decay(rates, tl.load(spans + place * W + e, there, 0.0)) * total + left
    return total


@triton.jit
def _program(W: tl.constexpr, LANES: tl.constexpr):
    """Sequence, chunk and inner channels of this program; 64 bits, for arrays may be large."""
    blocks: tl.constexpr = W // LANES
    e = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1), e


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
    delta_in, x_in, B_in, C_in, sequence, start, length, e, n,
    INNER: tl.constexpr, STATE: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Some operands of STEPS steps, a tuple each; of None, none.

    Past the end all are zero, which changes no state.
    """
    deltas, xs, Bs, Cs = (), (), (), ()
    row = sequence * length + start
    for i in tl.static_range(STEPS):
        of_e = (start + i < length) & (e < INNER)
        of_n = (start + i < length) & (n < STATE)
        deltas = deltas + (_load(delta_in + row * INNER + e + i * INNER, of_e, EVEN),)
        if x_in is not None:
            xs = xs + (_load(x_in + row * INNER + e + i * INNER, of_e, EVEN),)
        if B_in is not None:
            Bs = Bs + (_load(B_in + row * STATE + n + i * STATE, of_n, EVEN),)
        if C_in is not None:
            Cs = Cs + (_load(C_in + row * STATE + n + i * STATE, of_n, EVEN),)
    return deltas, xs, Bs, Cs


@triton.jit(do_not_specialize=_LENGTHS)
def _selective_ends_kernel(
    A, delta_in, x_in, B_in, ends, spans, length, steps,
    INNER: tl.constexpr, STATE: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
    LANES: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What a chunk alone adds to the state, and the sum of its step sizes."""
    sequence, chunk, e = _program(W, LANES)
    n = tl.arange(0, N)
    rates = _decay_rates(A, e, INNER, STATE, N)
    state = tl.zeros((N, LANES), tl.float32)
    span = tl.zeros((LANES,), tl.float32)
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    ahead = _load_steps(
        delta_in, x_in, B_in, None, sequence, first, length, e, n, INNER, STATE, STEPS, EVEN
    )
    for start in range(first, last + STEPS, STEPS):
        deltas, xs, Bs, _ = ahead
        following = tl.minimum(start + STEPS, last)
        ahead = _load_steps(
            delta_in, x_in, B_in, None, sequence, following, length, e, n, INNER, STATE, STEPS, EVEN
        )
        for i in tl.static_range(STEPS):
            state = _advance(state, rates, deltas[i], xs[i], Bs[i])
            span += deltas[i].to(tl.float32)
    place = sequence * tl.cdiv(length, steps) + chunk
    tl.store(_state(ends, place, e, N, W), state)
    tl.store(spans + place * W + e, span)


@triton.jit(do_not_specialize=_LENGTHS)
def _selective_scan_kernel(
    A, D, delta_in, x_in, B_in, C_in, ends, spans, y_out, kept, length, steps,
    TRAIN: tl.constexpr, INNER: tl.constexpr, STATE: tl.constexpr, W: tl.constexpr,
    N: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A chunk's outputs C · state + D · x, from the state that enters it."""
    sequence, chunk, e = _program(W, LANES)
    n = tl.arange(0, N)
    rates = _decay_rates(A, e, INNER, STATE, N)
    direct = tl.load(D + e, e < INNER, 0.0).to(tl.float32)
    chunks = tl.num_programs(1)
    state = _gather_chunks(rates, ends, spans, sequence * chunks, chunk, 1, e, N, W, STEPS)
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    ahead = _load_steps(
        delta_in, x_in, B_in, C_in, sequence, first, length, e, n, INNER, STATE, STEPS, EVEN
    )
    for start in range(first, last + STEPS, STEPS):
        if TRAIN:
            place = sequence * tl.cdiv(length, STEPS) + start // STEPS
            _store(_state(kept, place, e, N, W), state, start < length, EVEN)
        deltas, xs, Bs, Cs = ahead
        # While these steps are computed, the next ones' operands are on their way.
        following = tl.minimum(start + STEPS, last)
        ahead = _load_steps(
            delta_in, x_in, B_in, C_in, sequence, following, length, e, n, INNER, STATE, STEPS, EVEN
        )
        row = sequence * length + start
        for i in tl.static_range(STEPS):
            state = _advance(state, rates, deltas[i], xs[i], Bs[i])
            y = tl.sum(Cs[i].to(tl.float32)[:, None] * state, 0) + direct * xs[i].to(tl.float32)
            of_e = (start + i < length) & (e < INNER)
            _store(y_out + row * INNER + e + i * INNER, y, of_e, EVEN)


@triton.jit(do_not_specialize=_LENGTHS)
def _selective_leaving_kernel(
    A, delta_in, C_in, grad_y_in, leaving, spans, length, steps,
    INNER: tl.constexpr, STATE: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
    LANES: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a chunk, from this chunk's outputs alone."""
    sequence, chunk, e = _program(W, LANES)
    n = tl.arange(0, N)
    rates = _decay_rates(A, e, INNER, STATE, N)
    grad = tl.zeros((N, LANES), tl.float32)
    span = tl.zeros((LANES,), tl.float32)
    first, last = chunk * steps, (chunk + 1) * steps - STEPS
    ahead = _load_steps(
        delta_in, grad_y_in, None, C_in, sequence, last, length, e, n, INNER, STATE, STEPS, EVEN
    )
    for done in range(0, steps, STEPS):
        deltas, grad_ys, _, Cs = ahead
        following = tl.maximum(last - STEPS - done, first)
        ahead = _load_steps(
            delta_in, grad_y_in, None, C_in, sequence, following, length, e, n,
            INNER, STATE, STEPS, EVEN,
        )  # fmt: skip
        for i in tl.static_range(STEPS - 1, -1, -1):
            delta = deltas[i].to(tl.float32)
            grad += Cs[i].to(tl.float32)[:, None] * grad_ys[i].to(tl.float32)[None, :]
            grad *= _decay(rates, delta)
            span += delta
    place = sequence * tl.num_programs(1) + chunk
    tl.store(_state(leaving, place, e, N, W), grad)
    tl.store(spans + place * W + e, span)


@triton.jit(do_not_specialize=_LENGTHS)
def _selective_scan_backward_kernel(
    A, D, delta_in, x_in, B_in, C_in, kept, leaving, spans, grad_y_in,
    grad_delta, grad_x, grad_B, grad_C, grad_A_out, grad_D_out, length, steps,
    INNER: tl.constexpr, STATE: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
    LANES: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A chunk's gradients; those of A and D are this chunk's part, of B and C these channels'."""
    sequence, chunk, e = _program(W, LANES)
    n = tl.arange(0, N)
    rates = _decay_rates(A, e, INNER, STATE, N)
    direct = tl.load(D + e, e < INNER, 0.0).to(tl.float32)
    # The gradient of the state at this chunk's end, with the decay of the next step in it.
    chunks = tl.num_programs(1)
    final = (sequence + 1) * chunks - 1
    grad = _gather_chunks(rates, leaving, spans, final, chunks - 1 - chunk, -1, e, N, W, STEPS)
    grad_A = tl.zeros((N, LANES), tl.float32)
    grad_D = tl.zeros((LANES,), tl.float32)
    blocks: tl.constexpr = W // LANES
    part = tl.program_id(0) % blocks * (tl.num_programs(0) // blocks) + sequence
    for done in range(0, steps, STEPS):
        start = (chunk + 1) * steps - STEPS - done
        deltas, xs, Bs, Cs = _load_steps(
            delta_in, x_in, B_in, C_in, sequence, start, length, e, n, INNER, STATE, STEPS, EVEN
        )
        grad_ys, _, _, _ = _load_steps(
            grad_y_in, None, None, None, sequence, start, length, e, n, INNER, STATE, STEPS, EVEN
        )
        place = sequence * tl.cdiv(length, STEPS) + start // STEPS
        states = (_load(_state(kept, place, e, N, W), start < length, EVEN),)
        decays = ()
        for i in tl.static_range(STEPS):
            decays = decays + (_decay(rates, deltas[i].to(tl.float32)),)
            states = states + (decays[i] * states[i] + _enter(deltas[i], xs[i], Bs[i]),)
        row = sequence * length + start
        part_row = part * length + start
        for i in tl.static_range(STEPS - 1, -1, -1):
            delta, x = deltas[i].to(tl.float32), xs[i].to(tl.float32)
            B, C = Bs[i].to(tl.float32), Cs[i].to(tl.float32)
            grad_y = grad_ys[i].to(tl.float32)
            grad += C[:, None] * grad_y[None, :]
            of_C = tl.sum(states[i + 1] * grad_y[None, :], 1)
            of_B = tl.sum(grad * (delta * x)[None, :], 1)
            of_driven = tl.sum(grad * B[:, None], 0)  # gradient of delta · x
            grad *= decays[i]
            exponent = grad * states[i]  # gradient of delta · A
            grad_A += exponent * delta[None, :]
            grad_D += grad_y * x
            # ln 2, for rates are A · log2(e).
            of_delta = of_driven * x + tl.sum(exponent * rates, 0) * 0.6931471805599453
            of_x = of_driven * delta + direct * grad_y
            of_e = (start + i < length) & (e < INNER)
            of_n = (start + i < length) & (n < STATE)
            _store(grad_delta + row * INNER + e + i * INNER, of_delta, of_e, EVEN)
            _store(grad_x + row * INNER + e + i * INNER, of_x, of_e, EVEN)
            _store(grad_B + part_row * STATE + n + i * STATE, of_B, of_n, EVEN)
            _store(grad_C + part_row * STATE + n + i * STATE, of_C, of_n, EVEN)
    place = sequence * chunks + chunk
    inside = (n < STATE)[:, None] & (e < INNER)[None, :]
    here = place * INNER * STATE + e[None, :] * STATE + n[:, None]
    tl.store(grad_A_out + here, grad_A, inside)
    tl.store(grad_D_out + place * INNER + e, grad_D, e < INNER)
