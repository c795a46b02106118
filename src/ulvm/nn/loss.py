"""What training makes small: cross-entropy plus soft Dice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.kernels.device import usable
from ulvm.nn.model import probability_of_logits


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice per picture with smoothing 1, a mean over the pictures.

    Args:
        logits: (batch, classes, height, width).
        masks: (batch, height, width); for one class float in 0..1 (soft edges are kept), for
            more int64 class labels.

    Returns:
        A scalar; 0 is perfect.

    Source: the released code's ``BceDiceLoss`` with both weights 1, for one class; the mean
    over classes of the same for more.
    """
    binary = logits.shape[1] == 1
    if binary and logits.dtype == torch.float32 and usable(logits):
        from ulvm.nn.kernels.loss import bce_dice  # needs Triton

        return bce_dice(logits, masks)
    if binary:
        truth = masks[:, None].to(logits.dtype)  # (batch, 1, height, width)
        entropy = F.binary_cross_entropy_with_logits(logits, truth)
    else:
        truth = F.one_hot(masks, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        entropy = F.cross_entropy(logits, masks)
    probability = probability_of_logits(logits)
    overlap = (probability * truth).sum(dim=(2, 3))  # (batch, classes)
    total = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return entropy + 1 - ((2 * overlap + 1) / (total + 1)).mean()


def targets_of(soft: Tensor, classes: int) -> Tensor:
    """Soft masks (batch, height, width) in 0..1 as ``segmentation_loss`` takes them.

    Class ``c`` of several has the value ``c / (classes - 1)``; what lies between two is the nearer.
    """
    return soft if classes == 1 else (soft * (classes - 1) + 0.5).long()
