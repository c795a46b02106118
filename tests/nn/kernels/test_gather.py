"""The gathered batch against torch's grid_sample on the normalised pictures."""

from __future__ import annotations

import pytest
import torch

from ulvm.nn import augment
from ulvm.nn.augment import Part, draw
from ulvm.nn.kernels.gather import gather_nearest


@pytest.mark.parametrize("size", [(24, 40), (32, 32)])
def test_gather_is_grid_sample(size: tuple[int, int], device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(20, 200, (5, 3, *size), dtype=torch.uint8, generator=generator)
    part = Part(images, images[:, 0].clone())
    rows = torch.tensor([3, 0, 4, 3, 1, 2, 2, 0])
    draws = draw("paper", len(rows), 3, generator)
    expected, expected_soft = augment._gather(part, rows, draws)

    operands = (part.images, part.masks, *part.stretch, rows, draws.maps)
    result, soft = gather_nearest(*(each.to(device) for each in operands))

    # Half a pixel is a tie that float32 may break either way.
    same = (result.cpu() - expected).abs().amax(1) < 1e-3
    assert same.float().mean() > 0.999
    # A GPU divides by 255 to one part in 2²³.
    torch.testing.assert_close(soft.cpu()[same], expected_soft[same], rtol=2e-7, atol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_every_picture_has_its_own_row(device: str) -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 16, 16)
    part = Part(images.contiguous(), images[:, 0].contiguous())
    low, factor = torch.zeros(4), torch.ones(4)
    maps = torch.eye(2, 3).repeat(2, 1, 1)
    operands = (part.images, part.masks, low, factor, torch.tensor([2, 1]), maps)
    result, soft = gather_nearest(*(each.to(device) for each in operands))
    assert result[0].unique().tolist() == [2]
    assert result[1].unique().tolist() == [1]
    torch.testing.assert_close(soft.cpu()[:, 0, 0], torch.tensor([2 / 255, 1 / 255]))
