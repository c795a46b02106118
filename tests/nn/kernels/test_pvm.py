"""The PVM layer's kernels against the plain layer in float64: values and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ulvm.nn.kernels import pvm
from ulvm.nn.kernels.modules import weights_of
from ulvm.nn.model import PVMLayer


def random_layer(channels: int, out: int, **sizes: int) -> PVMLayer:
    torch.manual_seed(0)
    layer = PVMLayer(channels, out, init="mamba", **sizes)
    with torch.no_grad():
        for parameter in layer.parameters():  # no bias of 0, no weight of 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def compare(layer: PVMLayer, tokens: Tensor, device: str, tolerance: float) -> None:
    exact = tokens.double().requires_grad_()
    layer.double()
    weigh = torch.randn(*tokens.shape[:2], layer.project.out_features)
    expected = layer.forward_tokens(exact)
    names = [name for name, _ in layer.named_parameters()]
    wanted = torch.autograd.grad((expected * weigh).sum(), [exact, *layer.parameters()])

    layer.float().to(device)
    given = tokens.detach().to(device).requires_grad_()
    result = pvm.pvm(given, weights_of(layer), layer.norm.eps, layer.branches)
    assert_close("result", result, expected, tolerance)
    with torch.no_grad():
        result_alone = pvm.pvm(given, weights_of(layer), layer.norm.eps, layer.branches)
    assert_close("result without a gradient", result_alone, expected, tolerance)
    loss = (result.float() * weigh.to(device)).sum()
    grads = torch.autograd.grad(loss, [given, *layer.parameters()])
    for name, grad, want in zip(["tokens", *names], grads, wanted, strict=True):
        # Its sum cancels almost wholly; plain float32 is 1e-4 off as well.
        assert_close(name, grad, want, tolerance * (100 if name == "skip_scale" else 1))


def assert_close(name: str, result: Tensor, expected: Tensor, tolerance: float) -> None:
    largest = expected.abs().max().clamp_min(1e-12)  # A has no gradient from a single token
    error = (result.cpu().double() - expected.cpu()).abs().max() / largest
    assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("length", "channels", "out", "sizes"),
    [
        (1, 24, 32, {}),
        (20, 24, 32, {}),  # a tile that is not full
        (70, 12, 8, {"branches": 2}),  # three chunks, the last not full
        (16, 64, 48, {}),  # padded inner 32
        (40, 8, 8, {"branches": 1, "d_state": 8, "d_conv": 3, "expand": 1}),
        (17, 40, 12, {"branches": 2, "d_state": 4, "expand": 1}),  # rank 2
    ],
)
def test_values_and_gradients(
    length: int,
    channels: int,
    out: int,
    sizes: dict[str, int],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pvm, "choose_chunk", lambda *_: 16)
    layer = random_layer(channels, out, **sizes)
    tokens = torch.randn(2 if length < 50 else 1, length, channels)
    compare(layer, tokens, device, 5e-5)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_half_precision_tokens(kind: torch.dtype, tolerance: float, device: str) -> None:
    layer = random_layer(24, 32)
    compare(layer, torch.randn(1, 40, 24).to(kind), device, tolerance)


def test_weights_that_could_learn_keep_nothing_where_gradients_are_off(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_layer(24, 32).to(device)
    tokens = torch.randn(1, 16, 24, device=device)
    asked = []

    def keep(tokens: Tensor, eps: float, branches: int, train: bool, *weights: Tensor) -> Tensor:
        asked.append(train)
        return tokens

    monkeypatch.setattr(pvm._PVM, "apply", keep)
    pvm.pvm(tokens, weights_of(layer), layer.norm.eps, layer.branches)
    with torch.no_grad():
        pvm.pvm(tokens, weights_of(layer), layer.norm.eps, layer.branches)
    assert asked == [True, False]


def test_many_tokens(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pvm, "ENOUGH", 1)  # from here on, there are many
    compare(random_layer(12, 8, branches=2), torch.randn(1, 32, 12), device, 5e-5)


def test_comparison_notices_a_wrong_gradient(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(16, 8)
    shift = weights_of(layer).D
    right = pvm.pvm

    def wrong(tokens: Tensor, weights: pvm.Weights, eps: float, branches: int) -> Tensor:
        return right(tokens, weights, eps, branches) + 1e-3 * shift.to(tokens.device).sum()

    monkeypatch.setattr(pvm, "pvm", wrong)
    with pytest.raises(AssertionError, match="result"):
        compare(layer, torch.randn(1, 16, 16), device, 5e-5)
