"""The network against the authors' forward pass, exact counts, plain loops and its symmetries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ulvm.errors import InputError
from ulvm.nn.checkpoint import model_from_authors
from ulvm.nn.export_forms import for_export
from ulvm.nn.mamba import SelectiveScan
from ulvm.nn.model import (
    PVMLayer,
    SkipBridge,
    UltraLightVMUNet,
    init_weights,
    normalise,
    probability_of_logits,
)
from ulvm.nn.networks import build_network
from ulvm.presets import PRESETS
from ulvm.spec import ModelSpec
from ulvm.synthetic import draw_batch

GOLDEN = Path(__file__).parents[1] / "golden" / "authors_forward.safetensors"
MIXER_NAMES = ("mamba", "bidirectional", "ss2d")


def random_inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_pictures(*shape: int, seed: int = 0) -> Tensor:
    return normalise(random_inputs(*shape, seed=seed))


def spread_weights(module: nn.Module, seed: int = 0) -> None:
    """Larger weights and biases than the initial ones, so that every part shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


# The whole network


def test_forward_pass_equals_the_authors() -> None:
    golden = load_file(GOLDEN)
    state = {
        name.removeprefix("state."): value
        for name, value in golden.items()
        if name.startswith("state.")
    }
    with torch.no_grad():
        logits = model_from_authors(state)(golden["input"])
    difference = (probability_of_logits(logits) - golden["probability"]).abs().max().item()
    assert difference < 1e-5
    assert golden["probability"].std() > 1e-3  # or any constant would do


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_every_preset(name: str) -> None:
    network = build_network(PRESETS[name].run.model)
    assert sum(parameter.numel() for parameter in network.parameters()) == PRESETS[name].parameters


@pytest.mark.parametrize("size_hw", [(64, 96), (96, 32), (32, 32)])
def test_any_size_divisible_by_32(size_hw: tuple[int, int]) -> None:
    logits = UltraLightVMUNet()(random_pictures(2, 3, *size_hw))
    assert logits.shape == (2, 1, *size_hw)
    assert logits.isfinite().all()


def test_other_sizes_name_the_nearest() -> None:
    with pytest.raises(InputError, match=r"is 100×130. .* The nearest are 96×128 and 128×160"):
        UltraLightVMUNet()(torch.zeros(1, 3, 100, 130))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 64, 64, 3), (3, 64, 64)])
def test_wrong_channels_name_what_was_given(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        UltraLightVMUNet()(torch.zeros(shape))
    assert caught.value.given == f"the network got {shape}"
    assert caught.value.accepted == "it takes (batch, 3, height, width)"


@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels(channels: int) -> None:
    network = UltraLightVMUNet(ModelSpec(in_channels=channels))
    assert network(random_pictures(1, channels, 32, 64)).shape == (1, 1, 32, 64)


def test_several_classes_sum_to_one() -> None:
    network = UltraLightVMUNet(ModelSpec(classes=3))
    spread_weights(network)
    logits = network(random_pictures(2, 3, 64, 32))
    assert logits.shape == (2, 3, 64, 32)
    probability = probability_of_logits(logits)
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 64, 32))
    torch.testing.assert_close(probability.argmax(1), logits.argmax(1))


def test_one_class_is_a_sigmoid() -> None:
    logits = torch.tensor([-1.0, 0.0, 2.0]).reshape(1, 1, 1, 3)
    expected = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(probability_of_logits(logits), expected)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(),
        ModelSpec(mixer="bidirectional"),
        ModelSpec(mixer="ss2d"),
        ModelSpec(bridge="none"),
        ModelSpec(bridge="spatial"),
        ModelSpec(bridge="channel"),
        ModelSpec(encoder=("conv",) * 6, decoder=("pvm",) * 5, branches=8),
    ],
    ids=lambda spec: f"{spec.mixer}-{spec.bridge}-{spec.branches}",
)
def test_every_parameter_takes_part(spec: ModelSpec) -> None:
    network = UltraLightVMUNet(spec)
    spread_weights(network)
    network(random_pictures(2, 3, 64, 64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_picture_is_independent_of_the_rest_of_its_batch() -> None:
    network = UltraLightVMUNet()
    spread_weights(network)
    pictures = random_pictures(3, 3, 64, 64)
    with torch.no_grad():
        together = network(pictures)
        alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_mixed_precision_stays_finite() -> None:
    network = UltraLightVMUNet()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(random_pictures(1, 3, 64, 64))
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# Initial values


@pytest.mark.parametrize("init", ["paper", "mamba"])
def test_initial_values(init: Any) -> None:
    torch.manual_seed(0)
    network = UltraLightVMUNet(ModelSpec(init=init))
    scans = [part for part in network.modules() if isinstance(part, SelectiveScan)]
    steps = {part.dt_proj for part in scans}

    linear = [p for p in network.modules() if isinstance(p, nn.Linear) and p not in steps]
    weights = torch.cat([layer.weight.flatten() for layer in linear])
    assert weights.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(weights.mean().item()) < 1e-3
    for kind, fan_out_of in (
        (nn.Conv1d, lambda conv: conv.kernel_size[0] * conv.out_channels),
        (nn.Conv2d, lambda conv: conv.kernel_size[0] ** 2 * conv.out_channels),
    ):
        found = [part for part in network.modules() if isinstance(part, kind)]
        scaled = [(conv.weight * (fan_out_of(conv) / 2) ** 0.5).flatten() for conv in found]
        assert torch.cat(scaled).std().item() == pytest.approx(1, rel=0.05)
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part not in steps:
            assert part.bias is None or not part.bias.any()
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            assert (part.weight == 1).all()
            assert not part.bias.any()
        if isinstance(part, PVMLayer):
            assert part.skip_scale.item() == 1
    for part in scans:
        decay_rates = part.A_log.exp()
        torch.testing.assert_close(decay_rates, torch.arange(1.0, 17).expand_as(decay_rates))
        assert (part.D == 1).all()


def test_paper_init_loses_mambas_step_size() -> None:
    for part in UltraLightVMUNet().modules():
        if isinstance(part, SelectiveScan):
            assert not part.dt_proj.bias.any()
            assert part.dt_proj.weight.abs().max() < 0.1  # deviation .02


def test_mamba_init_draws_steps_log_uniformly() -> None:
    torch.manual_seed(0)
    network = UltraLightVMUNet(ModelSpec(init="mamba", expand=4))
    projections = [p.dt_proj for p in network.modules() if isinstance(p, SelectiveScan)]
    steps = torch.cat([F.softplus(projection.bias) for projection in projections])
    assert steps.min() >= 1e-3 * 0.999
    assert steps.max() <= 0.1 * 1.001
    share_below_the_middle = (steps < 1e-2).float().mean().item()  # 10⁻² halves the log range
    assert share_below_the_middle == pytest.approx(0.5, abs=0.1)
    weights = torch.cat([projection.weight.flatten() for projection in projections])
    assert weights.abs().max() <= 1  # uniform in ± dt_rank^-½, and every rank here is 1
    assert weights.std().item() == pytest.approx(1 / 3**0.5, rel=0.1)


def test_seed_decides_the_initial_weights() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return UltraLightVMUNet(ModelSpec(init="mamba")).state_dict()

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_forward_and_gradient_are_repeatable_to_the_bit() -> None:
    network = UltraLightVMUNet()
    pictures = random_pictures(2, 3, 64, 64)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(network(pictures).square().sum(), network.parameters()))

    for first, again in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, again)


# Normalisation


def test_normalise_stretches_each_picture_over_all_its_channels() -> None:
    pictures = torch.tensor([[[[10.0, 20.0]], [[30.0, 60.0]]], [[[-1.0, 0.0]], [[0.5, 1.0]]]])
    expected = [[[[0, 51]], [[102, 255]]], [[[0, 127.5]], [[191.25, 255]]]]
    torch.testing.assert_close(normalise(pictures), torch.tensor(expected))


def test_normalise_cancels_a_z_score() -> None:
    images, _ = draw_batch(2, 0, (32, 32))
    bytes_ = torch.from_numpy(images).permute(0, 3, 1, 2)
    z_score = (bytes_.float() - 149.0) / 39.3
    torch.testing.assert_close(normalise(bytes_), normalise(z_score), rtol=0, atol=1e-3)
    assert normalise(bytes_).is_contiguous()
    assert normalise(bytes_).dtype == torch.float32


@pytest.mark.parametrize("value", [0, 7, 255])
def test_normalise_of_one_value_is_zeros(value: int) -> None:
    picture = torch.full((2, 3, 4, 5), value, dtype=torch.uint8)
    assert torch.equal(normalise(picture), torch.zeros(2, 3, 4, 5))


def test_exported_norm_equals_group_norm() -> None:
    norm = nn.GroupNorm(4, 8).double()
    spread_weights(norm)
    features = 50 + random_inputs(2, 8, 6, 10).double()
    exported = for_export(norm)
    assert type(norm) is nn.GroupNorm
    assert type(exported) is not nn.GroupNorm
    torch.testing.assert_close(exported(features), norm(features))


# PVM layer


def pvm_in_a_loop(layer: PVMLayer, tokens: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The layer as the paper writes it, one branch after another."""
    groups = layer.norm(tokens).chunk(layer.branches, dim=-1)
    mixed = [layer.mixer(group, size_hw) + layer.skip_scale * group for group in groups]
    return layer.project(layer.norm(torch.cat(mixed, dim=-1)))


@pytest.mark.parametrize("mixer", MIXER_NAMES)
@pytest.mark.parametrize("branches", [1, 2, 4])
def test_branches_as_one_batch_equal_a_loop(branches: int, mixer: Any) -> None:
    layer = PVMLayer(16, 12, branches=branches, mixer=mixer)
    spread_weights(layer)
    tokens = random_inputs(3, 4 * 6, 16)
    with torch.no_grad():
        expected = pvm_in_a_loop(layer, tokens, (4, 6))
        torch.testing.assert_close(
            layer.forward_tokens(tokens, (4, 6)), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("mixer", MIXER_NAMES)
def test_forward_is_forward_tokens_in_row_order(mixer: Any) -> None:
    layer = PVMLayer(8, 12, branches=2, mixer=mixer)
    spread_weights(layer)
    features = random_inputs(2, 8, 3, 5)
    tokens = torch.stack([features[:, :, y, x] for y in range(3) for x in range(5)], dim=1)
    with torch.no_grad():
        output = layer(features)
        from_tokens = layer.forward_tokens(tokens, (3, 5))
    assert output.shape == (2, 12, 3, 5)
    for index in range(15):
        torch.testing.assert_close(output[:, :, index // 5, index % 5], from_tokens[:, index])


def test_pvm_mistakes() -> None:
    with pytest.raises(InputError, match="got 10 channels and 4 branches"):
        PVMLayer(10, 8)
    mixer: Any = "mambo"
    with pytest.raises(InputError, match=r"no mixer 'mambo'\. Choose from mamba, bidire"):
        PVMLayer(8, 8, mixer=mixer)
    with pytest.raises(InputError, match=r"Pass size_hw=\(height, width\)"):
        PVMLayer(8, 8, mixer="ss2d").forward_tokens(torch.zeros(1, 6, 8))
    with pytest.raises(InputError, match=r"no init 'Mamba'\. .* Did you mean 'mamba'"):
        PVMLayer(8, 8, init="Mamba")  # type: ignore[arg-type]
    for size in ("in_channels", "out_channels", "branches", "d_state", "d_conv", "expand"):
        for value in (0, -4, 2.0):
            with pytest.raises(InputError, match=f"{size}={value}"):
                PVMLayer(**{"in_channels": 8, "out_channels": 8, size: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"It takes \(batch, channels, height, width\)"):
        PVMLayer(8, 8)(torch.zeros(8, 6, 6))


@pytest.mark.parametrize("mixer", MIXER_NAMES)
def test_a_layer_without_memory_gets_its_values_as_torchs_own_do(mixer: Any) -> None:
    """As tools for networks too large for one machine do it: made on no device, then reset."""
    with torch.device("meta"):
        layer = PVMLayer(8, 12, branches=2, mixer=mixer)
    layer.to_empty(device="cpu")
    for part in layer.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert layer(torch.rand(1, 8, 3, 4)).isfinite().all()
    drawn = PVMLayer(8, 12, branches=2, mixer=mixer)
    torch.manual_seed(7)
    init_weights(layer.to("meta").to_empty(device="cpu"), "mamba")
    torch.manual_seed(7)
    init_weights(drawn, "mamba")
    torch.testing.assert_close(layer.state_dict(), drawn.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("mixer", "causal"), [("mamba", True), ("bidirectional", False), ("ss2d", False)]
)
def test_only_mamba_is_causal(mixer: Any, causal: bool) -> None:
    layer = PVMLayer(8, 8, branches=1, mixer=mixer)
    spread_weights(layer)
    tokens = random_inputs(1, 12, 8)
    changed = tokens.clone()
    changed[:, 7] += random_inputs(8)
    with torch.no_grad():
        before = layer.forward_tokens(tokens, (3, 4))
        after = layer.forward_tokens(changed, (3, 4))
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6) == causal
    assert not torch.allclose(before[:, 8:], after[:, 8:], atol=1e-4)


def test_bidirectional_with_tied_directions_equals_its_flip() -> None:
    layer = PVMLayer(16, 8, mixer="bidirectional")
    spread_weights(layer)
    mixer: Any = layer.mixer
    tokens = random_inputs(2, 20, 16)

    def equals_its_flip() -> bool:
        with torch.no_grad():
            flipped, expected = layer.forward_tokens(tokens.flip(1)), layer.forward_tokens(tokens)
        return torch.allclose(flipped, expected.flip(1), rtol=1e-4, atol=1e-4)

    assert not equals_its_flip()
    mixer.conv_backwards.load_state_dict(mixer.conv.state_dict())
    mixer.scan_backwards.load_state_dict(mixer.scan.state_dict())
    assert equals_its_flip()


def test_ss2d_with_tied_scans_turns_with_the_picture() -> None:
    layer = PVMLayer(16, 8, mixer="ss2d")
    spread_weights(layer)
    mixer: Any = layer.mixer
    features = random_inputs(2, 16, 5, 7)

    def turn(x: Tensor) -> Tensor:
        return x.flip(2, 3)

    def transpose(x: Tensor) -> Tensor:
        return x.transpose(2, 3)

    def mirror(x: Tensor) -> Tensor:
        return x.flip(3)

    def equivariant(change: Callable[[Tensor], Tensor]) -> bool:
        with torch.no_grad():
            changed, expected = layer(change(features)), change(layer(features))
        return torch.allclose(changed, expected, rtol=1e-4, atol=1e-4)

    assert not equivariant(turn)
    assert not equivariant(transpose)
    for scan in mixer.scans[1:]:
        scan.load_state_dict(mixer.scans[0].state_dict())
    with torch.no_grad():
        kernel = mixer.conv.weight
        kernel.copy_((kernel + kernel.flip(2, 3)) / 2)
        kernel.copy_((kernel + kernel.transpose(2, 3)) / 2)
    assert equivariant(turn)
    assert equivariant(transpose)
    assert not equivariant(mirror)  # rows read right to left are no scan of their own


def segmenter_around(layer: nn.Module) -> nn.Module:
    """A small convolutional network of somebody else's, at a quarter of the size."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2),
        nn.GELU(),
        layer,
        nn.GELU(),
        nn.Conv2d(16, 1, 1),
        nn.Upsample(scale_factor=4, mode="bilinear"),
    )


def test_pvm_layer_stands_where_a_convolution_stood() -> None:
    images, masks = draw_batch(8, 0, (64, 64))
    inputs = normalise(torch.from_numpy(images).permute(0, 3, 1, 2)) / 255
    truth = torch.from_numpy(masks)[:, None].float()
    torch.manual_seed(0)
    shape = segmenter_around(nn.Conv2d(16, 16, 3, padding=1))(inputs).shape
    layer = PVMLayer(16, 16, init="mamba")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    network = segmenter_around(layer)
    assert network(inputs).shape == shape == truth.shape

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = F.binary_cross_entropy_with_logits(network(inputs), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in layer.state_dict().items())


# Skip bridge


def test_bridge_variants_are_what_their_names_say() -> None:
    widths = (8, 4)
    skips = [random_inputs(2, 8, 6, 6), random_inputs(2, 4, 3, 3)]

    both = SkipBridge(widths, spatial=True, channel=True)
    spread_weights(both)
    assert both.spatial is not None
    assert both.channel is not None
    spatial = SkipBridge(widths, spatial=True, channel=False)
    spatial.load_state_dict(both.state_dict(), strict=False)
    channel = SkipBridge(widths, spatial=False, channel=True)
    channel.load_state_dict(both.state_dict(), strict=False)
    none = SkipBridge(widths, spatial=False, channel=False)

    maps = [both.spatial(skip) for skip in skips]
    for which, skip in enumerate(skips):
        torch.testing.assert_close(none(skips)[which], skip)
        torch.testing.assert_close(spatial(skips)[which], maps[which] * skip + skip)
        torch.testing.assert_close(channel(skips)[which], both.channel(skips)[which] * skip + skip)
    whole = [focus * skip + skip for focus, skip in zip(maps, skips, strict=True)]
    for which, skip in enumerate(skips):
        expected = both.channel(whole)[which] * whole[which] + maps[which] * skip
        torch.testing.assert_close(both(skips)[which], expected)


def test_attention_reads_every_stage_and_each_position() -> None:
    bridge = SkipBridge((8, 4), spatial=True, channel=True)
    spread_weights(bridge)
    assert bridge.channel is not None
    assert bridge.spatial is not None
    skips = [random_inputs(1, 8, 6, 6), random_inputs(1, 4, 3, 3)]
    first = bridge.channel(skips)[0]
    assert first.shape == (1, 8, 1, 1)
    assert not torch.allclose(first, bridge.channel([skips[0], skips[1] + 1])[0])

    # By hand: a convolution whose only weight is the middle one of the mean.
    with torch.no_grad():
        bridge.spatial.conv.weight.zero_()
        bridge.spatial.conv.bias.zero_()
        bridge.spatial.conv.weight[0, 0, 3, 3] = 1
    expected = torch.sigmoid(skips[0].mean(1, keepdim=True))
    torch.testing.assert_close(bridge.spatial(skips[0]), expected)
