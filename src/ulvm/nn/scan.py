"""The selective scan: the recurrence as the paper writes it, and the same in chunks.

Source: Gu & Dao 2023, "Mamba", arXiv 2312.00752, equations 2a and 2b with the discretisation
of section 2: decay = exp(delta·A), input = delta·B·x.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.errors import InputError, unknown_name

Backend = Literal["reference", "parallel"]

# Numbers in one array of states that a CPU works on at a time: 4 MB stay in its cache.
_CPU_CACHE = 2**20


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    backend: Backend = "parallel",
) -> Tensor:
    """Run ``state = exp(delta·A)·state + delta·B·x``, ``y = C·state + D·x`` along the length.

    Args:
        x: (batch, length, inner), the sequence, length ≥ 1.
        delta: (batch, length, inner), step sizes after softplus, ≥ 0.
        A: (inner, state), negative decay rates.
        B: (batch, length, state), input weights of each step.
        C: (batch, length, state), output weights of each step.
        D: (inner,), weight of the direct path.
        backend: ``reference`` is a loop over the length; ``parallel`` works on chunks of about
            √length side by side.

    Returns:
        (batch, length, inner), in the type of ``x``. The recurrence itself runs in float32 at
        least, whatever the type of the inputs.

    Raises:
        InputError: Shapes disagree, the length is 0 or the backend has no such name.

    Differs: the CUDA kernels take (batch, inner, length) and apply softplus and the gate
    inside; here both stay outside so that each step can be read.
    """
    _check_shapes(x, delta, A, B, C, D)
    if backend not in ("reference", "parallel"):
        given = f"selective_scan has no backend {backend!r}"
        raise unknown_name(given, backend, ("reference", "parallel"))
    precise = torch.promote_types(x.dtype, torch.float32)
    scan = _scan_reference if backend == "reference" else _scan_parallel
    return scan(*(operand.to(precise) for operand in (x, delta, A, B, C, D))).to(x.dtype)


def is_traced() -> bool:
    """Whether torch's own operations are being recorded or transformed, and nothing else can be.

    So they are by ``torch.jit.trace``, ``torch.export``, ``torch.compile``, ``torch.func`` and
    ``torch.autograd.forward_ad``.
    """
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _scan_reference(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    batch, length, inner = x.shape
    state = x.new_zeros(batch, inner, A.shape[1])
    outputs = []
    for t in range(length):
        decay = torch.exp(delta[:, t, :, None] * A)  # (batch, inner, state)
        state = decay * state + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))  # (batch, inner)
    return torch.stack(outputs, dim=1) + D * x


def _scan_parallel(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Cut the length into about √length chunks, or twice as many, and advance all together.

    A lane is one (batch item, chunk). Lanes come last in memory, so that every broadcast is
    over leading axes and each operation reads and writes whole rows.
    """
    batch, length, inner = x.shape
    sequences = (x, delta, B, C)
    traced = is_traced()
    if x.device.type == "cpu" and not traced:
        items = max(1, _CPU_CACHE // (length * inner * A.shape[1]))
        if items < batch:
            pieces = zip(*(each.split(items) for each in sequences), strict=True)
            return torch.cat([_scan_parallel(x, delta, A, B, C, D) for x, delta, B, C in pieces])
    needed = torch.is_grad_enabled() and any(each.requires_grad for each in (*sequences, A))
    train = needed and not traced  # a traced form is one of torch's own operations
    chunk = math.isqrt(length - 1) + 1
    if not train:  # step by step: nine operations a step and two a chunk, fewest at half of it
        chunk = -(-chunk // 2)
    chunks = -(-length // chunk)
    # Padding has delta = 0: decay 1 and input 0 leave the state as it is.
    x, delta, B, C = (_to_lanes(each, chunk, chunks) for each in sequences)
    operands = (x[:, None], delta[:, None], B[:, :, None], C[:, :, None], A.t()[None, :, :, None])
    if train:
        y: Tensor = _ChunkedScan.apply(*operands, chunks)
    else:
        y = _infer_chunks(*operands, chunks)
    sequence = _from_lanes(y[:, 0] + D[:, None] * x, batch, chunks)
    return sequence if chunk * chunks == length else sequence[:, :length]


def _to_lanes(sequence: Tensor, chunk: int, chunks: int) -> Tensor:
    batch, length, width = sequence.shape
    missing = chunk * chunks - length
    padded = F.pad(sequence, (0, 0, 0, missing)) if missing else sequence
    # One transposition of a matrix, which every runtime does fast.
    return padded.reshape(batch * chunks, chunk * width).t().reshape(chunk, width, batch * chunks)


def _from_lanes(lanes: Tensor, batch: int, chunks: int) -> Tensor:
    chunk, width, _ = lanes.shape
    sequence = lanes.reshape(chunk * width, batch * chunks).t()
    return sequence.reshape(batch, chunks * chunk, width)  # (batch, length, width)


def _forward_chunks(
    x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, chunks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of all chunks, and every decay and state for the gradient.

    Args:
        x, delta: (step, 1, inner, lane).
        B, C: (step, state, 1, lane).
        A: (1, state, inner, 1).
        chunks: Chunks in the lane axis, the fastest part of it.

    Returns:
        (step, 1, inner, lane); decays and states (step, state, inner, lane).
    """
    decays = torch.exp(A * delta)  # (step, state, inner, lane)
    states = _recur(decays, B * (delta * x))
    if chunks > 1:
        reaches = torch.exp(A * delta.cumsum(0))  # what is left of the carried state
        states = torch.addcmul(states, reaches, _carry(reaches[-1:], states[-1:], chunks))
    return (C * states).sum(1, keepdim=True), decays, states


def _infer_chunks(x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, chunks: int) -> Tensor:
    """The outputs of ``_forward_chunks`` step by step, for arrays that stay in a cache."""
    decays = [torch.exp(A * step) for step in delta.split(1)]  # (1, state, inner, lane) each
    entering = [b * u for b, u in zip(B.split(1), (delta * x).split(1), strict=True)]
    steps = list(zip(decays, entering, strict=True))
    if chunks > 1:
        last = entering[0]
        for decay, enters in steps[1:]:
            last = torch.addcmul(enters, decay, last)
        state = _carry(torch.exp(A * delta.sum(0, keepdim=True)), last, chunks)
    else:
        state = torch.zeros_like(entering[0])
    outputs = []
    ones = state.new_ones(1, state.shape[1])
    for (decay, enters), c in zip(steps, C.split(1), strict=True):
        state = torch.addcmul(enters, decay, state)
        # The sum over the states as a product of matrices, which runtimes do five times as fast.
        outputs.append((ones @ (c * state).flatten(2)).view_as(state[:, :1]))
    return torch.cat(outputs)


def _recur(decays: Tensor, entering: Tensor) -> Tensor:
    """state = decay · state + entering along the first axis, from zero."""
    # split, not a loop over an index: the exporter writes it as one node.
    states: list[Tensor] = []
    for decay, enters in zip(decays.split(1), entering.split(1), strict=True):
        states.append(torch.addcmul(enters, decay, states[-1]) if states else enters)
    return torch.cat(states)


def _carry(decay: Tensor, last: Tensor, chunks: int, *, backwards: bool = False) -> Tensor:
    """State that enters each chunk, from each chunk's whole decay and its own last state.

    All are (1, state, inner, lane); ``backwards`` carries from the last chunk to the first.
    """
    decays = decay.reshape(-1, chunks).t()  # (chunk, state · inner · batch)
    lasts = last.reshape(-1, chunks).t()
    if backwards:
        leaving = _recur(decays.flip(0)[:-1], lasts.flip(0)[:-1]).flip(0)
        entering = F.pad(leaving, (0, 0, 0, 1))
    else:
        entering = F.pad(_recur(decays[:-1], lasts[:-1]), (0, 0, 1, 0))
    return entering.t().reshape(last.shape)


class _ChunkedScan(torch.autograd.Function):
    """The forward above with its gradient written out, so that autograd stores no products.

    A gradient that must itself have one (``create_graph=True``) comes from ``_infer_chunks``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, chunks: int
    ) -> Tensor:
        y, decays, states = _forward_chunks(x, delta, B, C, A, chunks)
        ctx.chunks = chunks
        ctx.save_for_backward(x, delta, B, C, A, decays, states)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, B, C, A, decays, states = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_differentiable_gradients((x, delta, B, C, A), ctx.chunks, grad_y), None)
        # Gradient of each state: its own output's, plus the next state's times its decay.
        grads = C * grad_y
        for t in range(len(x) - 2, -1, -1):
            grads[t].addcmul_(decays[t + 1], grads[t + 1])
        if ctx.chunks > 1:
            left = A * delta.sum(0, keepdim=True)  # log of a chunk's whole decay
            carried = _carry(left.exp(), decays[:1] * grads[:1], ctx.chunks, backwards=True)
            grads.addcmul_(torch.exp(left - A * delta.cumsum(0)), carried)

        grad_C = (states * grad_y).sum(2, keepdim=True)
        grad_B = (grads * (delta * x)).sum(2, keepdim=True)
        grad_driven = (grads * B).sum(1, keepdim=True)
        # Before a chunk's first step comes the last state of the chunk before it.
        ends = states[-1:].unflatten(-1, (-1, ctx.chunks))  # (1, state, inner, batch, chunk)
        before = torch.cat([F.pad(ends[..., :-1], (1, 0)).flatten(-2), states[:-1]])
        exponent = grads.mul_(decays).mul_(before)  # gradient of delta · A
        grad_delta = (exponent * A).sum(1, keepdim=True) + grad_driven * x
        grad_A = (exponent * delta).sum((0, 3), keepdim=True)
        return grad_driven * delta, grad_delta, grad_B, grad_C, grad_A, None


def _differentiable_gradients(
    operands: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], chunks: int, grad_y: Tensor
) -> list[Tensor | None]:
    """Gradients of the operands with a graph of their own; None for those that need none."""
    needing = [each for each in operands if each.requires_grad]
    y = _infer_chunks(*operands, chunks)
    gradients = iter(torch.autograd.grad(y, needing, grad_y, create_graph=True))
    return [next(gradients) if each.requires_grad else None for each in operands]


def _check_shapes(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> None:
    if x.dim() != 3 or x.shape[1] < 1 or A.dim() != 2:
        raise InputError(
            f"selective_scan got x {tuple(x.shape)} and A {tuple(A.shape)}",
            "they must be x (batch, length ≥ 1, inner) and A (inner, state)",
            "reshape them",
        )
    batch, length, inner = x.shape
    state = A.shape[1]
    expected = {
        "delta": (delta, (batch, length, inner)),
        "A": (A, (inner, state)),
        "B": (B, (batch, length, state)),
        "C": (C, (batch, length, state)),
        "D": (D, (inner,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"selective_scan got {name} {tuple(tensor.shape)}",
                f"with this x it must be {shape}",
                "reshape it",
            )
