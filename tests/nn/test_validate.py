"""Validation against one picture at a time and the confusion counts of ``ulvm.metrics``."""

import numpy as np
import pytest
import torch

from ulvm.metrics import confusion
from ulvm.nn.augment import Part
from ulvm.nn.loss import segmentation_loss
from ulvm.nn.model import UltraLightVMUNet, normalise
from ulvm.nn.validate import Validation, lesion_mask
from ulvm.spec import ModelSpec
from ulvm.synthetic import draw_batch


@pytest.mark.parametrize("classes", [1, 2])
def test_validation_is_the_mean_over_pictures(classes: int) -> None:
    images, masks = draw_batch(23, 3, (32, 32))  # batches of 8, 8 and 7
    part = Part(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(masks).byte() * 255,
    )
    torch.manual_seed(0)
    network = UltraLightVMUNet(ModelSpec(classes=classes)).eval()
    with torch.no_grad():
        logits = torch.cat([network(normalise(part.images[i : i + 1])) for i in range(23)])
        if classes > 1:  # about half of the pixels
            shift = (logits[:, 0] - logits[:, 1]).median()
            network.head.bias[1] += shift
            logits[:, 1] += shift
    soft = part.masks / 255
    target = soft if classes == 1 else soft.ge(0.5).long()
    losses = [segmentation_loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(23)]
    probability = logits.sigmoid() if classes == 1 else logits.softmax(1)
    threshold = float(probability[:, 0].median())
    expected = confusion(lesion_mask(probability, threshold).numpy(), soft.ge(0.5).numpy())

    validation = Validation(network, part, threshold)
    for _ in range(2):  # nothing is carried over
        loss, counts = validation.run()
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)
        assert counts.images == 23
        for name in ("tp", "fp", "fn", "tn"):
            found, true = getattr(counts, name), getattr(expected, name)
            # Pixels at the very threshold may fall to either side.
            assert np.abs(found - true).max() <= 3, name
    assert 0.2 < (counts.tp + counts.fp).sum() / (23 * 32 * 32) < 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_recorded_validation_follows_the_weights() -> None:
    images, masks = draw_batch(80, 3, (32, 32))  # two batches
    part = Part(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().cuda(),
        torch.from_numpy(masks).byte().cuda() * 255,
    )
    network = UltraLightVMUNet().cuda()
    validation = Validation(network, part, 0.5)
    for bias in (0.0, 1.0, -1.0):
        torch.nn.init.constant_(network.head.bias, bias)
        loss, counts = validation.run()
        validation._compute()
        assert loss == float(validation._loss_sum) / 80
        lesion = counts.tp + counts.fp
        assert torch.equal(torch.from_numpy(lesion), validation._counts[0].cpu())
