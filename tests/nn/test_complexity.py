"""Costs against THOP's recorded figures, torch's own counter and counts worked by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ulvm.errors import InputError
from ulvm.nn import mamba
from ulvm.nn.complexity import Complexity, StageCost, inspect_model
from ulvm.nn.networks import build_network
from ulvm.nn.peers import PEERS
from ulvm.nn.scan import selective_scan
from ulvm.presets import PRESETS
from ulvm.spec import ModelSpec

CONVS = {"encoder": ("conv",) * 6, "decoder": ("conv",) * 5}

# What thop 0.1.1.post2209072238 returns for the released network's modules, rearranged as in
# each row, with a Mamba whose modules are not called, as mamba_ssm's fused kernel leaves them.
THOP_AT_256 = 60_240_000
THOP_AT_128: list[tuple[dict[str, Any], int]] = [
    ({}, 15_072_672),
    ({"branches": 1}, 15_072_672),
    ({"d_state": 64}, 15_072_672),
    ({"bridge": "none"}, 14_462_976),
    ({"encoder": CONVS["encoder"]}, 17_753_504),
    ({"decoder": CONVS["decoder"]}, 16_024_992),
    (CONVS, 18_705_824),
]

SPECS: list[dict[str, Any]] = [
    {},
    {"mixer": "bidirectional"},
    {"mixer": "ss2d"},
    {"bridge": "none"},
    {"bridge": "spatial"},
    {"bridge": "channel"},
    CONVS,
    {"in_channels": 4, "classes": 3, "widths": (4, 8, 12, 16, 20, 24), "branches": 2},
    {"encoder": ("conv", *("pvm",) * 5), "decoder": ("pvm",) * 5, "d_conv": 2, "expand": 3},
]

# Giga multiply-accumulates at 256×256 as the papers print them; VM-UNet's and LightM-UNet's are
# from arXiv 2403.20035.
PRINTED = {
    "vm-unet": "4.112",
    "lightm-unet": "0.391",
    "ege-unet": "0.072",
    "malunet": "0.083",
    "unext": "0.57",
    "lb-unet": "0.098",
    "aulunet": "0.069",
}


@pytest.fixture(scope="module")
def paper() -> Complexity:
    return inspect_model(ModelSpec())


def stage(costs: Complexity, name: str) -> StageCost:
    return next(each for each in costs.stages if each.name == name)


@pytest.mark.parametrize(("fields", "macs"), THOP_AT_128)
def test_paper_counting_is_thops(fields: dict[str, Any], macs: int) -> None:
    assert inspect_model(ModelSpec(**fields), (128, 128)).totals()["paper_macs"] == macs


def test_paper_counting_gives_the_printed_figure(paper: Complexity) -> None:
    assert paper.totals()["paper_macs"] == THOP_AT_256
    assert "0.060 G multiply-accumulates as the paper counts" in paper.table()


@pytest.mark.parametrize("name", PRINTED)
def test_paper_counting_gives_what_other_papers_print(name: str) -> None:
    costs = inspect_model(ModelSpec(network=name), (64, 64))
    # A sixteenth of the pixels; all that counts is of each pixel.
    giga = 16 * costs.totals()["paper_macs"] / 1e9
    decimals = len(PRINTED[name].partition(".")[2])
    assert f"{giga:.{decimals}f}" == PRINTED[name]


@pytest.mark.parametrize("fields", [*SPECS, *({"network": name} for name in PEERS)])
def test_products_are_those_of_torchs_counter(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(**fields)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(mamba, "selective_scan", lambda x, *_: x)  # it has products of its own
        with FlopCounterMode(display=False) as counter:
            build_network(spec).eval()(torch.rand(1, spec.in_channels, 64, 96))
    operations = inspect_model(spec, (64, 96)).operations()
    products = operations["convolution"] + operations.get("linear", 0)
    assert 2 * products == counter.get_total_flops()


class Counted:
    """A number that counts its products and functions; a sum goes with the product before it."""

    operations = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.value + other.value)

    def __mul__(self, other: Counted) -> Counted:
        Counted.operations += 1
        return Counted(self.value * other.value)

    def exp(self) -> Counted:
        Counted.operations += 1
        return Counted(math.exp(self.value))

    def softplus(self) -> Counted:
        Counted.operations += 1
        return Counted(math.log1p(math.exp(self.value)))


def scan_counted(x: Tensor, raw: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence for one picture, number by number, with softplus of the raw step size."""
    Counted.operations = 0
    outputs = torch.empty_like(x)
    for channel in range(x.shape[1]):
        state = [Counted(0.0) for _ in A[channel]]
        for t in range(len(x)):
            x_t, D_c = Counted(x[t, channel].item()), Counted(D[channel].item())
            delta = Counted(raw[t, channel].item()).softplus()
            driven = delta * x_t
            y = D_c * x_t
            for n in range(len(state)):
                decay = (delta * Counted(A[channel, n].item())).exp()
                state[n] = decay * state[n] + driven * Counted(B[t, n].item())
                y = y + state[n] * Counted(C[t, n].item())
            outputs[t, channel] = y.value
    return outputs


def test_scan_count_is_that_of_the_recurrence_number_by_number() -> None:
    # Encoder 6 at 64×96 has 2·3 positions; its 4 branches of 12 channels have 24 inner ones.
    length, inner, states, branches = 6, 24, 5, 4
    generator = torch.Generator().manual_seed(0)
    x, raw = torch.randn(2, length, inner, generator=generator)
    B, C = torch.randn(2, length, states, generator=generator)
    A, D = -torch.rand(inner, states, generator=generator), torch.randn(inner, generator=generator)
    y = scan_counted(x, raw, A, B, C, D)
    delta = torch.nn.functional.softplus(raw)
    torch.testing.assert_close(y, selective_scan(x[None], delta[None], A, B[None], C[None], D)[0])

    costs = inspect_model(ModelSpec(d_state=states), (64, 96))
    assert stage(costs, "encoder 6").operations["scan"] == branches * Counted.operations


def test_scans_add_up_over_the_directions() -> None:
    scans = {
        mixer: inspect_model(ModelSpec(mixer=mixer), (64, 64)).operations()["scan"]
        for mixer in ("mamba", "bidirectional", "ss2d")
    }
    assert scans["bidirectional"] == 2 * scans["mamba"]
    assert scans["ss2d"] == 4 * scans["mamba"]


def test_counts_worked_by_hand(paper: Complexity) -> None:
    pixels = 256 * 256
    assert stage(paper, "encoder 1").operations == {
        "convolution": pixels * 8 * 3 * 9,
        "normalisation": 4 * pixels * 8,
        "other": pixels * 8 + pixels // 4 * 8,  # max-pooling reads, GELU writes
    }
    tokens = 32 * 32  # 24 → 32 channels, four branches of 6 with 12 inner channels
    assert stage(paper, "encoder 4").operations == {
        "normalisation": 4 * (2 * tokens * 24 + tokens * 32),
        # in_proj, x_proj, dt_proj, out_proj; then the layer's own
        "linear": 4 * tokens * (6 * 24 + 12 * 33 + 1 * 12 + 12 * 6) + tokens * 24 * 32,
        # Causal: the last three columns are computed and cut off.
        "convolution": 4 * (tokens + 3) * 12 * 4,
        "scan": 4 * tokens * 12 * (5 * 16 + 3),
        # SiLU twice, gate, scaled skip and its sum; max-pooling, GELU
        "other": tokens * 4 * 12 * 3 + tokens * 24 * 2 + tokens * 32 + tokens // 4 * 32,
    }
    assert stage(paper, "head").operations == {
        "convolution": 128 * 128 * 8,
        "upsampling": 4 * pixels,
    }


def test_memory_worked_by_hand(paper: Complexity) -> None:
    pixels = 256 * 256
    kept = {
        "picture, for the convolution": 3 * pixels * 4,
        "convolution's output, for the norm": 8 * pixels * 4,
        "mean and scale of the four groups": 2 * 4 * 4,
        "norm's output, for the pooling": 8 * pixels * 4,
        "where the maxima were, int64": 8 * pixels // 4 * 8,
        "pooling's output, for GELU": 8 * pixels // 4 * 4,
    }
    first = stage(paper, "encoder 1")
    assert first.kept_bytes == sum(kept.values())
    assert first.output_bytes == 8 * pixels // 4 * 4

    # Without PVM the fullest moment is the first norm: picture, input, output, mean and scale.
    assert inspect_model(ModelSpec(**CONVS)).peak_bytes == (3 + 8 + 8) * pixels * 4 + 2 * 4 * 4


@pytest.mark.parametrize("network", ["ultralight-vm-unet", "unet"])
def test_kept_bytes_are_what_the_graph_holds(network: str) -> None:
    """Oracle: a walk over the graph's nodes and what each of them has saved."""
    spec = ModelSpec(network=network)  # type: ignore[arg-type]
    model = build_network(spec).eval()
    weights = {
        each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())
    }
    saved: dict[int, int] = {}
    graph = model(torch.rand(1, 3, 64, 64))
    pending, seen = [graph.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [following for following, _ in node.next_functions]
        names = [name for name in dir(node) if name.startswith("_saved_")]
        values = [getattr(node, name) for name in names] + [*getattr(node, "saved_tensors", ())]
        for value in values:
            for each in value if isinstance(value, tuple) else [value]:
                if isinstance(each, Tensor):
                    storage = each.untyped_storage()
                    saved[storage.data_ptr()] = storage.nbytes()
    kept = sum(size for address, size in saved.items() if address not in weights)
    assert inspect_model(spec, (64, 64)).totals()["kept_bytes"] == kept


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_the_presets(name: str) -> None:
    preset = PRESETS[name]
    assert inspect_model(preset.run.model, (32, 32)).totals()["parameters"] == preset.parameters


@pytest.mark.parametrize("fields", SPECS)
def test_every_network_has_its_stages_and_shapes(fields: dict[str, Any]) -> None:
    spec = ModelSpec(**fields)
    costs = inspect_model(spec, (64, 96))
    encoder, bridge = costs.stages[:6], costs.stages[6]
    decoder, head = costs.stages[7:12], costs.stages[12:]
    sizes = [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3), (2, 3)]
    shapes = [(width, *size) for width, size in zip(spec.widths, sizes, strict=True)]
    assert [each.kind for each in encoder] == list(spec.encoder)
    assert [each.output_shapes for each in encoder] == [(shape,) for shape in shapes]
    assert bridge.output_shapes == tuple(shapes[:5])
    assert [each.kind for each in decoder] == list(spec.decoder)
    assert [each.output_shapes for each in decoder] == [(shape,) for shape in shapes[4::-1]]
    assert [each.output_shapes for each in head] == [((spec.classes, 64, 96),)]
    assert (bridge.macs == 0) == (spec.bridge == "none")
    assert all(each.macs == sum(each.operations.values()) for each in costs.stages)
    assert sum(costs.operations().values()) == costs.totals()["macs"]


def test_another_network_s_stages_are_its_modules_in_order() -> None:
    costs = inspect_model(ModelSpec(network="unet"), (64, 64))
    ups = [f"{kind} {number}" for number in range(1, 5) for kind in ("enlarge", "up")]
    downs = [f"down {number}" for number in range(1, 6)]
    assert [each.name for each in costs.stages] == [*downs, *ups, "head"]
    assert stage(costs, "enlarge 1").kind == "ConvTranspose2d"
    assert stage(costs, "head").output_shapes == ((1, 64, 64),)
    pixels = 64 * 64
    assert stage(costs, "down 1").operations == {
        "convolution": pixels * (3 + 16) * 16 * 9,
        "normalisation": 2 * 2 * pixels * 16,
        "other": 3 * pixels * 16,  # ReLU twice, what max-pooling reads
    }
    # Each of 4×4 positions makes 2×2 outputs of 128 channels from 256.
    assert stage(costs, "enlarge 1").operations["convolution"] == 16 * 4 * 128 * 256


def test_json_holds_what_the_table_shows(paper: Complexity) -> None:
    plain = json.loads(json.dumps(paper.to_dict()))
    assert plain == paper.to_dict()
    assert ModelSpec.from_dict(plain["model"]) == ModelSpec()
    assert plain["size_hw"] == [256, 256]
    assert plain["totals"]["parameter_bytes"] == 4 * 49_457
    lines = paper.table().splitlines()
    for row, line in zip(plain["stages"], lines[1:], strict=False):
        assert line.startswith(row["name"])
        assert f" {row['parameters']:,} " in line
        assert f" {row['macs'] / 1e6:.3f} " in line
    assert lines[14].split()[:2] == ["total", "49,457"]


def test_inspection_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    inspect_model(ModelSpec(), (32, 32))
    assert torch.equal(torch.rand(2), expected)


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        inspect_model(ModelSpec(), (250, 256))
    with pytest.raises(InputError, match=r"[Uu]p to 4096"):
        inspect_model(ModelSpec(), (32, 8192))


def test_an_operator_without_a_count_is_no_silent_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "gelu", torch.cos)
    with pytest.raises(NotImplementedError, match="cos"):
        inspect_model(ModelSpec(), (32, 32))
