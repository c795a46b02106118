"""How far a kernel's value and gradients are from the same function's in float64."""

from collections.abc import Callable

import torch
from torch import Tensor


def errors(
    kernel: Callable[..., Tensor], oracle: Callable[..., Tensor], inputs: list[Tensor]
) -> list[float]:
    """Largest difference over the largest number: of the value, then of each input's gradient.

    Args:
        kernel: Differentiable; its result has the first input's type.
        oracle: What it computes, given the inputs in float64.
        inputs: Leaves that ask for a gradient.
    """
    exact = [each.detach().double().requires_grad_() for each in inputs]
    result, expected = kernel(*inputs), oracle(*exact)
    assert result.dtype == inputs[0].dtype
    upstream = torch.randn(expected.shape, device=expected.device).to(result.dtype)
    result.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(result, expected), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]
    return [float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs]
