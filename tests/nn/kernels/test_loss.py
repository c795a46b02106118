"""The fused loss against the plain one in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from kernel_errors import Function, assert_sees_each_error, errors
from ulvm.nn.loss import segmentation_loss


def losses(masks: Tensor, truth: Tensor) -> tuple[Function, Function]:
    """The fused and the plain loss as functions of the logits."""
    from ulvm.nn.kernels.loss import bce_dice

    return partial(bce_dice, masks=masks), partial(segmentation_loss, masks=truth)


def compare(logits: Tensor, masks: Tensor, truth: Tensor) -> None:
    """Value and gradient of the fused loss against float64 ones, to 1e-5 of the largest."""
    fused, plain = losses(masks, truth)
    assert max(errors(fused, plain, [logits])) < 1e-5


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 64, 96), (35, 32, 64)])
def test_matches_the_plain_loss(batch: int, height: int, width: int, device: str) -> None:
    generator = torch.Generator().manual_seed(batch)
    logits = torch.randn(batch, 1, height, width, generator=generator).mul(4).to(device)
    masks = torch.rand(batch, height, width, generator=generator).to(device)
    compare(logits, masks, masks.double())


def test_bytes_are_scaled(device: str) -> None:
    masks = torch.randint(0, 256, (2, 32, 32), dtype=torch.uint8).to(device)
    compare(torch.randn(2, 1, 32, 32).to(device), masks, masks.double() / 255)


@pytest.mark.parametrize("logit", [-200.0, -20.0, 20.0, 200.0])
def test_extreme_logits(logit: float, device: str) -> None:
    masks = torch.zeros(2, 32, 32, device=device)
    masks[1, :16] = 1.0
    compare(torch.full((2, 1, 32, 32), logit, device=device), masks, masks.double())


def test_same_bits_again(device: str) -> None:
    from ulvm.nn.kernels.loss import bce_dice

    logits, masks = torch.randn(2, 1, 64, 64).to(device), torch.rand(2, 64, 64).to(device)
    assert torch.equal(bce_dice(logits, masks), bce_dice(logits, masks))


def test_comparison_sees_each_wrong_result(device: str) -> None:
    masks = torch.rand(2, 32, 32).to(device)
    assert_sees_each_error(*losses(masks, masks.double()), [torch.randn(2, 1, 32, 32).to(device)])
