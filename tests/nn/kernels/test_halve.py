"""The halving kernels against torch in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_errors import assert_sees_each_error, errors
from ulvm.nn.kernels import halve as kernels

EPS = 1e-5
conv_halve = partial(kernels.conv_halve, eps=EPS)
norm_halve = partial(kernels.norm_halve, eps=EPS)


def halve(x: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    normal = F.group_norm(x, 4, norm_weight, norm_bias, EPS)
    return F.gelu(F.max_pool2d(normal, 2)).movedim(1, 3)


def norm_oracle(x: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    return halve(x.movedim(3, 1), norm_weight, norm_bias)


def conv_oracle(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> Tensor:
    return halve(F.conv2d(x.movedim(3, 1), weight, bias, padding=1), norm_weight, norm_bias)


def drawn_norm(channels: int, device: str) -> list[Tensor]:
    weight = torch.randn(channels) + 0.3  # of both signs
    return [each.to(device).requires_grad_() for each in (weight, torch.randn(channels))]


def drawn_conv(shape: tuple[int, int, int, int], out: int, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(shape) * 3 + 1, torch.randn(out, shape[3], 3, 3) / 5, torch.randn(out)]
    return [each.to(device).requires_grad_() for each in inputs] + drawn_norm(out, device)


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((2, 16, 12, 3), 8),
        ((1, 16, 12, 8), 16),
        ((1, 6, 10, 16), 24),
        ((2, 2, 2, 4), 12),
        ((1, 4, 4, 40), 64),
    ],
)
def test_conv_halve_matches_torch(shape: tuple[int, int, int, int], out: int, device: str) -> None:
    assert max(errors(conv_halve, conv_oracle, drawn_conv(shape, out, device))) < 1e-5


def test_conv_halve_with_many_blocks_per_program(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ulvm.nn.kernels.halve.PROGRAMS", 4)
    assert max(errors(conv_halve, conv_oracle, drawn_conv((2, 12, 14, 4), 8, device))) < 1e-5


@pytest.mark.parametrize(
    "shape", [(2, 12, 16, 32), (1, 6, 10, 48), (3, 2, 2, 4), (1, 64, 34, 12), (1, 4, 4, 128)]
)
def test_norm_halve_matches_torch(shape: tuple[int, int, int, int], device: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 + 1).to(device).requires_grad_()
    assert max(errors(norm_halve, norm_oracle, [x, *drawn_norm(shape[3], device)])) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_activations(dtype: torch.dtype, device: str) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices")
    x, *parameters = drawn_conv((2, 8, 8, 8), 8, device)
    x = x.to(dtype)
    # The largest of a window may change with rounding, so one element may be far off.
    assert max(errors(conv_halve, conv_oracle, [x, *parameters])) < 3e-2
    assert max(errors(norm_halve, norm_oracle, [x, *parameters[2:]])) < 3e-2


def test_result_of_another_dtype(device: str) -> None:
    inputs = drawn_conv((1, 4, 4, 4), 4, device)
    result = conv_halve(*inputs, dtype=torch.float16)
    assert result.dtype == torch.float16
    result.float().sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in inputs)


def test_first_of_equal_values_takes_the_gradient(device: str) -> None:
    """Also when a negative weight turns the order round, and when a zero one makes all equal."""
    torch.manual_seed(0)
    x = torch.randint(0, 2, (2, 8, 8, 8)).float().to(device)
    weight = torch.tensor([1.0, -1, 0, 2, -2, 0, 1, -1], device=device)
    bias = torch.zeros(8, device=device)
    assert max(errors(norm_halve, norm_oracle, [x, weight, bias])) < 1e-5

    same = torch.zeros(8, 8, 3, 3)
    same[range(8), range(8), 1, 1] = 1
    conv_inputs = [x, same.to(device), torch.zeros(8, device=device), weight, bias]
    assert max(errors(conv_halve, conv_oracle, conv_inputs)) < 1e-5


@pytest.mark.parametrize("level", [0.0, 255.0])
def test_picture_of_one_value(level: float, device: str) -> None:
    """The variance is that of the border alone, or nothing at all."""
    _, *parameters = drawn_conv((1, 16, 16, 3), 8, device)
    x = torch.full((1, 16, 16, 3), level, device=device).requires_grad_()
    exact = conv_oracle(*(each.detach().double() for each in [x, *parameters]))
    assert (conv_halve(x, *parameters) - exact).abs().max() < 1e-4 * exact.abs().max()

    flat = torch.full((1, 8, 8, 8), level, device=device)
    exact = norm_oracle(flat.double(), *(each.detach().double() for each in parameters[2:]))
    assert (norm_halve(flat, *parameters[2:]) - exact).abs().max() < 1e-5


def test_picture_needs_no_gradient(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program's second block only some pixels exist."""
    monkeypatch.setattr("ulvm.nn.kernels.halve.PICTURE", 8)
    monkeypatch.setattr("ulvm.nn.kernels.halve.PROGRAMS", 1)
    x, *parameters = drawn_conv((2, 4, 10, 3), 8, device)
    exact = [each.detach().double().requires_grad_() for each in [x, *parameters]]
    conv_halve(x.detach(), *parameters).sum().backward()
    conv_oracle(*exact).sum().backward()
    assert x.grad is None
    for found, expected in zip(parameters, exact[1:], strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert (found.grad - expected.grad).abs().max() < 1e-5 * expected.grad.abs().max()


def test_comparison_sees_each_wrong_result(device: str) -> None:
    inputs = drawn_conv((1, 8, 8, 4), 8, device)
    assert_sees_each_error(conv_halve, conv_oracle, inputs)
    x = torch.randn(1, 8, 8, 8, device=device)
    assert_sees_each_error(norm_halve, norm_oracle, [x, *inputs[3:]])
