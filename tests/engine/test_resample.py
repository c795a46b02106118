"""resample.c against Pillow, which it replaces."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
from ctypes import c_float, c_int, c_void_p
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ulvm
from ulvm import synthetic

ENGINE = Path(ulvm.__file__).parent / "engine"
SIDES = [1, 2, 33, 97, 256, 500, 1201]
SIZES_HW = [*itertools.product(SIDES, SIDES), (3000, 4000), (40_000, 7), (7, 40_000), (1, 40_000)]
FAIL = """
#include "model.h"
int fail(ulvm_error *error, int code, const char *format, ...) {
  (void)format;
  if (error) error->code = code;
  return code;
}
"""
BAD_ARGUMENT, NO_MEMORY = 1, 5


class Error(ctypes.Structure):
    _fields_ = (("code", c_int), ("sentence", ctypes.c_char * 252))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """resample.c alone, by the machine's compiler or the pinned one."""
    folder = tmp_path_factory.mktemp("resample")
    (folder / "fail.c").write_text(FAIL)
    compiler = ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc"]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared"]
    sources = [folder / "fail.c", ENGINE / "resample.c"]
    output = folder / "resample.so"
    subprocess.run([*compiler, *flags, f"-I{ENGINE}", *sources, "-o", output], check=True)
    return ctypes.CDLL(str(output))


def pointer(array: np.ndarray) -> c_void_p:
    return c_void_p(array.ctypes.data)


def resize(
    library: ctypes.CDLL, pixels: np.ndarray, size_hw: tuple[int, int], band: int
) -> np.ndarray:
    """Columns in bands of rows, then rows."""
    height, width, channels = pixels.shape
    narrow = np.full((height, size_hw[1], 3), 7, np.uint8)
    for top in range(0, height, band):
        rows = np.ascontiguousarray(pixels[top : top + band])
        part = narrow[top : top + band]
        assert not library.ulvm_resize_rows(
            pointer(rows), len(rows), width, channels, size_hw[1], pointer(part), None
        )
    image = np.full((*size_hw, 3), 7, np.uint8)
    assert not library.ulvm_resize_columns(
        pointer(narrow), height, size_hw[1], size_hw[0], pointer(image), None
    )
    return image


@pytest.mark.parametrize("size_hw", SIZES_HW, ids=str)
def test_a_picture_is_pillows(library: ctypes.CDLL, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    drawn = np.array(
        Image.fromarray(synthetic.draw_lesion(1, (300, 400)).image_rgb).resize((width, height))
    )
    for image_rgb, wanted_hw in [(noise, (64, 64)), (drawn, (256, 256)), (noise, (32, 96))]:
        golden = Image.fromarray(image_rgb).resize(wanted_hw[::-1], Image.Resampling.BILINEAR)
        alpha = np.full((height, width, 1), 99, np.uint8)
        for pixels in (image_rgb, np.dstack([image_rgb, alpha])):
            found = resize(library, pixels, wanted_hw, band=1 + height // 3)
            assert np.abs(found.astype(int) - np.asarray(golden)).max() <= 1


def test_white_stays_white_when_thousands_of_weights_are_rounded(library: ctypes.CDLL) -> None:
    white = np.full((40_000, 1, 3), 255, np.uint8)
    assert resize(library, white, (1, 1), band=40_000).tolist() == [[[255, 255, 255]]]
    assert resize(library, white.reshape(1, -1, 3), (1, 1), band=1).tolist() == [[[255, 255, 255]]]


def resize_probability(
    library: ctypes.CDLL,
    probability: np.ndarray,
    size_hw: tuple[int, int],
    threshold: float,
    wanted: str = "resized mask area",
) -> tuple[np.ndarray, np.ndarray, int]:
    resized, mask = np.full(size_hw, 7, np.float32), np.full(size_hw, 7, np.uint8)
    area = ctypes.c_int64(-1)
    outputs = {"resized": pointer(resized), "mask": pointer(mask), "area": ctypes.byref(area)}
    given = [each if name in wanted.split() else None for name, each in outputs.items()]
    sizes = [*probability.shape, *size_hw, c_float(threshold)]
    assert not library.ulvm_resize_probability(pointer(probability), *sizes, *given, None)
    return resized, mask, area.value


@pytest.mark.parametrize("size_hw", SIZES_HW, ids=str)
def test_probability_and_mask_are_pillows(library: ctypes.CDLL, size_hw: tuple[int, int]) -> None:
    for shape in [(256, 256), (64, 32)]:
        probability = np.random.default_rng(1).random(shape, np.float32)
        image = Image.fromarray(probability)
        golden = np.asarray(image.resize(size_hw[::-1], Image.Resampling.BILINEAR))
        resized, mask, area = resize_probability(library, probability, size_hw, 0.4)
        assert np.abs(resized - golden).max() <= 1e-6
        assert (mask == (resized >= np.float32(0.4))).all()
        assert np.mean(mask != (golden >= np.float32(0.4))) < 1e-4
        assert area == mask.sum()
        only_area = resize_probability(library, probability, size_hw, 0.4, "area")
        assert only_area[2] == area
        assert (only_area[0] == 7).all()
        assert (only_area[1] == 7).all()


def test_what_cannot_be_is_refused(library: ctypes.CDLL) -> None:
    pixels, error = pointer(np.zeros((32, 32, 4), np.uint8)), Error()
    for height, width in [(0, 32), (32, 0), (-1, 32), (32, 2**21), (2**31 - 1, 32)]:
        for code in (
            library.ulvm_resize_rows(pixels, height, width, 3, 32, pixels, ctypes.byref(error)),
            library.ulvm_resize_rows(pixels, 32, height, 3, width, pixels, ctypes.byref(error)),
            library.ulvm_resize_columns(pixels, height, width, 32, pixels, ctypes.byref(error)),
            library.ulvm_resize_columns(pixels, 32, height, width, pixels, ctypes.byref(error)),
            library.ulvm_resize_probability(
                pixels, 4, 4, height, width, c_float(0.5), None, None, None, ctypes.byref(error)
            ),
            library.ulvm_resize_probability(
                pixels, height, width, 4, 4, c_float(0.5), None, None, None, ctypes.byref(error)
            ),
        ):
            assert code == error.code == BAD_ARGUMENT
    assert library.ulvm_resize_rows(pixels, 32, 32, 2, 32, pixels, None) == BAD_ARGUMENT
    assert library.ulvm_resize_rows(None, 32, 32, 3, 32, pixels, None) == BAD_ARGUMENT
    assert library.ulvm_resize_columns(pixels, 32, 32, 32, None, None) == BAD_ARGUMENT


def test_short_memory_is_said(library: ctypes.CDLL) -> None:
    """In a process of its own, that may have 300 MB more than it has."""
    script = f"""
import ctypes, resource
library = ctypes.CDLL({library._name!r})
pixels = ctypes.create_string_buffer(2**20 * 3 * 16)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
size = ctypes.c_float(0.5)
print(library.ulvm_resize_columns(pixels, 2**20, 1, 2**20, pixels, None))
print(library.ulvm_resize_probability(pixels, 2**20, 1, 4, 2**20, size, None, None, None, None))
print(library.ulvm_resize_probability(pixels, 256, 256, 1, 2**20, size, None, None, None, None))
"""
    if sys.platform != "linux":
        pytest.skip("needs Linux's limit of memory")
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert printed.stdout.split() == [str(0), str(NO_MEMORY), str(0)], printed.stderr
