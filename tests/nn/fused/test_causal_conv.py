"""The causal convolution on tokens against torch's transposed one in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.fused import causal_conv as convs
from ulvm.nn.model import CausalConv


def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels, _, taps = weight.shape
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=channels)).transpose(1, 2)


def drawn(batch: int, length: int, channels: int, taps: int, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(batch, length, channels), torch.randn(channels, 1, taps)]
    return [each.to(device).requires_grad_() for each in (*inputs, torch.randn(channels))]


def errors(inputs: list[Tensor], wide: int = 0) -> list[float]:
    """Of the value and each gradient, relative to the largest number.

    With ``wide``, x is a slice of an array with so many channels more.
    """
    exact = [each.detach().double().requires_grad_() for each in inputs]
    x, weight, bias = inputs
    result = convs.causal_conv(F.pad(x, (wide, 0))[..., wide:], weight, bias)
    expected = oracle(*exact)
    upstream = torch.randn(expected.shape, device=expected.device).to(result.dtype)
    result.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(result, expected), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]
    assert result.dtype == x.dtype
    assert result.is_contiguous()
    return [float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs]


@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps"),
    [(2, 150, 16, 4), (3, 2, 24, 4), (1, 1, 5, 3), (2, 70, 129, 2), (2, 33, 8, 1)],
)
def test_matches_torch(batch: int, length: int, channels: int, taps: int, device: str) -> None:
    assert max(errors(drawn(batch, length, channels, taps, device))) < 1e-5


def test_reads_a_slice_as_it_lies(device: str) -> None:
    assert max(errors(drawn(2, 40, 16, 4, device), wide=16)) < 1e-5


def test_several_blocks_per_program(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convs, "PROGRAMS", 2)
    assert max(errors(drawn(2, 300, 16, 4, device))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tokens(dtype: torch.dtype, device: str) -> None:
    x, weight, bias = drawn(2, 40, 12, 4, device)
    x = x.detach().to(dtype).requires_grad_()
    assert max(errors([x, weight, bias])) < 2e-2


def test_the_layer_is_what_it_stands_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as torch's way, and it is the kernel that runs."""
    from ulvm.nn.fused import layers

    torch.manual_seed(0)
    conv, x = CausalConv(6, 4).to(device), torch.randn(2, 9, 6, device=device)
    monkeypatch.setattr("ulvm.nn.model.kernels_for", lambda _: None)
    expected = conv(x)
    monkeypatch.setattr("ulvm.nn.model.kernels_for", lambda _: layers)
    torch.testing.assert_close(conv(x), expected)
    monkeypatch.setattr(layers, "causal_conv", lambda *_: torch.zeros(()))
    assert conv(x).shape == ()
