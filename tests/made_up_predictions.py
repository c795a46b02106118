"""Drawn data sets whose prediction is known: the red channel holds the probability."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SIZE = 32


@dataclass(frozen=True)
class DrawnDataset:
    """Pictures whose red channel holds the probability that `from_red` reads back."""

    name: str
    ids: list[str]
    images: np.ndarray
    masks: np.ndarray
    classes: tuple[str, ...] = ()

    def indices(self, ids: Iterable[str]) -> np.ndarray:
        return np.array([self.ids.index(id_) for id_ in ids])


def from_red(images: np.ndarray) -> np.ndarray:
    return (images[..., 0].astype(np.float32) / 255)[:, None]  # (batch, 1, size, size)


def dataset_of(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> DrawnDataset:
    """A data set from predictions 0..1 and bool truths."""
    red = np.round(np.stack(predictions).astype(np.float64) * 255).astype(np.uint8)
    return DrawnDataset(
        name="drawn",
        ids=[f"case-{i:03d}" for i in range(len(red))],
        images=np.stack([red, red // 2, red // 3], axis=-1),
        masks=np.stack(truths).astype(np.uint8) * 255,
    )


def square(top: int, left: int, side: int, size: int = SIZE) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def random_dataset(cases: int, seed: int = 0) -> DrawnDataset:
    """Discs, the prediction a blurred disc a little off."""
    generator = np.random.default_rng(seed)
    y, x = np.indices((SIZE, SIZE))
    predictions, truths = [], []
    for _ in range(cases):
        row, column, radius = generator.uniform([8, 8, 2], [24, 24, 10])
        off = generator.uniform(-3, 3, size=2)
        truths.append(np.hypot(y - row, x - column) < radius)
        distance = np.hypot(y - row - off[0], x - column - off[1]) - radius
        predictions.append(1 / (1 + np.exp(distance)))
    return dataset_of(predictions, truths)
