"""The LayerNorm of narrow rows against torch's in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernel_errors import assert_sees_each_error, errors
from ulvm.nn.kernels import layer_norm as norms
from ulvm.nn.kernels import modules

EPS = 1e-5
layer_norm = partial(norms.layer_norm, eps=EPS)


def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def drawn(shape: tuple[int, ...], device: str) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [3 + torch.randn(shape), 1 + torch.randn(shape[-1]) / 2, torch.randn(shape[-1])]
    return [each.to(device).requires_grad_() for each in inputs]


@pytest.mark.parametrize(
    "shape", [(2, 300, 8), (1, 1, 24), (3, 70, 96), (700, 5), (2, 5, 7, 256), (9, 1)]
)
def test_matches_torch(shape: tuple[int, ...], device: str) -> None:
    limit = 1e-5 if shape[-1] > 1 else 1e-4  # of one channel, next to nothing has a gradient
    value, grad_x, grad_weight, grad_bias = errors(layer_norm, oracle, drawn(shape, device))
    assert max(value, grad_bias) < limit
    if shape[-1] > 1:
        assert max(grad_x, grad_weight) < limit


def test_several_blocks_per_program(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "PROGRAMS", 3)
    assert max(errors(layer_norm, oracle, drawn((5, 400, 8), device))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows(dtype: torch.dtype, device: str) -> None:
    x, weight, bias = drawn((2, 40, 12), device)
    assert max(errors(layer_norm, oracle, [x.to(dtype), weight, bias])) < 2e-2


def test_comparison_sees_each_wrong_result(device: str) -> None:
    assert_sees_each_error(layer_norm, oracle, drawn((2, 20, 8), device))


def test_constant_rows_stay_finite(device: str) -> None:
    x, weight, bias = drawn((1, 40, 8), device)
    x = torch.full_like(x, 7.0).requires_grad_()
    y = layer_norm(x, weight, bias)
    torch.testing.assert_close(y, bias.expand_as(y))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("channels", [8, norms.WIDEST + 1])
def test_the_layer_takes_it_for_narrow_rows(
    channels: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a network runs in half precision: as torch's on CUDA, in and out in float32."""
    calls = []
    kernel = norms.layer_norm

    def counted(*operands: Tensor) -> Tensor:
        calls.append(operands[0].dtype)
        return kernel(*operands)

    monkeypatch.setattr(modules, "layer_norm", counted)
    monkeypatch.setattr(modules, "usable", lambda _: True)
    norm = nn.LayerNorm(channels).to(device)
    modules.swap(norm)
    x = torch.randn(2, 5, channels, device=device)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (channels,), norm.weight, norm.bias))
    with torch.autocast(device, torch.bfloat16):
        half = norm(x.bfloat16()).dtype
    assert half == (torch.float32 if channels == 8 or device == "cuda" else torch.bfloat16)
    assert calls == ([torch.float32] * 2 if channels == 8 else [])
