"""What torch's own tools do with the plain network: trace, export, hook, prune, adapt, derive."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from changes import adapt, cut, hook, parametrise
from ulvm.nn import scan
from ulvm.nn.model import PVMLayer, UltraLightVMUNet
from ulvm.nn.scan import selective_scan
from ulvm.onnx import onnxruntime
from ulvm.spec import ModelSpec

SIZE = 64
# One PVM layer on the way down and one on the way up; a small one, for the exporters are slow.
SMALL = ModelSpec(
    widths=(4, 4, 8, 8, 8, 8),
    encoder=("conv",) * 4 + ("pvm",) * 2,
    decoder=("pvm",) + ("conv",) * 4,
    init="mamba",
)


@pytest.fixture
def network() -> UltraLightVMUNet:
    torch.manual_seed(0)
    network = UltraLightVMUNet(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.fixture
def images() -> Tensor:
    return 255 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# Traced, with gradients on, as nobody turns them off


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_network_is_the_network(network: UltraLightVMUNet, images: Tensor) -> None:
    traced = torch.jit.trace(network, images)  # torch compares both, too
    others = images.flip(0, 2)
    torch.testing.assert_close(traced(others), network(others), rtol=1e-4, atol=1e-4)
    traced(others).square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(each is not None and each.isfinite().all() for each in gradients)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_layer_of_its_own_is_traced() -> None:
    layer, features = PVMLayer(8, 12), torch.randn(2, 8, 5, 7)
    traced = torch.jit.trace(layer, features)
    torch.testing.assert_close(traced(features + 1), layer(features + 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamo", [False, True])
def test_the_plain_network_exports_in_both_forms(
    dynamo: bool, network: UltraLightVMUNet, images: Tensor
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters
        if dynamo:
            program = torch.onnx.export(network, (images,), dynamo=True, verbose=False)
            assert program is not None
            content = program.model_proto.SerializeToString()
        else:
            buffer = io.BytesIO()
            torch.onnx.export(network, (images,), buffer, dynamo=False, opset_version=20)
            content = buffer.getvalue()
    session = onnxruntime.InferenceSession(content)
    others = images.flip(0, 2)
    (logits,) = session.run(None, {session.get_inputs()[0].name: others.numpy()})
    expected = network(others).detach().numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_tracing_would_fail_through_the_written_out_gradient(
    network: UltraLightVMUNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "is_traced", lambda: False)
    with pytest.raises((RuntimeError, IndexError)):
        torch.jit.trace(network, images)


# Hooks, pruning, adapters


@pytest.mark.parametrize("change", [hook, cut, adapt, parametrise])
@pytest.mark.parametrize(
    "place",
    [
        "encoder.0",
        "encoder.4.mixer.in_proj",
        "encoder.4.mixer.scan.x_proj",
        "encoder.4.mixer.conv",
        "encoder.5.project",
        "bridge.spatial.conv",
        "bridge.channel.heads.2",
        "decoder.0.mixer.out_proj",
    ],
)
def test_what_is_put_at_a_place_takes_part(
    change: Callable[[nn.Module, str], None],
    place: str,
    network: UltraLightVMUNet,
    images: Tensor,
) -> None:
    owner, _, name = place.rpartition(".")
    network, images = network.double(), images.double()
    before = network(images)
    change(network.get_submodule(owner), name)
    after = network(images)
    assert not torch.allclose(before, after, rtol=0, atol=1e-8)
    after.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_backward_hooks_see_gradients(network: UltraLightVMUNet, images: Tensor) -> None:
    seen: list[float] = []
    layer = network.get_submodule("encoder.4.mixer.scan.dt_proj")
    layer.register_full_backward_hook(lambda _, __, given: seen.append(float(given[0].abs().sum())))
    network(images).square().mean().backward()
    assert len(seen) == 1
    assert seen[0] > 0


# Derivatives


def draw_operands(length: int = 10) -> list[Tensor]:
    """x, delta, A, B, C, D in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return [
        draw(2, length, 3) - 0.5,
        draw(2, length, 3),
        -draw(3, 4),
        draw(2, length, 4) - 0.5,
        draw(2, length, 4) - 0.5,
        draw(3),
    ]


def loss_of(*operands: Tensor) -> Tensor:
    return selective_scan(*operands).square().sum()


def test_a_functional_gradient_is_autograds() -> None:
    operands = draw_operands()
    found = torch.func.grad(loss_of, argnums=tuple(range(6)))(*operands)
    leaves = [each.requires_grad_() for each in operands]
    expected = torch.autograd.grad(loss_of(*leaves), leaves)
    for each, want in zip(found, expected, strict=True):
        torch.testing.assert_close(each, want, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's forward derivatives
def test_a_forward_derivative_with_parameters_that_want_gradients() -> None:
    operands = [each.requires_grad_() for each in draw_operands()]
    ways = [torch.rand_like(each) for each in operands]
    with torch.autograd.forward_ad.dual_level():
        made = [
            torch.autograd.forward_ad.make_dual(*each) for each in zip(operands, ways, strict=True)
        ]
        found = torch.autograd.forward_ad.unpack_dual(loss_of(*made)).tangent
    gradients = torch.autograd.grad(loss_of(*operands), operands)
    expected = sum((way * each).sum() for way, each in zip(ways, gradients, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_each_picture_by_vmap(network: UltraLightVMUNet, images: Tensor) -> None:
    network, images = network.double(), images.double()
    parameters = {name: each.detach() for name, each in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(network, parameters, (image[None],))
        return logits.square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    together = torch.autograd.grad(network(images).square().mean(), list(network.parameters()))
    for name, want in zip(parameters, together, strict=True):
        torch.testing.assert_close(each[name].mean(0), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_second_derivatives_agree_with_finite_differences(length: int) -> None:
    leaves = [each.requires_grad_() for each in draw_operands(length)]
    assert torch.autograd.gradgradcheck(selective_scan, leaves)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's forward derivatives
def test_a_second_derivative_of_some_operands_alone() -> None:
    operands = draw_operands()
    x = operands[0].requires_grad_()
    (first,) = torch.autograd.grad(loss_of(*operands), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    hessian = torch.func.hessian(lambda x: loss_of(x, *operands[1:]))(x.detach())
    torch.testing.assert_close(second, hessian.sum((0, 1, 2)), rtol=1e-8, atol=1e-10)
