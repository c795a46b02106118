"""PNG files of 16 bits that hold 8, 10 or 12: the page sees what the command sees."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ulvm
from ulvm import synthetic
from ulvm.image import read_mask

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def write_png(path: Path, samples: np.ndarray) -> None:
    """uint16 (height, width, channels) as PNG, its rows filtered in all five ways in turn."""
    height, width, channels = samples.shape
    raw = samples.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step = 2 * channels
    rows = []
    for y in range(height):
        row, above = raw[y], raw[y - 1] if y else np.zeros_like(raw[0])
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        target = left + above - corner
        away = np.abs(np.stack([left, above, corner]) - target)
        paeth = np.choose(away.argmin(axis=0), [left, above, corner])
        guess = [np.zeros_like(row), left, above, (left + above) // 2, paeth][y % 5]
        rows.append(bytes([y % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes())
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:a 16-bit picture holds")
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_mask_is_that_of_python(page: Any, tmp_path: Path, bits: int, channels: int) -> None:
    image_rgb = synthetic.draw_lesion(3, (150, 190)).image_rgb
    samples = image_rgb.astype(np.uint16) * ((2**bits - 1) // 255)
    if channels == 4:
        samples = np.dstack([samples, np.full(samples.shape[:2], 65535, np.uint16)])
    path = tmp_path / f"deep-{bits}-{channels}.png"
    write_png(path, samples[..., :1] if channels == 1 else samples)
    expected = ulvm.load()(ulvm.read_image(path)).mask
    assert expected.any()
    page.set_input_files("#files", path)
    expect(page.locator("#status")).to_contain_text(f"{path.name}: ")
    with page.expect_download() as waiting:
        page.click("#save-mask")
    found = read_mask(Path(waiting.value.path())) > 0
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) >= 0.995
