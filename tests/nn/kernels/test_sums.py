"""Sums of partials against torch's."""

import pytest
import torch

from ulvm.nn.kernels.sums import sum_partials


@pytest.mark.parametrize("shapes", [[(1, 1)], [(300, 5), (7, 40)], [(3, 16)] * 5])
def test_sums(shapes: list[tuple[int, int]], device: str) -> None:
    torch.manual_seed(0)
    partials = [torch.randn(shape, device=device) for shape in shapes]
    for result, partial in zip(sum_partials(*partials), partials, strict=True):
        torch.testing.assert_close(result, partial.double().sum(0).float())
