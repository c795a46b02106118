"""The decoder's merge and the head against plain torch in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_errors import Function, assert_sees_each_error, errors
from ulvm.nn.model import double

EPS = 1e-5
# Sums of parameters' gradients would cancel to nothing; so do those of a constant picture.
SCALES = {"lean": 1.0, "floor": 1e-3}


def draw(*shape: int, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(device)


def plain_merge(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor, doubled: bool) -> Tensor:
    features = F.group_norm(x.permute(0, 3, 1, 2), 4, weight, bias, EPS)
    return F.gelu(double(features) if doubled else features).permute(0, 2, 3, 1) + skip


def plain_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return double(F.conv2d(x.permute(0, 3, 1, 2), weight, bias))


def merges(doubled: bool) -> tuple[Function, Function]:
    """The kernel and the plain merge of x, weight, bias and skip."""
    from ulvm.nn.kernels.merge import norm_merge

    def fast(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
        return norm_merge(x, weight, bias, EPS, skip, doubled)

    return fast, partial(plain_merge, doubled=doubled)


def compare_merge(
    x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor, doubled: bool, tolerance: float = 1e-5
) -> None:
    assert max(errors(*merges(doubled), [x, weight, bias, skip], **SCALES)) <= tolerance


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
    compare_merge(x, weight, bias, skip, True, tolerance=2 * torch.finfo(x.dtype).eps)


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

    inputs = [x, weight, bias]
    found = errors(head_double, plain_head, inputs, dtype=torch.float32, **SCALES)
    assert max(found) <= tolerance
    assert head_double(*inputs).is_contiguous()


def test_head_in_bfloat16(device: str) -> None:
    x = draw(2, 8, 8, 8, device=device).bfloat16()
    compare_head(x, draw(1, 8, 1, 1, device=device), draw(1, device=device), tolerance=0.01)


def test_comparisons_see_each_wrong_result(device: str) -> None:
    from ulvm.nn.kernels.merge import head_double

    x, weight, bias = (draw(*shape, device=device) for shape in ((1, 4, 4, 8), (8,), (8,)))
    inputs = [x, weight, bias, draw(1, 8, 8, 8, device=device)]
    assert_sees_each_error(*merges(doubled=True), inputs)
    inputs = [x, draw(2, 8, 1, 1, device=device), draw(2, device=device)]
    assert_sees_each_error(head_double, plain_head, inputs)
