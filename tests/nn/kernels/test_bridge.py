"""The fused skip bridge against plain torch in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_errors import assert_sees_each_error, errors
from ulvm.nn.kernels.bridge import bridge
from ulvm.nn.kernels.bridge_layout import TILE, lay_out

WIDTHS = (8, 16, 24, 32, 48)


@dataclass
class Case:
    """Skips and parameters, in the order of ``bridge``'s arguments."""

    skips: list[Tensor]
    spatial: list[Tensor]
    conv: list[Tensor]
    heads: list[Tensor]

    def leaves(self) -> list[Tensor]:
        return [*self.skips, *self.spatial, *self.conv, *self.heads]

    def of_leaves(self, leaves: Sequence[Tensor]) -> "Case":
        """The same with other numbers, in the order of ``leaves``."""
        rest = iter(leaves)
        parts = (self.skips, self.spatial, self.conv, self.heads)
        return Case(*([next(rest) for _ in part] for part in parts))

    def as_function(self, work: "Callable[[Case], list[Tensor]]") -> Callable[..., list[Tensor]]:
        """What ``work`` makes of a case, as a function of its leaves."""
        return lambda *leaves: work(self.of_leaves(leaves))


def draw(
    shapes: Sequence[tuple[int, int, int]],
    device: str,
    *,
    batch: int = 2,
    spatial: bool = True,
    channel: bool = True,
) -> Case:
    """Random skips (height, width, channels) with parameters large enough to matter."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random) * scale).to(device)

    total = sum(channels for *_, channels in shapes)
    heads = [normal(channels, total, scale=0.5) for *_, channels in shapes]
    heads += [normal(channels) for *_, channels in shapes]
    return Case(
        skips=[normal(batch, *shape) for shape in shapes],
        spatial=[normal(1, 2, 7, 7, scale=0.3), normal(1)] if spatial else [],
        conv=[normal(1, 1, 3)] if channel else [],
        heads=heads if channel else [],
    )


def halving(size: int, widths: Sequence[int] = WIDTHS) -> list[tuple[int, int, int]]:
    """The skips' shapes of a picture of ``size`` × ``size``."""
    return [(max(size >> depth, 1),) * 2 + (width,) for depth, width in enumerate(widths, 1)]


def fused(case: Case) -> list[Tensor]:
    stages = len(case.skips)
    weight, bias = case.spatial or (None, None)
    conv = case.conv[0] if case.conv else None
    heads = (case.heads[:stages], case.heads[stages:]) if case.heads else (None, None)
    return bridge(case.skips, weight, bias, conv, *heads)


def plain(case: Case) -> list[Tensor]:
    """The formulas of ``SkipBridge``, channels last."""
    attended = residual = case.skips
    if case.spatial:
        maps = [torch.stack([x.mean(3), x.amax(3)], 1) for x in case.skips]
        attention = [F.conv2d(each, *case.spatial, padding=9, dilation=3) for each in maps]
        pairs = list(zip(attention, case.skips, strict=True))
        attended = [torch.sigmoid(each[:, 0, :, :, None]) * x for each, x in pairs]
        residual = [focus + x for focus, x in zip(attended, case.skips, strict=True)]
    if not case.conv:
        return residual
    means = torch.cat([each.mean((1, 2)) for each in residual], 1)
    means = F.conv1d(means[:, None], case.conv[0], padding=1)[:, 0]
    stages = len(case.skips)
    heads = zip(case.heads[:stages], case.heads[stages:], strict=True)
    weights = [torch.sigmoid(F.linear(means, *head))[:, None, None] for head in heads]
    triples = zip(weights, residual, attended, strict=True)
    return [weight * whole + focus for weight, whole, focus in triples]


def differences(case: Case, skip_dtype: torch.dtype | None = None) -> list[float]:
    """Errors of each value, then of each leaf's gradient, the skips rounded for both."""
    case.skips = [skip.to(skip_dtype or skip.dtype) for skip in case.skips]
    functions = case.as_function(fused), case.as_function(plain)
    return errors(*functions, case.leaves(), least_number=1.0)


@pytest.mark.parametrize(("spatial", "channel"), [(True, True), (True, False), (False, True)])
def test_values_and_all_gradients(device: str, spatial: bool, channel: bool) -> None:
    widths = WIDTHS if spatial and channel else (8, 24)
    case = draw(halving(8, widths), device, spatial=spatial, channel=channel)
    assert max(differences(case)) < 1e-5


def test_odd_sizes_and_widths(device: str) -> None:
    shapes = [(11, 18, 12), (3, 5, 24)]
    assert max(differences(draw(shapes, device, batch=3))) < 1e-5


def test_equal_maxima_share_the_gradient(device: str) -> None:
    case = draw(halving(8, (8, 12)), device)
    case.skips[0] = torch.ones_like(case.skips[0])  # a constant picture
    case.skips[1][..., 3] = case.skips[1][..., 7] = 4.0  # two of twelve
    assert max(differences(case)) < 1e-5


def test_low_precision_skips(device: str) -> None:
    case = draw(halving(8, (8, 24)), device)
    assert max(differences(case, torch.bfloat16)) < 0.02


def test_the_comparison_catches_a_wrong_gradient(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = draw(halving(8, (8, 4)), device)
    amax = Tensor.amax
    monkeypatch.setattr(Tensor, "amax", lambda x, dim: amax(x, dim).detach())
    found = differences(case)
    stages = len(case.skips)
    assert max(found[:stages]) < 1e-5  # the values agree
    assert max(found[stages : 2 * stages]) > 1e-3


def test_the_comparison_sees_each_wrong_result(device: str) -> None:
    case = draw([(4, 4, 4), (2, 2, 8)], device)
    fast, exact = case.as_function(fused), case.as_function(plain)
    assert_sees_each_error(fast, exact, case.leaves(), 1e-5, values=2)


def test_results_repeat_bit_by_bit(device: str) -> None:
    case = draw(halving(8, (8, 24)), device)
    leaves = [each.requires_grad_() for each in case.leaves()]
    once, again = (fused(case) for _ in range(2))
    slopes = [torch.randn_like(each) for each in once]
    for results in (once, again):
        results += torch.autograd.grad(results, leaves, slopes)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_without_attention_skips_pass_unchanged() -> None:
    skips = [torch.ones(1, 2, 2, 4)]
    assert bridge(skips, None, None, None, None, None)[0] is skips[0]


def test_blocks_cover_every_pixel_once() -> None:
    layout = lay_out(tuple(halving(256)))
    for stage in layout.stages:
        pixels = stage.height * stage.width
        assert (stage.blocks - 1) * stage.pixels < pixels <= stage.blocks * stage.pixels
        assert stage.pixels * stage.padded == TILE
    assert sum(stage.blocks for stage in layout.stages) == layout.blocks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter is too slow")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_full_size(device: str, dtype: torch.dtype | None) -> None:
    tolerance = 2e-5 if dtype is None else 0.02
    assert max(differences(draw(halving(256), device, batch=8), dtype)) < tolerance
