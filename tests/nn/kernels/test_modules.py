"""The whole network with the kernels put in against the same network in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from changes import adapt, cut, hook, parametrise
from kernel_errors import difference
from ulvm.nn.kernels import accelerate, modules
from ulvm.nn.kernels.device import usable
from ulvm.nn.model import PVMLayer, SkipBridge, UltraLightVMUNet, normalise
from ulvm.spec import ModelSpec


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can take tensors on the CPU too, in Triton's interpreter."""
    monkeypatch.setattr(modules, "usable", lambda features: features.dtype != torch.float64)


def random_network(spec: ModelSpec, noise: float = 0.05) -> UltraLightVMUNet:
    torch.manual_seed(0)
    network = UltraLightVMUNet(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return network


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(widths=(4, 8, 8, 8, 8, 12)),
        ModelSpec(  # a PVM layer each way, for the interpreter takes its time
            bridge="none",
            mixer="ss2d",
            classes=2,
            encoder=("conv",) * 3 + ("pvm",) + ("conv",) * 2,
            decoder=("conv", "pvm") + ("conv",) * 3,
            widths=(4, 8, 8, 8, 8, 8),
        ),
        ModelSpec(
            bridge="spatial",
            encoder=("conv",) * 6,
            decoder=("conv",) * 5,
            widths=(4, 8, 8, 8, 8, 8),
        ),
    ],
    ids=["mamba", "ss2d", "conv"],
)
def test_network_agrees(spec: ModelSpec, device: str) -> None:
    compare(random_network(spec), device)


def compare(
    network: UltraLightVMUNet,
    device: str,
    accelerate: Callable[[nn.Module], object] = modules.swap,
) -> None:
    """Logits and the gradients of all parameters, accelerated, against float64."""
    images = normalise(torch.rand(1, 3, 32, 32))
    exact = network.double()(images.double())
    expected = torch.autograd.grad(exact.square().mean(), list(network.parameters()))

    # Channels-last weights have other strides.
    network.float().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    accelerate(network)
    result = network(images.to(device))
    grads = torch.autograd.grad(result.square().mean(), list(network.parameters()))

    assert difference(result.cpu(), exact) <= 1e-4, "logits"
    scale = max(float(want.abs().max()) for want in expected)
    for (name, _), grad, want in zip(network.named_parameters(), grads, expected, strict=True):
        largest = float(want.abs().max()) + 1e-3 * scale  # some have next to no gradient
        assert difference(grad.cpu(), want, floor=largest) <= 1e-3, name


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("place", ["logits", "encoder.1.weight", "head.bias"])
def test_comparison_notices_a_wrong_result(place: str, device: str) -> None:
    """Of the logits alone, whose gradients stay, or of one gradient alone."""
    conv = ("conv",)
    spec = ModelSpec(bridge="none", encoder=conv * 6, decoder=conv * 5, widths=(4, 8, 8, 8, 8, 8))
    network = random_network(spec)

    def swap_wrongly(network: nn.Module) -> None:
        modules.swap(network)
        if place == "logits":
            add = lambda _, __, logits: logits + 1e-3 * logits.detach()  # noqa: E731
            network.register_forward_hook(add)
        else:
            network.get_parameter(place).register_hook(lambda grad: 1.01 * grad)

    with pytest.raises(AssertionError, match=place):
        compare(network, device, swap_wrongly)


def test_the_plain_network_stays_where_there_is_no_gpu() -> None:
    network = UltraLightVMUNet()
    assert accelerate(network) is network
    assert type(network) is UltraLightVMUNet
    assert not usable(torch.zeros(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable(torch.zeros(1, device="cuda"))
    monkeypatch.setattr("ulvm.nn.kernels.device.enabled", False)
    assert not usable(torch.zeros(1, device="cuda"))


def test_an_accelerated_network_is_the_same_on_disk_and_in_a_copy() -> None:
    network = random_network(ModelSpec(widths=(4, 8, 8, 8, 8, 8)))
    expected = network.state_dict()
    modules.swap(network)
    again = copy.deepcopy(network)
    assert type(again) is modules.FastUltraLightVMUNet
    assert isinstance(again, UltraLightVMUNet)
    assert list(again.state_dict()) == list(expected)
    assert all(torch.equal(again.state_dict()[name], each) for name, each in expected.items())


# What is put inside a module


def hook_before(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_forward_pre_hook(lambda _, inputs: (inputs[0].sin(),))


CHANGES = (hook, hook_before, cut, adapt, parametrise)
PLACES = {
    "in_proj": lambda layer: (layer.mixer, "in_proj"),
    "conv": lambda layer: (layer.mixer, "conv"),
    "dt_proj": lambda layer: (layer.mixer.scan, "dt_proj"),
    "norm": lambda layer: (layer, "norm"),
    "project": lambda layer: (layer, "project"),
}


def differs(module: nn.Module, change: Callable[[], None], inputs: object) -> bool:
    """Whether the change shows in the accelerated module as it does in the plain one."""

    def run_plainly() -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modules, "usable", lambda _: False)
            return module(inputs)

    with torch.no_grad():
        before = run_plainly()  # as with the kernels, but soon done
        change()
        fast = module(inputs)
        plain = run_plainly()
    first, changed, exact = (
        each[0] if isinstance(each, list) else each for each in (before, fast, plain)
    )
    # A sum is rounded by the size of its terms, here of weights with noise.
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4 * max(1.0, float(exact.std())))
    return not torch.allclose(first, changed, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_put_inside_a_pvm_layer_is_honoured(
    change: Callable[[nn.Module, str], None], place: str, device: str
) -> None:
    torch.manual_seed(0)
    layer = PVMLayer(8, 8, init="mamba")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    modules.swap(layer.to(device))
    owner, name = PLACES[place](layer)
    features = torch.randn(1, 8, 4, 4, device=device)
    assert differs(layer, lambda: change(owner, name), features)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_put_inside_the_bridge_is_honoured(
    change: Callable[[nn.Module, str], None], device: str
) -> None:
    torch.manual_seed(0)
    bridge = SkipBridge((8, 4), spatial=True, channel=True)
    modules.swap(bridge.to(device))
    skips = [torch.randn(1, width, size, size, device=device) for width, size in ((8, 8), (4, 4))]
    assert bridge.spatial is not None
    owner = bridge.spatial
    assert differs(bridge, lambda: change(owner, "conv"), skips)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("part", ["encoder", "encoder_norms", "decoder", "decoder_norms"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_put_around_the_networks_own_steps_is_honoured(
    change: Callable[[nn.Module, str], None], part: str, device: str
) -> None:
    conv = ("conv",)
    spec = ModelSpec(widths=(8, 8, 8, 8, 8, 8), encoder=conv * 6, decoder=conv * 5, bridge="none")
    network = random_network(spec, noise=0.5).to(device)
    modules.swap(network)
    owner = getattr(network, part)
    images = torch.randn(1, 3, 32, 32, device=device)
    place = "0" if part.startswith("encoder") else "4"  # the stages of full size
    assert differs(network, lambda: change(owner, place), images)


def test_a_hook_that_is_passed_over_would_be_noticed(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "usable", lambda _: True)
    monkeypatch.setattr(modules, "_untouched", lambda *_: True)
    layer = PVMLayer(8, 8, init="mamba").to(device)
    modules.swap(layer)
    features = torch.randn(1, 8, 4, 4, device=device)
    with pytest.raises(AssertionError, match="not close"):
        differs(layer, lambda: hook(layer, "project"), features)


def test_layers_too_wide_for_the_chip_run_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulvm.nn.kernels.device.shared_memory", lambda _: 232_448)  # of an H100
    paper = [part for part in UltraLightVMUNet().modules() if isinstance(part, PVMLayer)]
    assert all(modules.fits_pvm(layer) for layer in paper)
    assert modules.fits_pvm(PVMLayer(64, 64, branches=1))
    assert not modules.fits_pvm(PVMLayer(128, 256))
    assert not modules.fits_pvm(PVMLayer(64, 64, mixer="bidirectional"))
    assert modules.fits_convolution(nn.Conv2d(64, 64, 3, padding=1))
    assert modules.fits_convolution(nn.Conv2d(128, 16, 3, padding=1))
    for channels, out in ((64, 128), (128, 64), (128, 128)):
        assert not modules.fits_convolution(nn.Conv2d(channels, out, 3, padding=1))
    monkeypatch.setattr("ulvm.nn.kernels.device.shared_memory", lambda _: 40_000)
    assert not modules.fits_pvm(PVMLayer(64, 48))
