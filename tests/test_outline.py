"""Outlines along pixels' edges: worked by hand, and back to the mask they came from."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ulvm.outline import find_polygons, flatten, polygons
from ulvm.synthetic import draw_lesion

RANDOM = np.random.default_rng(0)


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def fill(rings: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies in an odd number of rings."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros(size_hw, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crossed = (np.minimum(y0, y1) < y) & (y < np.maximum(y0, y1))
                inside ^= crossed & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_one_pixel_is_a_square_clockwise() -> None:
    (found,) = polygons(mask_of("...", ".#.", "..."))
    assert sorted(map(tuple, found)) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert area(found) == 1
    assert sorted(flatten(found)) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_corners_are_kept_only_where_the_outline_turns() -> None:
    (found,) = polygons(mask_of("###", "#..", "#.."))
    assert len(found) == 6


def test_pieces_that_touch_at_a_corner_are_apart_and_the_largest_is_first() -> None:
    found = polygons(mask_of("##..", "##..", "..#.", "...."))
    assert [len(each) for each in found] == [4, 4]
    assert found[0].max() == 2
    assert found[1].min() == 2


def test_a_hole_is_told_apart_and_runs_the_other_way_round() -> None:
    (found,) = find_polygons(mask_of("####", "#.##", "####"))
    assert area(found.outline) == 12
    (hole,) = found.holes
    assert area(hole) == -1
    assert sorted(map(tuple, hole)) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_piece_in_a_hole_is_a_piece_and_each_hole_is_in_its_own() -> None:
    mask = mask_of(
        "#######.###",
        "#.....#.#.#",
        "#.###.#.###",
        "#.#.#.#....",
        "#.###.#..##",
        "#.....#..##",
        "#######....",
    )
    found = find_polygons(mask)
    assert [area(each.outline) for each in found] == [49, 9, 9, 4]
    assert [[area(hole) for hole in each.holes] for each in found] == [[-25], [-1], [-1], []]
    inner = next(each for each in found if each.outline[:, 0].min() == 2)
    assert inner.holes[0].min() == 3


def test_an_outline_that_would_touch_itself_becomes_an_outline_and_a_hole() -> None:
    (found,) = find_polygons(mask_of("###", "#.#", "##."))
    assert area(found.outline) == 8
    assert [area(hole) for hole in found.holes] == [-1]
    for ring in (found.outline, *found.holes):
        assert len(np.unique(ring, axis=0)) == len(ring)


def test_nothing_has_no_outline() -> None:
    assert find_polygons(np.zeros((3, 4), bool)) == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.6, 0.9, 1.0])
def test_noise_is_exactly_what_its_polygons_fill(share: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = RANDOM.random((40, 50)) < share
    found = find_polygons(mask)
    rings = [ring for each in found for ring in (each.outline, *each.holes)]
    np.testing.assert_array_equal(fill(rings, mask.shape), mask)
    labels, count = ndimage.label(mask)
    assert len(found) == count
    for each in found:  # each polygon alone is one piece of scipy's
        alone = fill([each.outline, *each.holes], mask.shape)
        (label,) = np.unique(labels[alone])
        np.testing.assert_array_equal(alone, labels == label)
        for ring in (each.outline, *each.holes):
            assert len(np.unique(ring, axis=0)) == len(ring)


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_the_outline_of_a_drawn_lesion_is_its_mask(tolerance: float) -> None:
    mask = draw_lesion(3, (300, 400)).mask
    scale = 8  # so that the drawing of polygons, not the outline, is exact
    canvas = Image.new("1", (400 * scale, 300 * scale))
    for corners in polygons(mask, tolerance=tolerance):
        ImageDraw.Draw(canvas).polygon([tuple(xy) for xy in corners * scale], fill=1)
    back = np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale]
    share = (back ^ mask).sum() / mask.sum()
    assert share == 0 if tolerance == 0 else 0 < share < 0.02


def test_a_tolerance_leaves_a_tenth_of_the_corners() -> None:
    mask = draw_lesion(3, (300, 400)).mask
    (exact, *_), (short, *_) = polygons(mask), polygons(mask, tolerance=1)
    assert 3 < len(short) < len(exact) / 5
