"""Resizing, drawing and writing, against loops, scipy and Pillow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ulvm.engine import resize_probability
from ulvm.errors import InputError
from ulvm.image import (
    bounding_box_xyxy,
    draw_overlay,
    read_image,
    read_mask,
    resize,
    rim,
    write_png,
)

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.asarray(Image.fromarray(RGB).resize((90, 60), Image.Resampling.BICUBIC))


# Resizing


def bilinear(values: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Half-pixel centres, edges repeated, one output pixel at a time; for enlarging."""
    height, width = values.shape
    enlarged = np.empty(size_hw)
    for row in range(size_hw[0]):
        y = min(max((row + 0.5) * height / size_hw[0] - 0.5, 0), height - 1)
        top = min(int(y), height - 2)
        for column in range(size_hw[1]):
            x = min(max((column + 0.5) * width / size_hw[1] - 0.5, 0), width - 1)
            left = min(int(x), width - 2)
            (a, b), (c, d) = values[top : top + 2, left : left + 2]
            upper, lower = a + (b - a) * (x - left), c + (d - c) * (x - left)
            enlarged[row, column] = upper + (lower - upper) * (y - top)
    return enlarged


def test_resize_probability_against_a_loop() -> None:
    probability = RANDOM.random((6, 7)).astype(np.float32)
    resized = resize_probability(probability, (50, 31))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, bilinear(probability, (50, 31)), atol=1e-5)
    np.testing.assert_array_equal(resize_probability(probability, (6, 7)), probability)


@pytest.mark.parametrize("size_hw", [(700, 900), (3, 4), (1, 1), (1, 5000), (5000, 3)])
def test_resize_probability_is_pillows(size_hw: tuple[int, int]) -> None:
    probability = RANDOM.random((64, 64)).astype(np.float32)
    whole = Image.fromarray(probability).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    resized = resize_probability(probability, size_hw)
    np.testing.assert_allclose(resized, whole, atol=2e-5)
    assert resized.min() >= 0
    assert resized.max() <= 1
    ones = resize_probability(np.ones((64, 64), np.float32), size_hw)
    np.testing.assert_allclose(ones, np.ones(size_hw), atol=1e-6)
    assert ones.max() <= 1


@pytest.mark.parametrize("size_hw", [(2000, 2500), (2500, 2000), (1, 4_000_000), (3, 1_500_001)])
def test_large_pictures_are_resized_in_two_halves_as_in_one(size_hw: tuple[int, int]) -> None:
    picture = Image.fromarray(RANDOM.integers(0, 256, (*size_hw, 3), dtype=np.uint8))
    for small in ((256, 256), (32, 64), (1, 5)):
        whole = picture.resize(small[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resize(picture, small), whole)


def test_resize_enlarges_bilinearly_and_averages_when_shrinking() -> None:
    enlarged = resize(RGB, (20, 30))
    for channel in range(3):
        expected = bilinear(RGB[..., channel].astype(float), (20, 30))
        np.testing.assert_allclose(enlarged[..., channel], expected, atol=1)
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    interior = resize(stripes, (8, 8))[:, 1:-1]
    np.testing.assert_allclose(interior, np.full_like(interior, 127), atol=2)
    with pytest.raises(InputError, match="float64"):
        resize(RANDOM.random((4, 4, 3)), (2, 2))  # type: ignore[arg-type]


# Drawing


def blobs(height: int, width: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(RANDOM.normal(size=(height, width)), 3)
    mask: np.ndarray = noise > 0.02
    return mask


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_rim_against_the_distance_transform(width: int) -> None:
    for mask in (blobs(60, 80), np.ones((30, 20), bool), np.eye(7, dtype=bool)):
        distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        np.testing.assert_array_equal(rim(mask, width), mask & (distance <= width))


def test_rim_and_box_of_an_empty_mask() -> None:
    empty = np.zeros((4, 5), bool)
    assert not rim(empty, 3).any()
    assert bounding_box_xyxy(empty) is None


def test_bounding_box() -> None:
    mask = np.zeros((10, 20), bool)
    mask[2, 5] = mask[7, 3] = True
    assert bounding_box_xyxy(mask) == (3, 2, 6, 8)


def test_overlays_of_other_arrays_are_refused() -> None:
    """A mask of 0 and 255, as a file has it, painted whole rows instead of the outline."""
    image, mask = np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), bool)
    for picture, region, opacity, said in (
        (image, mask.astype(np.uint8) * 255, 0.5, "give mask > 0"),
        (image[..., 0], mask, 0.5, r"uint8 \(height, width, 3\)"),
        (image / 255, mask, 0.5, "float64"),
        (image, mask, 2, "from 0 to 1"),
        (image, mask, float("nan"), "from 0 to 1"),
    ):
        with pytest.raises(InputError, match=f"(?i){said}"):
            draw_overlay(picture, region, opacity=opacity)


def test_what_is_no_picture_is_not_written(tmp_path: Path) -> None:
    for array in (
        np.ones((4, 5), np.int64),
        np.ones((4, 5, 2), np.uint8),
        np.ones((4, 5, 3), np.float32),
        np.ones((0, 5), bool),
        np.ones((4, 5, 3), bool),
    ):
        with pytest.raises(InputError, match="or uint8 or bool"):
            write_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, 3, np.zeros((4, 5, 3), np.uint8)])
def test_what_is_no_file_is_not_read(given: Any) -> None:
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match="a binary file object is read"):
            read(given)


def test_overlay_against_the_blend() -> None:
    image = RANDOM.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    kept, mask = image.copy(), blobs(60, 80)
    color = (10, 200, 30)
    overlay = draw_overlay(image, mask, color_rgb=color, opacity=0.4, line_width=3)
    edge = rim(mask, 3)
    np.testing.assert_array_equal(overlay[~mask], image[~mask])
    np.testing.assert_array_equal(overlay[edge], np.broadcast_to(color, overlay[edge].shape))
    tinted = mask & ~edge
    assert tinted.any()
    np.testing.assert_allclose(
        overlay[tinted], 0.6 * image[tinted] + 0.4 * np.array(color), atol=1.01
    )
    np.testing.assert_array_equal(image, kept)
    with pytest.raises(InputError, match="60×80"):
        draw_overlay(image, mask[1:])


def test_outline_grows_with_the_picture() -> None:
    widths = []
    for side in (100, 2000):
        mask = np.zeros((side, side), bool)
        mask[side // 4 : -side // 4, side // 4 : -side // 4] = True
        image = np.zeros((side, side, 3), np.uint8)
        middle = draw_overlay(image, mask, color_rgb=(255, 0, 0), opacity=0)[side // 2, :, 0]
        widths.append(np.count_nonzero(middle) // 2)
    assert widths == [2, 8]
