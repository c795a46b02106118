"""mask.c: against scipy, and the rule in examples made by hand."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from ulvm.engine import clean_probability

THRESHOLD = 0.5


def clean(rows: str) -> list[str]:
    """The cleaned mask of a drawing: # is lesion."""
    drawn = np.array([[0.9 if mark == "#" else 0.1 for mark in row] for row in rows.split()])
    mask = clean_probability(drawn.astype(np.float32), THRESHOLD) >= THRESHOLD
    return ["".join("#" if value else "." for value in row) for row in mask]


def by_scipy(probability: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """The same rule in scipy."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is the oracle")
    mask = probability >= np.float32(threshold)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count:
        areas = np.bincount(labels.ravel())
        areas[0] = 0
        mask &= (areas * 4 >= areas.max())[labels]
    return np.asarray(ndimage.binary_fill_holes(mask))


def test_specks_below_a_quarter_go_and_a_quarter_stays() -> None:
    assert clean("##...# ##.... ......") == ["##...#", "##....", "......"]
    assert clean("###..# ##.... ...... ......") == ["###...", "##....", "......", "......"]


def test_a_corner_joins_parts_but_not_holes() -> None:
    assert clean("####. ####. ....#") == ["####.", "####.", "....#"]
    # The background inside meets that outside at a corner only: a hole.
    assert clean("####. #..#. #..#. ###.. .....") == ["####.", "####.", "####.", "###..", "....."]
    ring = "##### #...# #.#.# #...# #####"
    assert clean(ring) == ["#####"] * 5
    assert clean("####. #..#. #.... ####.") == ["####.", "#..#.", "#....", "####."]  # a bay


def test_a_hole_of_the_frame_is_none_and_empty_stays_empty() -> None:
    assert clean("#.# #.# ###") == ["#.#", "#.#", "###"]
    assert clean("... ...") == ["...", "..."]
    assert clean("#") == ["#"]
    assert clean("## ##") == ["##", "##"]


def test_what_stays_keeps_its_probability() -> None:
    probability = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    before = probability.copy()
    cleaned = clean_probability(probability, THRESHOLD)
    assert (probability == before).all()
    assert set(np.unique(cleaned[cleaned != probability])) <= {0, 1}


@pytest.mark.parametrize("seed", range(12))
def test_as_scipy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_hw = tuple(rng.integers(1, 90, 2)) if seed else (256, 256)
    coarse = rng.random((9, 9))
    probability = np.kron(coarse, np.ones((29, 29)))[: size_hw[0], : size_hw[1]]
    probability = (probability * 0.7 + 0.3 * rng.random(probability.shape)).astype(np.float32)
    threshold = float(rng.uniform(0.3, 0.8))
    cleaned = clean_probability(probability, threshold)
    np.testing.assert_array_equal(
        cleaned >= np.float32(threshold), by_scipy(probability, threshold)
    )


@pytest.mark.parametrize("kind", ["comb", "spiral", "checks", "noise"])
def test_the_worst_patterns_take_linear_time(kind: str) -> None:
    """Deep joins: a part whose runs meet late, and as many runs as there can be."""
    size = 1024
    y, x = np.mgrid[:size, :size]
    mask = {
        "comb": (x % 2 == 0) | (y == size - 1),
        "spiral": (np.hypot(x - 500, y - 500) + 4 * np.arctan2(y - 500, x - 500)) % 25 < 9,
        "checks": (x + y) % 2 == 0,
        "noise": np.random.default_rng(3).random((size, size)) < 0.6,
    }[kind]
    probability = np.where(mask, np.float32(0.9), np.float32(0.1))
    began = time.perf_counter()
    cleaned = clean_probability(probability, THRESHOLD)
    assert time.perf_counter() - began < 2
    np.testing.assert_array_equal(cleaned >= THRESHOLD, by_scipy(probability, THRESHOLD))
