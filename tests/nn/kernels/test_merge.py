"""The decoder's merge and the head against plain torch in float64."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.model import double


def draw(*shape: int, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(device)


def plain_merge(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, skip: Tensor, doubled: bool
) -> Tensor:
    features = F.group_norm(x.permute(0, 3, 1, 2), 4, weight, bias, eps)
    return F.gelu(double(features) if doubled else features).permute(0, 2, 3, 1) + skip


def plain_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return double(F.conv2d(x.permute(0, 3, 1, 2), weight, bias))


def gradients(result: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    # Not around zero, so that the parameters' gradients don't cancel to nothing.
    pull = draw(*result.shape, device=str(result.device), seed=7).to(result.dtype) + 1
    return [result.detach(), *torch.autograd.grad(result, inputs, pull)]


def assert_close(ours: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float) -> None:
    """Each result differs by less than ``tolerance`` of its largest value."""
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.shape == theirs.shape
        assert mine.isfinite().all()
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-3)


def compare_merge(
    x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor, doubled: bool, tolerance: float = 1e-5
) -> None:
    from ulvm.nn.kernels.merge import norm_merge

    inputs = [each.requires_grad_() for each in (x, weight, bias, skip)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    ours = norm_merge(*inputs[:3], 1e-5, inputs[3], doubled)
    plain = plain_merge(*exact[:3], 1e-5, exact[3], doubled)
    assert ours.dtype == x.dtype
    assert_close(gradients(ours, inputs), gradients(plain, exact), tolerance)


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "doubled"),
    [
        (2, 8, 8, 48, False),
        (2, 5, 7, 32, True),
        (3, 1, 1, 32, True),
        (2, 1, 3, 12, True),
        (2, 5, 16, 24, True),
        (1, 3, 2, 128, True),
        (1, 4, 4, 4, False),
    ],
)
def test_merge(
    batch: int, height: int, width: int, channels: int, doubled: bool, device: str
) -> None:
    factor = 2 if doubled else 1
    compare_merge(
        3 * draw(batch, height, width, channels, device=device) + 5,
        draw(channels, device=device),  # some are negative
        draw(channels, device=device),
        draw(batch, factor * height, factor * width, channels, device=device),
        doubled,
    )


def test_merge_of_a_large_picture(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics from partial sums, and several tiles for each program."""
    monkeypatch.setattr("ulvm.nn.kernels.merge._WHOLE", 0)
    monkeypatch.setattr("ulvm.nn.kernels.merge._PROGRAMS", 4)
    compare_merge(
        draw(2, 12, 13, 16, device=device),
        draw(16, device=device),
        draw(16, device=device),
        draw(2, 24, 26, 16, device=device),
        True,
    )


@pytest.mark.parametrize("whole", [0, 16384])
def test_merge_of_a_constant_picture(
    whole: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels of one value each, far from zero: sums of plain squares would cancel."""
    monkeypatch.setattr("ulvm.nn.kernels.merge._WHOLE", whole)
    values = 300 + torch.arange(8.0, device=device)
    compare_merge(
        values.expand(1, 20, 15, 8).contiguous(),
        draw(8, device=device),
        draw(8, device=device),
        draw(1, 20, 15, 8, device=device),
        False,
        tolerance=1e-4,
    )


def test_merge_in_bfloat16(device: str) -> None:
    x = draw(2, 8, 8, 24, device=device).bfloat16()
    skip = draw(2, 16, 16, 24, device=device).bfloat16()
    weight, bias = draw(24, device=device), draw(24, device=device)
    compare_merge(x, weight, bias, skip, True, tolerance=0.01)


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "classes"),
    [(2, 8, 12, 8, 1), (1, 7, 5, 24, 3), (2, 1, 1, 12, 2), (1, 17, 20, 8, 1)],
)
def test_head(
    batch: int, height: int, width: int, channels: int, classes: int, device: str
) -> None:
    compare_head(
        draw(batch, height, width, channels, device=device),
        draw(classes, channels, 1, 1, device=device),
        draw(classes, device=device),
    )


def compare_head(x: Tensor, weight: Tensor, bias: Tensor, tolerance: float = 1e-5) -> None:
    from ulvm.nn.kernels.merge import head_double

    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    logits = head_double(*inputs)
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert_close(gradients(logits, inputs), gradients(plain_head(*exact), exact), tolerance)


def test_head_in_bfloat16(device: str) -> None:
    x = draw(2, 8, 8, 8, device=device).bfloat16()
    compare_head(x, draw(1, 8, 1, 1, device=device), draw(1, device=device), tolerance=0.01)


def test_a_wrong_gradient_is_noticed(device: str) -> None:
    x = draw(1, 4, 4, 8, device=device)
    with pytest.raises(AssertionError):
        assert_close([x * (1 + 1e-4)], [x.double()], 1e-5)
