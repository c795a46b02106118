"""Scores of each class of masks that have several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class ClassScores:
    """Counts pixels of each class, batch after batch.

    Args:
        names: Of the classes, background first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._counts = np.zeros((3, len(names)), np.int64)  # predicted, true, both

    def add(self, predicted: npt.NDArray[np.int64], true: npt.NDArray[np.uint8]) -> None:
        """Count pictures: the numbers of classes, both (batch, height, width)."""
        for number in range(len(self.names)):
            ours, theirs = predicted == number, true == number
            self._counts[:, number] += ours.sum(), theirs.sum(), (ours & theirs).sum()

    def dice(self) -> dict[str, float]:
        """Dice of each class over all pixels; nan of one that is nowhere."""
        predicted, true, both = self._counts
        return {
            name: float(2 * both[index] / total) if total else math.nan
            for index, (name, total) in enumerate(zip(self.names, predicted + true, strict=True))
        }
