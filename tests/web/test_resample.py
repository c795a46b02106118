"""resample.js against the Python side's arrays."""

import base64
from typing import Any

import numpy as np
import pytest

from ulvm import synthetic
from ulvm.image import resize, resize_probability

SIZES_HW = [(768, 1024), (600, 450), (1000, 130), (97, 1201), (256, 256), (40, 33), (1, 500)]

RESIZE = """async ({encoded, height, width}) => {
  const { resizeRgb } = await import("/resample.js");
  const rgba = Uint8ClampedArray.from(atob(encoded), (c) => c.charCodeAt(0));
  const rows = (top, count) => rgba.subarray(top * width * 4, (top + count) * width * 4);
  return btoa(String.fromCharCode(...resizeRgb(rows, height, width, 64)));
}"""

MASK = """async ({encoded, height, width, threshold}) => {
  const { resizeToMask } = await import("/resample.js");
  const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const { mask, area } = resizeToMask(new Float32Array(bytes.buffer), 64, height, width, threshold);
  return { area, mask: btoa(Array.from(mask, (v) => String.fromCharCode(v)).join("")) };
}"""


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_resized_picture_is_pythons(page: Any, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    drawn = resize(synthetic.draw_lesion(1, (300, 400)).image_rgb, size_hw)
    for image_rgb in (noise, drawn):
        rgba = np.dstack([image_rgb, np.full(size_hw, 255, np.uint8)])
        request = {"encoded": encode(rgba), "height": height, "width": width}
        found = np.frombuffer(base64.b64decode(page.evaluate(RESIZE, request)), np.uint8)
        golden = resize(image_rgb, (64, 64))
        difference = np.abs(found.reshape(64, 64, 3).astype(int) - golden)
        assert difference.max() <= 1


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_mask_at_the_pictures_size_is_pythons(page: Any, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    probability = np.random.default_rng(1).random((64, 64), np.float32)
    golden = resize_probability(probability, size_hw) >= np.float32(0.4)
    request = {"encoded": encode(probability), "height": height, "width": width, "threshold": 0.4}
    found = page.evaluate(MASK, request)
    mask = np.frombuffer(base64.b64decode(found["mask"]), np.uint8).reshape(size_hw)
    assert found["area"] == mask.sum()
    assert np.mean(mask != golden) < 1e-4
