"""Outlines along pixels' edges: worked by hand, and back to the mask they came from."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ulvm.synthetic import draw_lesion
from ulvm.use.outline import polygons


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_one_pixel_is_a_square_clockwise() -> None:
    (found,) = polygons(mask_of("...", ".#.", "..."))
    assert sorted(map(tuple, found)) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    x, y = found.T
    assert ((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) > 0


def test_corners_are_kept_only_where_the_outline_turns() -> None:
    (found,) = polygons(mask_of("###", "#..", "#.."))
    assert len(found) == 6


def test_pieces_that_touch_at_a_corner_are_apart_and_the_largest_is_first() -> None:
    found = polygons(mask_of("##..", "##..", "..#.", "...."))
    assert [len(each) for each in found] == [4, 4]
    assert found[0].max() == 2
    assert found[1].min() == 2


def test_a_hole_is_filled() -> None:
    (found,) = polygons(mask_of("###", "#.#", "###"))
    assert len(found) == 4


def test_nothing_has_no_outline() -> None:
    assert polygons(np.zeros((3, 4), bool)) == []


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_the_outline_of_a_drawn_lesion_is_its_mask(tolerance: float) -> None:
    mask = draw_lesion(3, (300, 400)).mask
    scale = 8  # so that the drawing of polygons, not the outline, is exact
    canvas = Image.new("1", (400 * scale, 300 * scale))
    found = polygons(mask, tolerance=tolerance)
    for corners in found:
        ImageDraw.Draw(canvas).polygon([tuple(xy) for xy in corners * scale], fill=1)
    back = np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale]
    share = (back ^ mask).sum() / mask.sum()
    assert share == 0 if tolerance == 0 else 0 < share < 0.02


def test_a_tolerance_leaves_a_tenth_of_the_corners() -> None:
    mask = draw_lesion(3, (300, 400)).mask
    (exact, *_), (short, *_) = polygons(mask), polygons(mask, tolerance=1)
    assert 3 < len(short) < len(exact) / 5
