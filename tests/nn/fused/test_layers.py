"""The whole network through the kernels against the same network in plain torch."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from ulvm.nn import fused, model, scan
from ulvm.nn.fused import layers
from ulvm.nn.model import PVMLayer, UltraLightVMUNet, normalise
from ulvm.nn.networks import build_network
from ulvm.nn.peers import ultralbm_unet
from ulvm.spec import ModelSpec


def use_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the kernels on the CPU too, in Triton's interpreter."""

    def kernels_for(features: Tensor) -> ModuleType | None:
        return layers if features.dtype != torch.float64 else None

    for module in (model, scan, ultralbm_unet):
        monkeypatch.setattr(module, "kernels_for", kernels_for)


def random_network(spec: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(widths=(4, 8, 8, 8, 8, 12)),
        ModelSpec(bridge="none", mixer="ss2d", classes=2, widths=(4, 8, 8, 8, 8, 8)),
        ModelSpec(network="ultralbm-unet-student"),
        ModelSpec(
            bridge="spatial",
            encoder=("conv",) * 6,
            decoder=("conv",) * 5,
            widths=(4, 8, 8, 8, 8, 8),
        ),
    ],
    ids=["mamba", "ss2d", "ultralbm", "conv"],
)
def test_network_agrees(spec: ModelSpec, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(spec).eval()  # batch norms have one position at the bottom
    # torch 2.13's batch norm is wrong on the CPU for the gradient of one channels-last picture.
    pictures = 2 if spec.network == "ultralbm-unet-student" else 1
    images = normalise(torch.rand(pictures, 3, 32, 32))
    exact = network.double()(images.double())
    expected = torch.autograd.grad(exact.square().mean(), list(network.parameters()))

    use_kernels(monkeypatch)
    # Channels-last weights have other strides.
    network.float().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = network(images.to(device))
    grads = torch.autograd.grad(result.square().mean(), list(network.parameters()))

    assert (result.cpu() - exact).abs().max() <= 1e-4 * exact.abs().max()
    scale = max(float(want.abs().max()) for want in expected)
    for (name, _), grad, want in zip(network.named_parameters(), grads, expected, strict=True):
        error = float((grad.cpu() - want).abs().max())
        assert error <= 1e-3 * float(want.abs().max()) + 1e-6 * scale, f"{name}: {error:.1e}"


def test_kernels_are_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused.kernels_for(torch.zeros(1)) is None
    monkeypatch.setattr(fused, "enabled", False)
    if torch.cuda.is_available():
        assert fused.kernels_for(torch.zeros(1, device="cuda")) is None


def test_layers_too_wide_for_the_chip_run_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_shared_memory", lambda device: 232_448)  # of an H100
    paper = [part for part in UltraLightVMUNet().modules() if isinstance(part, PVMLayer)]
    assert all(layers.fits_pvm(layer) for layer in paper)
    assert layers.fits_pvm(PVMLayer(64, 64, branches=1))
    assert not layers.fits_pvm(PVMLayer(128, 256))
    assert not layers.fits_pvm(PVMLayer(64, 64, mixer="bidirectional"))
    monkeypatch.setattr(layers, "_shared_memory", lambda device: 40_000)
    assert not layers.fits_pvm(PVMLayer(64, 48))
