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
    x, delta, B, C = (_to_lanes(each, chunk, chunks) for each in (x, delta, B, C))
    operands = (x[:, None], delta[:, None], B[:, :, None], C[:, :, None], A.t()[None, :, :, None])
    if torch.is_grad_enabled() and any(each.requires_grad for each in operands):
        y: Tensor = _ChunkedScan.apply(*operands, chunks)
    else:
        y = _forward_chunks(*operands, chunks)[0]
    return _from_lanes(y[:, 0], batch, chunks)[:, :length]


def _chunk_length(length: int, batch: int, device: torch.device) -> int:
    if device.type == "cpu" and not torch.compiler.is_exporting():
        return -(-length // min(math.isqrt(length), max(1, _CPU_LANES // batch)))
    return math.isqrt(length - 1) + 1


def _to_lanes(sequence: Tensor, chunk: int, chunks: int) -> Tensor:
    batch, length, width = sequence.shape
    padded = F.pad(sequence, (0, 0, 0, chunk * chunks - length))
    lanes = padded.reshape(batch, chunks, chunk, width).permute(2, 3, 1, 0)
    return lanes.reshape(chunk, width, chunks * batch)  # (step, width, lane)


def _from_lanes(lanes: Tensor, batch: int, chunks: int) -> Tensor:
    chunk, width, _ = lanes.shape
    sequence = lanes.reshape(chunk, width, chunks, batch).permute(3, 2, 0, 1)
    return sequence.reshape(batch, chunks * chunk, width)  # (batch, length, width)


def _forward_chunks(
    x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, chunks: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs of all chunks, and every step's decay and state for the gradient.

    Args:
        x, delta: (step, 1, inner, lane).
        B, C: (step, state, 1, lane).
        A: (1, state, inner, 1).
        chunks: Chunks in a lane axis, the slowest part of it.

    Returns:
        (step, 1, inner, lane), and per step the decay and the state (1, state, inner, lane).
    """
    decays: list[Tensor] = []
    states: list[Tensor] = []
    # split, not a loop over an index: the exporter writes it as one node.
    for delta_t, driven_t, B_t in zip(
        delta.split(1), (delta * x).split(1), B.split(1), strict=True
    ):
        decays.append(torch.exp(A * delta_t))
        entering = B_t * driven_t
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
        (C_t * state).sum(1, keepdim=True) for C_t, state in zip(C.split(1), states, strict=True)
    ]
    return torch.cat(outputs), decays, states


def _carry(decay: Tensor, last: Tensor, chunks: int, *, backwards: bool = False) -> Tensor:
    """State that enters each chunk, from each chunk's whole decay and its own last state."""
    decays = decay.tensor_split(chunks, dim=-1)  # (1, state, inner, batch) for each chunk
    lasts = last.tensor_split(chunks, dim=-1)
    order = range(chunks - 1, 0, -1) if backwards else range(chunks - 1)
    entering = [torch.zeros_like(lasts[0])]
    for index in order:
        entering.append(torch.addcmul(lasts[index], decays[index], entering[-1]))
    return torch.cat(entering[::-1] if backwards else entering, dim=-1)


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
        grads = [C_t * grad_y_t for C_t, grad_y_t in zip(C.split(1), grad_y.split(1), strict=True)]
        for t in range(steps - 2, -1, -1):
            grads[t].addcmul_(decays[t + 1], grads[t + 1])
        if chunks > 1:
            whole = decays[-1]
            reaches = [whole, *(whole := whole * decay for decay in decays[-2::-1])][::-1]
            entering = _carry(reaches[0], decays[0] * grads[0], chunks, backwards=True)
            for grad, reach in zip(grads[:-1], reaches[1:], strict=True):
                grad.addcmul_(reach, entering)
            grads[-1] += entering

        driven = delta * x
        grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
        grad_driven, grad_delta = torch.empty_like(x), torch.empty_like(delta)
        grad_A = torch.zeros_like(A)
        batch = x.shape[-1] // chunks
        # Before a chunk's first step comes the last state of the chunk before it.
        before = F.pad(states[-1][..., :-batch], (batch, 0))
        for t in range(steps):
            now = slice(t, t + 1)
            grad_C[now] = (states[t] * grad_y[now]).sum(2, keepdim=True)
            grad_B[now] = (grads[t] * driven[now]).sum(2, keepdim=True)
            grad_driven[now] = (grads[t] * B[now]).sum(1, keepdim=True)
            exponent = grads[t] * decays[t] * before  # gradient of delta · A
            grad_delta[now] = (exponent * A).sum(1, keepdim=True)
            grad_A += (exponent * delta[now]).sum(3, keepdim=True)
            before = states[t]
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
