"""How far values and gradients are from the same function's in float64, and proof that it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Tensor | Sequence[Tensor]]


def errors(
    kernel: Function,
    oracle: Function,
    inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype | None = None,
    lean: float = 0.0,
    floor: float = 1e-12,
    least_number: float = 0.0,
) -> list[float]:
    """Errors of each value, then of each input's gradient, which has the input's type.

    Args:
        kernel: Differentiable; gives a tensor or several.
        oracle: What it computes, given the inputs in float64.
        inputs: Tensors in the order of the arguments; views stay views.
        dtype: Of the values; else the first input's.
        lean: Mean of the gradient that comes in. At 1, sums over it don't cancel to nothing.
        floor: As of ``difference``.
        least_number: The floor of a single number, such as the gradient of a scale.
    """
    ours = [each.detach().requires_grad_() for each in inputs]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    values, expected = _several(kernel(*ours)), _several(oracle(*exact))
    assert all(value.dtype == (dtype or inputs[0].dtype) for value in values)
    random = torch.Generator().manual_seed(1)
    slopes = [(torch.randn(each.shape, generator=random) + lean).to(each) for each in values]
    gradients = torch.autograd.grad(values, ours, slopes)
    wanted = torch.autograd.grad(expected, exact, [slope.double() for slope in slopes])
    assert [each.dtype for each in gradients] == [each.dtype for each in inputs]
    pairs = zip([*values, *gradients], [*expected, *wanted], strict=True)
    return [
        difference(found, right, max(floor, least_number) if right.numel() == 1 else floor)
        for found, right in pairs
    ]


def difference(found: Tensor, expected: Tensor, floor: float = 1e-12) -> float:
    """Largest difference over the largest expected number; infinite where any is NaN.

    Args:
        found: Any type, any device.
        expected: float64, the same shape.
        floor: The least that the difference is divided by, for numbers that cancel to nothing.
    """
    assert found.shape == expected.shape
    expected = expected.detach()
    error = (found.detach().to(expected) - expected).abs().max()
    share = float(error / expected.abs().max().clamp_min(floor))
    return math.inf if math.isnan(share) else share  # Python's max would lose a NaN


def planted(kernel: Function, place: int, values: int = 1, share: float = 1e-2) -> Function:
    """The kernel with one result wrong by a share of itself, all others as they were.

    Args:
        kernel: As of ``errors``.
        place: Which number in the list of ``errors`` is to be wrong.
        values: How many values the kernel gives.
        share: Of the value or gradient.
    """

    def wrong(*inputs: Tensor) -> list[Tensor]:
        given = list(inputs)
        if place >= values:
            # The same numbers, whose gradient passes by here.
            given[place - values] = inputs[place - values].view_as(inputs[place - values])
            given[place - values].register_hook(lambda grad: grad * (1 + share))
        results = _several(kernel(*given))
        if place < values:
            results[place] = results[place] + share * results[place].detach()
        return results

    return wrong


def assert_sees_each_error(
    kernel: Function,
    oracle: Function,
    inputs: Sequence[Tensor],
    tolerance: float = 1e-5,
    values: int = 1,
) -> None:
    """Meta-test of a comparison: each wrong value and each wrong gradient shows there alone.

    Args:
        kernel, oracle, inputs: As of ``errors``.
        tolerance: What the comparison allows.
        values: How many values the kernel gives.
    """
    for place in range(values + len(inputs)):
        found = errors(planted(kernel, place, values), oracle, inputs)
        too_large = [index for index, error in enumerate(found) if not error < tolerance]
        assert too_large == [place]


def _several(results: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)
