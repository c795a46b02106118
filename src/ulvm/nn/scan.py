"""The selective scan: the recurrence as the paper writes it, and the same in chunks.

Source: Gu & Dao 2023, "Mamba", arXiv 2312.00752, equations 2a and 2b with the discretisation
of section 2: decay = exp(delta·A), input = delta·B·x.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ulvm.errors import InputError

Backend = Literal["auto", "reference", "parallel"]

# On a CPU the parallel form makes chunks longer than √length when the batch alone fills the
# vector units: fewer chunks mean less work for the carries. Measured: LOG.md, 2026-11-23.
_CPU_LANES = 256


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    backend: Backend = "auto",
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
            √length side by side and is what trains and exports; ``auto`` is ``parallel`` for
            every input.

    Returns:
        (batch, length, inner), in the type of ``x``. The recurrence itself runs in float32 at
        least, whatever the type of the inputs.

    Raises:
        InputError: Shapes disagree, the length is 0 or the backend has no such name.

    Differs: the CUDA kernels take (batch, inner, length) and apply softplus and the gate
    inside; here both stay outside so that each step can be read.
    """
    _check_shapes(x, delta, A, B, C, D)
    if backend not in ("auto", "reference", "parallel"):
        raise InputError(
            f"selective_scan has no backend {backend!r}",
            "accepted are auto, reference, parallel",
            "choose one of these",
        )
    precise = torch.promote_types(x.dtype, torch.float32)
    scan = _scan_reference if backend == "reference" else _scan_parallel
    y = scan(*(operand.to(precise) for operand in (x, delta, A, B, C)))
    return (y + D.to(precise) * x).to(x.dtype)


def _scan_reference(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    batch, length, inner = x.shape
    state = x.new_zeros(batch, inner, A.shape[1])
    outputs = []
    for t in range(length):
        decay = torch.exp(delta[:, t, :, None] * A)  # (batch, inner, state)
        state = decay * state + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))  # (batch, inner)
    return torch.stack(outputs, dim=1)


def _scan_parallel(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Cut the length into chunks and advance all chunks together, one step at a time.

    A lane is one (chunk, batch item). Lanes come last in memory, so that every broadcast in
    the loop is over leading axes and each operation reads and writes whole rows.
    """
    batch, length, _ = x.shape
    chunk = _chunk_length(length, batch, x.device)
    chunks = -(-length // chunk)
    # Padding has delta = 0: decay 1 and input 0 leave the state as it is.
    operands = [_to_lanes(each, chunk, chunks) for each in (x, delta, B, C)]
    if torch.is_grad_enabled() and any(each.requires_grad for each in (x, delta, A, B, C)):
        y: Tensor = _ChunkedScan.apply(*operands, A.t().contiguous(), chunks)
    else:
        y = _forward_chunks(*operands, A.t(), chunks)[0]
    return _from_lanes(y, batch, chunks)[:, :length]


def _chunk_length(length: int, batch: int, device: torch.device) -> int:
    if device.type == "cpu" and not torch.compiler.is_exporting():
        return -(-length // min(math.isqrt(length), max(1, _CPU_LANES // batch)))
    return math.isqrt(length - 1) + 1


def _to_lanes(sequence: Tensor, chunk: int, chunks: int) -> Tensor:
    batch, length, width = sequence.shape
    padded = torch.nn.functional.pad(sequence, (0, 0, 0, chunk * chunks - length))
    lanes = padded.reshape(batch, chunks, chunk, width).permute(2, 3, 1, 0)
    return lanes.reshape(chunk, width, chunks * batch)  # (step, width, lane)


def _from_lanes(lanes: Tensor, batch: int, chunks: int) -> Tensor:
    chunk, width, _ = lanes.shape
    sequence = lanes.reshape(chunk, width, chunks, batch).permute(3, 2, 0, 1)
    return sequence.reshape(batch, chunks * chunk, width)  # (batch, length, width)


def _forward_chunks(
    x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, chunks: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs (step, inner, lane); decays and states, each (state, inner, lane), per step."""
    driven = delta * x  # (step, inner, lane)
    rates = A[:, :, None]  # (state, inner, 1)
    decays: list[Tensor] = []
    states: list[Tensor] = []
    for step_delta, step_driven, step_B in zip(
        delta.unbind(0), driven.unbind(0), B.unbind(0), strict=True
    ):
        decays.append(torch.exp(rates * step_delta))
        entering = step_B[:, None] * step_driven
        states.append(torch.addcmul(entering, decays[-1], states[-1]) if states else entering)
    if chunks > 1:
        reach = decays[0]  # product of the decays so far: what is left of the carried state
        reaches = [reach, *(reach := reach * decay for decay in decays[1:])]
        carried = _carry(reaches[-1], states[-1], chunks)
        states = [
            torch.addcmul(state, reach, carried)
            for state, reach in zip(states, reaches, strict=True)
        ]
    outputs = [
        (step_C[:, None] * state).sum(0) for step_C, state in zip(C.unbind(0), states, strict=True)
    ]
    return torch.stack(outputs), decays, states


def _carry(decay: Tensor, last: Tensor, chunks: int, *, backwards: bool = False) -> Tensor:
    """State that enters each chunk, from each chunk's whole decay and its own last state."""
    decay_of = decay.unflatten(-1, (chunks, -1)).unbind(-2)
    last_of = last.unflatten(-1, (chunks, -1)).unbind(-2)  # (state, inner, batch) for a chunk
    order = range(chunks - 1, 0, -1) if backwards else range(chunks - 1)
    entering = [torch.zeros_like(last_of[0])]
    for index in order:
        entering.append(torch.addcmul(last_of[index], decay_of[index], entering[-1]))
    return torch.cat(entering[::-1] if backwards else entering, dim=-1)  # (state, inner, lane)


class _ChunkedScan(torch.autograd.Function):
    """The forward above with its gradient written out, so that autograd stores no products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, chunks: int
    ) -> Tensor:
        y, decays, states = _forward_chunks(x, delta, B, C, A, chunks)
        ctx.chunks = chunks
        ctx.save_for_backward(x, delta, B, C, A, *decays, *states)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, B, C, A, *saved = ctx.saved_tensors
        steps = len(x)
        decays, states = saved[:steps], saved[steps:]
        chunks: int = ctx.chunks

        # Gradient of each state: its own output's, plus the next state's times the decay.
        grads: list[Tensor] = [C[t][:, None] * grad_y[t] for t in range(steps)]
        for t in range(steps - 2, -1, -1):
            grads[t].addcmul_(decays[t + 1], grads[t + 1])
        if chunks > 1:
            whole = decays[-1]
            reaches = [whole, *(whole := whole * decay for decay in decays[-2::-1])][::-1]
            entering = _carry(reaches[0], decays[0] * grads[0], chunks, backwards=True)
            for t in range(steps):
                reach = reaches[t + 1] if t + 1 < steps else None
                grads[t] += entering if reach is None else reach * entering

        driven = delta * x
        grad_B = torch.empty_like(B)
        grad_C = torch.empty_like(C)
        grad_driven = torch.empty_like(x)
        grad_delta = torch.empty_like(delta)
        grad_A = torch.zeros_like(A)
        rates = A[:, :, None]
        lanes = x.shape[-1]
        for t in range(steps):
            torch.sum(states[t] * grad_y[t], dim=1, out=grad_C[t])
            torch.sum(grads[t] * driven[t], dim=1, out=grad_B[t])
            torch.sum(grads[t] * B[t][:, None], dim=0, out=grad_driven[t])
            if t > 0:
                before = states[t - 1]
            else:  # the state before a chunk's first step is the last of the chunk before
                before = torch.zeros_like(states[0])
                before[..., lanes // chunks :] = states[-1][..., : lanes - lanes // chunks]
            exponent = grads[t] * decays[t] * before
            torch.sum(exponent * rates, dim=0, out=grad_delta[t])
            grad_A += (exponent * delta[t]).sum(-1)
        grad_delta += grad_driven * x
        return grad_driven * delta, grad_delta, grad_B, grad_C, grad_A, None


def _check_shapes(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> None:
    if x.dim() != 3 or x.shape[1] < 1 or A.dim() != 2:
        raise InputError(
            f"selective_scan got x {tuple(x.shape)} and A {tuple(A.shape)}",
            "accepted are x (batch, length ≥ 1, inner) and A (inner, state)",
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
                f"accepted for this x is {shape}",
                "reshape it",
            )
