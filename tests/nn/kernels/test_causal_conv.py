"""The causal convolution on tokens against torch's transposed one in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_errors import assert_sees_each_error, errors
from ulvm.nn.kernels import causal_conv as convs
from ulvm.nn.kernels import modules
from ulvm.nn.mamba import CausalConv


def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels, _, taps = weight.shape
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=channels)).transpose(1, 2)


def drawn(batch: int, length: int, channels: int, taps: int, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(batch, length, channels), torch.randn(channels, 1, taps)]
    return [each.to(device).requires_grad_() for each in (*inputs, torch.randn(channels))]


@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps"),
    [(2, 150, 16, 4), (3, 2, 24, 4), (1, 1, 5, 3), (2, 70, 129, 2), (2, 33, 8, 1)],
)
def test_matches_torch(batch: int, length: int, channels: int, taps: int, device: str) -> None:
    inputs = drawn(batch, length, channels, taps, device)
    assert max(errors(convs.causal_conv, oracle, inputs)) < 1e-5


def test_reads_a_slice_as_it_lies(device: str) -> None:
    def of_a_slice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = convs.causal_conv(F.pad(x, (16, 0))[..., 16:], weight, bias)
        assert result.is_contiguous()
        return result

    assert max(errors(of_a_slice, oracle, drawn(2, 40, 16, 4, device))) < 1e-5


def test_several_blocks_per_program(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convs, "PROGRAMS", 2)
    assert max(errors(convs.causal_conv, oracle, drawn(2, 300, 16, 4, device))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tokens(dtype: torch.dtype, device: str) -> None:
    x, weight, bias = drawn(2, 40, 12, 4, device)
    assert max(errors(convs.causal_conv, oracle, [x.to(dtype), weight, bias])) < 2e-2


def test_comparison_sees_each_wrong_result(device: str) -> None:
    assert_sees_each_error(convs.causal_conv, oracle, drawn(2, 20, 8, 4, device))


def test_the_layer_is_what_it_stands_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as torch's way, and it is the kernel that runs."""
    torch.manual_seed(0)
    conv, x = CausalConv(6, 4).to(device), torch.randn(2, 9, 6, device=device)
    expected = conv(x)
    modules.swap(conv)
    monkeypatch.setattr(modules, "usable", lambda _: True)
    torch.testing.assert_close(conv(x), expected)
    monkeypatch.setattr(modules, "causal_conv", lambda *_: torch.zeros(()))
    assert conv(x).shape == ()
