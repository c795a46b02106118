"""Peers: published counts, finite gradients, oracles of their layers, the same in ONNX Runtime."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ulvm.errors import InputError
from ulvm.nn.export import build_onnx
from ulvm.nn.model import PictureToProbability, PVMLayer
from ulvm.nn.peers import (
    PEERS,
    aulunet,
    build_peer,
    count_parameters,
    ege_unet,
    ultralbm_unet,
    unext,
    vm_unet,
)
from ulvm.nn.peers.blocks import ChannelNorm
from ulvm.onnx import onnxruntime
from ulvm.reproduce.experiments import published, published_parameters
from ulvm.spec import DataSpec, ModelSpec, RunSpec

SIZE = 64


def draw_peer(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_peer(name)


@pytest.mark.parametrize("name", PEERS)
def test_peer_has_its_published_count_and_learns(name: str) -> None:
    peer, network = PEERS[name], draw_peer(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == peer.parameters
    if (printed := published_parameters(name)) is not None:  # papers print thousands
        as_published = count_parameters(network, peer.uncounted)
        assert as_published == pytest.approx(printed, rel=0.01, abs=500)

    pictures = torch.rand(2, 3, SIZE, SIZE) * 255
    pictures[..., : SIZE // 2] = 0  # the black corners of a dermatoscope
    logits = network(pictures)
    assert logits.shape == (2, 1, SIZE, SIZE)
    logits.square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.norm() < 1e4, key  # infinite or not a number is not
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_built_without_memory(name: str) -> None:
    """As reading its weights does, to know their shapes."""
    with torch.device("meta"):
        network = build_peer(name)
    assert sum(each.numel() for each in network.parameters()) == PEERS[name].parameters


def test_the_paper_s_savings_follow_from_the_counts() -> None:
    ours = published_parameters("paper")
    assert ours == 0.049e6
    saved = {row["preset"]: row["share"] for row in published()["parameters_saved"]}
    assert saved == {
        name: pytest.approx(1 - ours / PEERS[name].parameters, abs=2e-4)
        for name in ("vm-unet", "lightm-unet")
    }


# Input and output widths of the convolutions that a PVM layer replaces.
DEEP = {
    "unet": [(64, 128), (128, 128), (128, 256), (256, 256), (256, 128), (128, 128)],
    "unext": [(32, 128), (256, 160), (160, 128), (128, 32)],
}
DEEP_BIAS = {"unet": 0, "unext": 1}


def pvm_parameters(before: int, after: int) -> int:
    """Of a PVM layer with four branches, written out."""
    group, inner, rank, state = before // 4, before // 2, math.ceil(before / 64), 16
    mamba = group * 2 * inner + inner * (4 + 1) + inner * (rank + 2 * state)
    mamba += rank * inner + inner + inner * state + inner + inner * group
    return 2 * before + mamba + 1 + before * after + after


@pytest.mark.parametrize("name", DEEP)
def test_pvm_layers_stand_for_the_deep_convolutions(name: str) -> None:
    expected = PEERS[name].parameters
    for before, after in DEEP[name]:
        expected += pvm_parameters(before, after)
        expected -= 9 * before * after + DEEP_BIAS[name] * after
    assert PEERS[f"{name}-pvm"].parameters == expected
    layers = [part for part in draw_peer(f"{name}-pvm").modules() if isinstance(part, PVMLayer)]
    found = [(layer.project.in_features, layer.project.out_features) for layer in layers]
    assert sorted(found) == sorted(DEEP[name])
    assert {layer.branches for layer in layers} == {4}


@pytest.mark.parametrize("name", ["unext-s", "lb-unet", "aulunet"])
def test_onnx_runtime_gives_what_torch_gives(name: str) -> None:
    assert_exports_as_torch(name, SIZE)


def test_both_ways_of_the_scan_export_for_any_number_of_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Scans of few steps in two layers, not four, for the exporter takes its time over each.
    monkeypatch.setattr(ultralbm_unet.UltraLBMUNet, "SCANNED", (0, 0, 2))
    assert_exports_as_torch("ultralbm-unet-student", 32)


def assert_exports_as_torch(name: str, size: int) -> None:
    run = RunSpec(model=ModelSpec(network=name), data=DataSpec(image_size=size))
    module = PictureToProbability(draw_peer(name).eval()).eval()
    session = onnxruntime.InferenceSession(build_onnx(module, run, {}))
    pictures = torch.randint(256, (3, size, size, 3), dtype=torch.uint8)
    (found,) = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, module(pictures).numpy(), atol=1e-3)


def test_unknown_peers_and_sizes_say_what_is_accepted() -> None:
    with pytest.raises(InputError, match=r"no peer 'segnet'.*ege-unet"):
        build_peer("segnet")
    with pytest.raises(InputError, match="multiples of 32"):
        build_peer("unext-s")(torch.zeros(1, 3, 64, 80))


def test_count_leaves_out_a_layer_s_own_parameters_only() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.GroupNorm(1, 3))
    assert count_parameters(network) == 9 + 6
    assert count_parameters(network, (nn.GroupNorm, nn.Sequential)) == 9


def test_channel_norm_is_layer_norm_over_channels() -> None:
    norm = ChannelNorm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = torch.randn(2, 5, 3, 4)
    expected = F.layer_norm(features.movedim(1, 3), (5,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(norm(features), expected.movedim(3, 1))


def test_shift_moves_five_groups_and_lets_zeros_in() -> None:
    row = torch.tensor([1.0, 2, 3, 4])
    shifted = unext._shift(row.expand(1, 5, 2, 4), 3, (-2, -1, 0, 1, 2))
    expected = [[3, 4, 0, 0], [2, 3, 4, 0], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert shifted[0, :, 0].tolist() == shifted[0, :, 1].tolist() == expected
    columns = unext._shift(row[:, None].expand(1, 5, 4, 2), 2, (-2, -1, 0, 1, 2))
    assert columns[0, :, :, 0].tolist() == expected


def test_patches_merge_and_expand_in_place() -> None:
    """Each 2×2 cell becomes one token and back; pixel_shuffle is the oracle."""
    picture = torch.randn(1, 6, 8, 3)  # (batch, height, width, channels)
    merge = vm_unet.PatchMerging(3)
    merge.project = nn.Identity()
    cells = F.pixel_unshuffle(picture.movedim(3, 1), 2).unflatten(1, (3, 2, 2))
    # (batch, channels, down, right, …) → right, then down, then channels
    tokens = cells.permute(0, 4, 5, 3, 2, 1).flatten(3)
    torch.testing.assert_close(merge(picture), merge.norm(tokens))

    expand = vm_unet.PatchExpanding(4, 2)
    tokens = torch.randn(1, 3, 5, 4)
    cells = expand.expand(tokens).unflatten(3, (2, 2, 2)).movedim(5, 3).flatten(3)
    planes = F.pixel_shuffle(cells.movedim(3, 1), 2)
    torch.testing.assert_close(expand(tokens), expand.norm(planes.movedim(1, 3)))


def test_a_dropped_residual_leaves_the_picture_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    block = vm_unet.VSSBlock(8, drop=0.5)
    nn.init.ones_(block.mixer.out_proj.weight)
    block.mixer.forward = lambda tokens, size_hw: torch.ones_like(tokens)
    change = block.train()(torch.zeros(4000, 1, 1, 8))[:, 0, 0, 0]
    assert set(change.tolist()) == {0.0, 2.0}
    assert change.mean() == pytest.approx(1, abs=0.1)
    assert (block.eval()(torch.zeros(3, 1, 1, 8)) == 1).all()


def test_hadamard_attention_weighs_rows_and_columns() -> None:
    """With every mixing layer made an identity, the weights are the resized lines themselves."""
    attention = ege_unet.HadamardAttention(8, 8)
    attention.norm_in = attention.norm_out = attention.project = nn.Identity()
    for part in (attention.plane, attention.rows, attention.columns):
        part.mix = nn.Identity()
    attention.convolve = nn.Identity()
    line = torch.linspace(0, 7, 8)
    attention.rows.line.data = line.expand(1, 2, 8)
    attention.columns.line.data = 10 * line.expand(1, 2, 8)
    with torch.no_grad():
        weighed = attention(torch.ones(1, 8, 15, 29))[0]
    assert (weighed[:2] == 1).all()
    torch.testing.assert_close(weighed[2], torch.linspace(0, 7, 15)[:, None].expand(15, 29))
    torch.testing.assert_close(weighed[4], torch.linspace(0, 70, 29).expand(15, 29))
    assert (weighed[6:] == 1).all()


def test_kernel_fusion_goes_from_the_wide_to_the_near_kernel() -> None:
    fusion = aulunet.KernelFusion(3)
    fusion.mix = nn.Identity()
    fusion.weigh.weight.data.zero_()
    features = torch.randn(2, 3, 8, 8)
    taps = [
        F.conv2d(features, part.weight, None, 1, part.dilation, part.dilation, 3)
        for part in (fusion.wide, fusion.near)
    ]
    for bias, expected in ((-100.0, taps[0]), (100.0, taps[1]), (0.0, (taps[0] + taps[1]) / 2)):
        fusion.weigh.bias.data.fill_(bias)
        torch.testing.assert_close(fusion(features), expected)
    assert not torch.allclose(*taps)


def test_gates_and_means_weigh_what_they_get() -> None:
    gate, bottom = aulunet.SkipGate(3), aulunet.GlobalFusion(3)
    features, skip = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for bias, share in ((-100.0, 0), (0.0, 0.5), (100.0, 1)):
        gate.gate[1].weight.data.zero_()
        gate.gate[1].bias.data.fill_(bias)
        torch.testing.assert_close(gate(features, skip), features + share * skip)
    bottom.weigh.weight.data = 100 * torch.eye(3)[:, :, None, None]
    ones = torch.ones(1, 3, 4, 4) * torch.tensor([1.0, -1, 0])[:, None, None]
    torch.testing.assert_close(bottom(ones), ones * torch.tensor([2.0, 0, 1])[:, None, None])


@pytest.mark.parametrize("scanned", [0, 2])
def test_quarters_go_their_four_ways(scanned: int) -> None:
    """Quarter by quarter as the paper writes it, each with a convolution or Mamba of its own."""
    torch.manual_seed(0)
    layer = ultralbm_unet.MultiBranch(16, 16, kernel=5, scanned=scanned)
    layer.norm = layer.project = nn.Identity()
    layer.skip_scale.data.fill_(0.7)
    for norm in (layer.convolve[1], layer.convolve[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    features = torch.randn(2, 16, 6, 7)
    ways = []
    for number, quarter in enumerate(features.chunk(4, dim=1)):
        if number < scanned:
            tokens = quarter.flatten(2).transpose(1, 2)
            mixed = layer.mixer(tokens) + layer.mixer(tokens.flip(1)).flip(1)
            way = mixed.transpose(1, 2).unflatten(2, (6, 7))
        elif number == 3:
            way = quarter
        else:
            own = slice(4 * (number - scanned), 4 * (number - scanned) + 4)
            depthwise, first, _, pointwise, second, _ = layer.convolve
            way = F.conv2d(quarter, depthwise.weight[own], padding=2, groups=4)
            way = F.gelu(F.batch_norm(way, None, None, first.weight[own], first.bias[own], True))
            way = F.conv2d(way, pointwise.weight[own])
            way = F.gelu(F.batch_norm(way, None, None, second.weight[own], second.bias[own], True))
        ways.append(way + 0.7 * quarter)
    torch.testing.assert_close(layer(features), torch.cat(ways, dim=1))
