"""The 3×3 convolution's kernels against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_errors import assert_sees_each_error, errors
from ulvm.nn.kernels.conv import conv


def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.movedim(3, 1), weight, bias, padding=1).movedim(1, 3)


def drawn(shape: tuple[int, int, int, int], out: int, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(out, shape[3], 3, 3) / 5, torch.randn(out)]
    return [each.to(device).requires_grad_() for each in inputs]


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="the interpreter takes ten seconds"
)


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((2, 8, 12, 24), 16),
        ((1, 17, 9, 16), 8),
        ((3, 1, 1, 4), 12),
        ((1, 3, 5, 3), 24),
        ((1, 4, 4, 128), 16),
        ((1, 4, 4, 16), 128),
        pytest.param((1, 4, 4, 64), 64, marks=needs_gpu),
    ],
)
def test_matches_torch(shape: tuple[int, int, int, int], out: int, device: str) -> None:
    assert max(errors(conv, oracle, drawn(shape, out, device))) < 1e-5


def test_many_blocks_per_program(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulvm.nn.kernels.conv.PROGRAMS", 3)
    assert max(errors(conv, oracle, drawn((2, 16, 13, 4), 4, device))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_activations(dtype: torch.dtype, device: str) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices")
    x, weight, bias = drawn((2, 8, 8, 8), 8, device)
    assert max(errors(conv, oracle, [x.to(dtype), weight, bias])) < 2e-2


def test_comparison_sees_each_wrong_result(device: str) -> None:
    assert_sees_each_error(conv, oracle, drawn((1, 4, 6, 4), 8, device))


def test_picture_that_needs_no_gradient(device: str) -> None:
    x, weight, bias = drawn((1, 4, 4, 4), 4, device)
    conv(x.detach(), weight, bias).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
