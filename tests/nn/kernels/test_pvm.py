"""The PVM layer's kernels against the plain layer in float64: values and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kernel_errors import assert_sees_each_error, difference, errors
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


class OfTokens(nn.Module):
    """The plain layer as a function of tokens and its parameters, in the kernels' order."""

    def __init__(self, layer: PVMLayer) -> None:
        super().__init__()
        self.layer = layer
        names = {parameter: name for name, parameter in self.named_parameters()}
        self.names = [names[parameter] for parameter in weights_of(layer)]

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.layer.forward_tokens(tokens)
        return result

    def plain(self, tokens: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(self.names, parameters, strict=True))
        result: Tensor = torch.func.functional_call(self, given, tokens)
        return result

    def fast(self, tokens: Tensor, *parameters: Tensor) -> Tensor:
        weights = pvm.Weights(*parameters)
        return pvm.pvm(tokens, weights, self.layer.norm.eps, self.layer.branches)


def compare(layer: PVMLayer, tokens: Tensor, device: str, tolerance: float) -> None:
    layer.to(device)
    both, tokens = OfTokens(layer), tokens.to(device)
    parameters = list(weights_of(layer))
    found = errors(both.fast, both.plain, [tokens, *parameters])
    for name, error in zip(["result", "tokens", *pvm.Weights._fields], found, strict=True):
        # Its sum cancels almost wholly; plain float32 is 1e-4 off as well.
        assert error <= tolerance * (100 if name == "skip_scale" else 1), name
    with torch.no_grad():
        alone = both.fast(tokens, *parameters)
        expected = both.plain(tokens.double(), *(each.double() for each in parameters))
    assert difference(alone, expected) <= tolerance, "result without a gradient"


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
    tokens = torch.randn(2 if length * channels < 700 else 1, length, channels)
    compare(layer, tokens, device, 5e-5)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_half_precision_tokens(kind: torch.dtype, tolerance: float, device: str) -> None:
    layer = random_layer(12, 8, branches=2)
    compare(layer, torch.randn(1, 24, 12).to(kind), device, tolerance)


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


def test_errors_see_each_wrong_result(device: str) -> None:
    layer = random_layer(8, 4, branches=2).to(device)
    both = OfTokens(layer)
    inputs = [torch.randn(1, 16, 8, device=device), *weights_of(layer)]
    assert_sees_each_error(both.fast, both.plain, inputs, 5e-3)


@pytest.mark.parametrize("name", ["result", "tokens", "A_log", "without a gradient"])
def test_comparison_notices_a_wrong_result(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value alone, the gradient alone, and the value where no gradient is asked for."""
    right = pvm.pvm

    def wrong(tokens: Tensor, weights: pvm.Weights, eps: float, branches: int) -> Tensor:
        given = {"tokens": tokens, **weights._asdict()}
        if name in given and torch.is_grad_enabled():
            given[name] = given[name].view_as(given[name])
            given[name].register_hook(lambda grad: 1.001 * grad)
        result = right(given.pop("tokens"), pvm.Weights(**given), eps, branches)
        off = name == ("result" if torch.is_grad_enabled() else "without a gradient")
        return result + 1e-3 * result.detach() if off else result

    layer = random_layer(8, 4, branches=2)
    monkeypatch.setattr(pvm, "pvm", wrong)
    with pytest.raises(AssertionError, match=name):
        compare(layer, torch.randn(1, 16, 8), device, 5e-5)
