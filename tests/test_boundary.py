"""Distances of outlines, against brute force."""

import numpy as np
import pytest
import scipy.spatial.distance

from made_up_predictions import SIZE, random_dataset, square
from ulvm.boundary import boundary_scores
from ulvm.image import rim


def test_boundary_of_a_square_that_touches_the_frame() -> None:
    expected = square(0, 0, 4)
    expected[1:3, 1:3] = False
    assert np.array_equal(rim(square(0, 0, 4), 1), expected)


def brute_force(mask: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[float, float]:
    def edge(m: np.ndarray) -> np.ndarray:
        """Points of the mask with a side neighbour outside."""
        inside = {(int(y), int(x)) for y, x in np.argwhere(m)}
        return np.array(
            [
                (y, x)
                for y, x in sorted(inside)
                if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= inside
            ]
        )

    distances = scipy.spatial.distance.cdist(edge(mask), edge(truth))
    there, back = distances.min(axis=1), distances.min(axis=0)
    precision, recall = np.mean(there <= tolerance), np.mean(back <= tolerance)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return f1, max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(8))
def test_boundary_scores_agree_with_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    dataset = random_dataset(2, seed)
    mask, truth = dataset.masks >= 128
    mask = mask[:, : SIZE - 4] | (generator.random((SIZE, SIZE - 4)) < 0.01)  # stray pixels
    truth = truth[:, : SIZE - 4]
    for tolerance in (0.0, 1.5, 4.0):
        expected = brute_force(mask, truth, tolerance)
        assert boundary_scores(mask, truth, tolerance) == pytest.approx(expected)


def test_boundary_scores_of_empty_masks() -> None:
    empty, full = np.zeros((3, 4), dtype=bool), np.ones((3, 4), dtype=bool)
    assert boundary_scores(empty, empty, 2) == (1.0, 0.0)
    assert boundary_scores(full, empty, 2) == (0.0, 5.0)
    assert boundary_scores(empty, full, 2) == (0.0, 5.0)
