"""Validation on the device: loss and confusion counts, read once when all is done."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ulvm.metrics import Confusion
from ulvm.nn.augment import Part
from ulvm.nn.graph import record
from ulvm.nn.loss import segmentation_loss, targets_of
from ulvm.nn.model import probability_of_logits

# Pictures at once, at most; any number gives the same loss and counts.
BATCH = 10
CUDA_BATCH = 75


class Validation:
    """Scores a network on a part's pictures, in float32 whatever it is trained in.

    On CUDA the whole of it is one graph.

    Args:
        model: The network; its parameters may change between runs, in place.
        part: The pictures.
        threshold: A pixel is lesion where the probability is at least this, 0..1.
    """

    def __init__(self, model: nn.Module, part: Part, threshold: float) -> None:
        self.model = model
        self.part = part
        self.threshold = threshold
        device = part.images.device
        batches = -(-len(part) // (CUDA_BATCH if device.type == "cuda" else BATCH))
        # As equal as possible, so that there are few shapes.
        self._batches = torch.arange(len(part), device=device).tensor_split(batches)
        self._loss_sum = torch.zeros((), device=device)
        # Predicted lesion, true lesion, both: pixels of each picture.
        self._counts = torch.zeros(3, len(part), dtype=torch.int64, device=device)
        model.eval()
        self._work = self._compute
        if device.type == "cuda":
            self._work = record(self._compute, [self._loss_sum, self._counts])

    def run(self) -> tuple[float, Confusion]:
        """Mean loss over the pictures and their confusion counts."""
        self.model.eval()
        self._work()
        predicted, true, both = self._counts.cpu().numpy()
        pixels = self.part.masks[0].numel()
        counts = Confusion(
            tp=both, fp=predicted - both, fn=true - both, tn=pixels - predicted - true + both
        )
        return float(self._loss_sum) / len(self.part), counts

    @torch.no_grad()
    def _compute(self) -> None:
        self._loss_sum.zero_()
        for rows in self._batches:
            images = self.part.normalised(rows)
            soft = self.part.soft_masks(rows)
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
            targets = targets_of(soft, logits.shape[1])
            loss = segmentation_loss(logits, targets)
            self._loss_sum += loss * len(rows)
            lesion = lesion_mask(probability_of_logits(logits), self.threshold)
            truth = soft.ge(0.5) if logits.shape[1] == 1 else targets.gt(0)
            counts = torch.stack([lesion, truth, lesion & truth]).sum(dim=(2, 3))  # (3, batch)
            self._counts.index_copy_(1, rows, counts)


def lesion_mask(probability: Tensor, threshold: float) -> Tensor:
    """(batch, classes, height, width) in 0..1 → bool (batch, height, width), foreground."""
    if probability.shape[1] == 1:
        return probability[:, 0] >= threshold
    return probability.argmax(dim=1) > 0
