"""The loss, worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from ulvm.nn.loss import segmentation_loss


def test_loss_of_one_class_worked_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)]]]])  # probabilities ½ and ¾
    mask = torch.tensor([[[0.0, 1.0]]])
    entropy = (-math.log(0.5) - math.log(0.75)) / 2
    dice = (2 * 0.75 + 1) / (0.5 + 0.75 + 1 + 1)
    assert segmentation_loss(logits, mask).item() == pytest.approx(entropy + 1 - dice)


def test_loss_of_two_classes_is_lowest_for_the_truth() -> None:
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    right = F.one_hot(labels, 3).movedim(-1, 1) * 50.0
    assert segmentation_loss(right, labels).item() == pytest.approx(0, abs=1e-3)
    assert segmentation_loss(right.roll(1, dims=1), labels).item() > 10


@pytest.mark.parametrize("classes", [1, 3])
def test_loss_is_the_mean_of_the_pictures_losses(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, classes, 8, 8, generator=generator)
    masks = torch.rand(5, 8, 8, generator=generator)
    if classes > 1:
        masks = (masks * classes).long()
    each = [segmentation_loss(logits[i : i + 1], masks[i : i + 1]) for i in range(5)]
    assert segmentation_loss(logits, masks).item() == pytest.approx(sum(each).item() / 5)
