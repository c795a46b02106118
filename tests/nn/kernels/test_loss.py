"""The fused loss against the plain one in float64."""

import pytest
import torch
from torch import Tensor

from ulvm.nn.loss import segmentation_loss


def compare(logits: Tensor, masks: Tensor, truth: Tensor) -> None:
    """Value and gradient of the fused loss against float64 ones, to 1e-5 of the largest."""
    from ulvm.nn.kernels.loss import bce_dice

    logits.requires_grad_()
    exact_logits = logits.detach().double().requires_grad_()
    loss = bce_dice(logits, masks)
    (3 * loss).backward()
    exact = segmentation_loss(exact_logits, truth)
    (3 * exact).backward()
    assert loss.shape == ()
    torch.testing.assert_close(loss.detach().double(), exact.detach(), rtol=1e-5, atol=1e-6)
    assert logits.grad is not None
    assert exact_logits.grad is not None
    error = (logits.grad - exact_logits.grad).abs().max()
    assert error < 1e-5 * exact_logits.grad.abs().max()


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
