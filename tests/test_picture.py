"""Pictures written by hand or by Pillow, read back and compared with what they must show."""

import contextlib
import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made_up_pictures import chunk, encode, png, refused, tiff
from ulvm import limits
from ulvm.engine import resize_probability
from ulvm.errors import InputError, PictureWarning
from ulvm.image import read_image, read_mask, resize, write_png
from ulvm.picture import is_written_by_ulvm

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.asarray(Image.fromarray(RGB).resize((90, 60), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_rgb_comes_back_exactly(kind: str, tmp_path: Path) -> None:
    content = encode(RGB, kind)
    path = tmp_path / "a.bin"  # the content counts, not the ending
    path.write_bytes(content)
    for source in (path, str(path), content, io.BytesIO(content)):
        image = read_image(source)
        np.testing.assert_array_equal(image, RGB)
        assert image.dtype == np.uint8
        assert image.flags.writeable
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_image(file), RGB)


def test_pipe_that_cannot_seek() -> None:
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as file:  # noqa: PTH123 - a descriptor, no path
        file.write(encode(RGB, "PNG"))
    with open(read_end, "rb", buffering=0) as file:  # noqa: PTH123
        np.testing.assert_array_equal(read_image(file), RGB)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {})])
def test_lossy_formats_come_back_nearly(kind: str, options: dict[str, Any]) -> None:
    difference = read_image(encode(SMOOTH, kind, **options)).astype(int) - SMOOTH
    assert np.abs(difference).mean() < 8


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF definition, pixel by pixel: which edge the first row and first column show."""
    height, width = stored.shape[:2]
    swapped = orientation >= 5
    seen = np.empty((width, height, 3) if swapped else stored.shape, np.uint8)
    rows, columns = seen.shape[:2]
    for row in range(height):  # TIFF 6.0: row 0 is the visual top/bottom/left/right …
        for column in range(width):  # … and column 0 is the visual left/right/top/bottom
            y, x = {
                1: (row, column),
                2: (row, columns - 1 - column),
                3: (rows - 1 - row, columns - 1 - column),
                4: (rows - 1 - row, column),
                5: (column, row),
                6: (column, columns - 1 - row),
                7: (rows - 1 - column, columns - 1 - row),
                8: (rows - 1 - column, row),
            }[orientation]
            seen[y, x] = stored[row, column]
    return seen


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    content = encode(RGB, kind, exif=exif, **lossless.get(kind, {}))
    tolerance = 3 if kind == "JPEG" else 0
    difference = read_image(content).astype(int) - upright(RGB, orientation)
    assert np.abs(difference).max() <= tolerance


def test_mask_follows_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.where(GREY > 100, 255, 0).astype(np.uint8)
    stored = np.repeat(mask[..., None], 3, axis=2)
    np.testing.assert_array_equal(
        read_mask(encode(mask, "PNG", exif=exif)), upright(stored, 6)[..., 0]
    )


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_meaningless_orientation_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(encode(RGB, "PNG", exif=exif)), RGB)


def test_unreadable_exif_leaves_the_picture_as_stored() -> None:
    np.testing.assert_array_equal(read_image(encode(RGB, "PNG", exif=b"Exif\0\0garbage")), RGB)


def test_grey_and_one_bit() -> None:
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(encode(GREY, "PNG")), expected)
    bits = Image.fromarray(GREY > 100)
    assert bits.mode == "1"
    np.testing.assert_array_equal(
        read_image(encode(bits, "PNG"))[..., 2], np.where(GREY > 100, 255, 0)
    )


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def test_transparency_is_put_on_white() -> None:
    alpha = RANDOM.integers(0, 256, GREY.shape, dtype=np.uint8)
    rgba = np.dstack([RGB, alpha])
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        image = read_image(encode(rgba, kind, **options))
        np.testing.assert_allclose(image, on_white(RGB, alpha), atol=1)
    grey = read_image(encode(Image.fromarray(np.dstack([GREY, alpha])), "PNG"))
    np.testing.assert_allclose(grey, on_white(np.dstack([GREY] * 3), alpha), atol=1)


def test_palette_with_and_without_transparency() -> None:
    palette = RANDOM.integers(0, 256, (4, 3), dtype=np.uint8)
    indices = RANDOM.integers(0, 4, (6, 9), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(read_image(encode(image, kind)), palette[indices])
    expected = palette[indices].copy()
    expected[indices == 2] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(read_image(encode(image, kind, transparency=2)), expected)
    alphas = np.array([255, 128, 0, 7], np.uint8)
    np.testing.assert_allclose(
        read_image(encode(image, "PNG", transparency=alphas.tobytes())),
        on_white(palette[indices], alphas[indices]),
        atol=1,
    )


def test_grey_and_rgb_with_a_transparent_colour() -> None:
    grey = np.where(GREY > 100, 200, 50).astype(np.uint8)
    expected = np.where(GREY > 100, 200, 255)
    np.testing.assert_array_equal(
        read_image(encode(grey, "PNG", transparency=50))[..., 1], expected
    )
    expected = np.where((RGB[2, 3] == RGB).all(axis=2)[..., None], 255, RGB)
    key = tuple(int(value) for value in RGB[2, 3])
    np.testing.assert_array_equal(read_image(encode(RGB, "PNG", transparency=key)), expected)


def test_cmyk() -> None:
    cmyk = RANDOM.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    ink = cmyk.astype(float) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    image = Image.frombytes("CMYK", (9, 6), cmyk.tobytes())
    np.testing.assert_allclose(read_image(encode(image, "TIFF")), expected, atol=1.5)
    smooth = image.resize((90, 60), Image.Resampling.BICUBIC)
    from_jpeg = read_image(encode(smooth, "JPEG", quality=100, subsampling=0))
    assert np.abs(from_jpeg - np.asarray(smooth.convert("RGB"), int)).max() < 8


@pytest.mark.parametrize("top", [65535, 5000])
def test_16_bit_grey_is_scaled_by_its_full_range(top: int) -> None:
    samples = RANDOM.integers(0, top + 1, (6, 9), dtype=np.uint16)
    expected = np.rint(samples / 65535 * 255)
    for content in (
        encode(samples, "PNG"),
        encode(samples, "TIFF"),
        encode(samples, "TIFF", compression="tiff_lzw"),
        tiff(samples[..., None], bits=16, photometric=1, order=">"),
    ):
        image = read_image(content)
        for channel in range(3):
            np.testing.assert_array_equal(image[..., channel], expected)
    inverted = tiff(samples[..., None], bits=16, photometric=0)
    np.testing.assert_array_equal(read_image(inverted)[..., 0], np.rint(255 - samples / 257))


def test_16_bit_colour() -> None:
    samples = RANDOM.integers(0, 65536, (6, 9, 4))
    samples[0, :2] = [[0] * 4, [65535] * 4]
    rgb = samples[..., :3]
    for content in (
        png(rgb, 2),
        tiff(rgb, bits=16, photometric=2),
        tiff(rgb, bits=16, photometric=2, order=">"),
    ):
        np.testing.assert_allclose(read_image(content), rgb / 257, atol=1)
    np.testing.assert_allclose(
        read_image(png(samples, 6)), on_white(rgb / 257, samples[..., 3] / 257), atol=2
    )
    key = struct.pack(">HHH", 300, 300, 300)  # its low byte, 44, must not become transparent
    grey = np.full((2, 2, 3), 44 * 257)
    keyed = read_image(png(grey, 2, extra=chunk(b"tRNS", key)))
    np.testing.assert_array_equal(keyed, np.full((2, 2, 3), 44))


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_fewer_bits_in_16_are_scaled_by_their_own_range_which_is_said(bits: int) -> None:
    samples = RANDOM.integers(0, 2**bits, (6, 9, 4), dtype=np.uint16)
    samples[0, 0] = white = 2**bits - 1
    samples[..., 3] = 65535  # opaque
    rgb, grey = samples[..., :3], samples[..., 0]
    for content, expected in [
        (png(samples[..., [0, 3]], 4), grey[..., None]),
        (encode(grey, "PNG"), grey[..., None]),
        (encode(grey, "TIFF", compression="tiff_lzw"), grey[..., None]),
        (png(rgb, 2), rgb),
        (png(samples, 6), rgb),
        (tiff(rgb, bits=16, photometric=2), rgb),
        (tiff(rgb, bits=16, photometric=2, deflate=True), rgb),
        (tiff(rgb, bits=16, photometric=2, order=">"), rgb),
    ]:
        with pytest.warns(PictureWarning, match=f"{bits}-bit samples: they are scaled by {white}"):
            image = read_image(content)
        np.testing.assert_array_equal(
            image, np.broadcast_to(np.rint(expected / white * 255), image.shape)
        )


def test_a_turned_picture_of_few_bits_is_upright() -> None:
    samples = RANDOM.integers(0, 1024, (6, 9, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = png(samples, 2, extra=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    with pytest.warns(PictureWarning):
        turned = read_image(content)
    np.testing.assert_array_equal(turned, np.rot90(np.rint(samples / 1023 * 255), -1))


def test_black_of_16_bits_stays_black() -> None:
    assert read_image(png(np.zeros((6, 9, 3), int), 2)).max() == 0
    assert read_image(encode(np.zeros((6, 9), np.uint16), "PNG")).max() == 0


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_masks_of_any_depth_are_thresholded_at_their_half(bits: int) -> None:
    grey = np.linspace(0, 2**bits - 1, 100).astype(np.uint16).reshape(10, 10)
    mask = read_mask(encode(grey, "PNG"), threshold=True)
    np.testing.assert_array_equal(mask, np.where(grey >= 2 ** (bits - 1), 255, 0))


def test_grey_masks_of_shares_and_of_numbers() -> None:
    shares = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    mask = read_mask(encode(shares, "TIFF"), threshold=True)
    np.testing.assert_array_equal(mask, np.where(shares >= 0.5, 255, 0))
    with pytest.raises(InputError, match=r"holds 2 at most\. .* classes\.csv"):
        read_mask(encode(np.array([[0, 1, 2]], np.uint8), "PNG"), threshold=True)
    faint = np.array([[0, 60, 100]], np.uint8)  # of several people, most saw nothing
    assert not read_mask(encode(faint, "PNG"), threshold=True).any()


def test_tiff_planes() -> None:
    planes = tiff(RGB, bits=8, photometric=2, planes=True)
    np.testing.assert_array_equal(read_image(planes), RGB)
    dark = tiff(RGB.astype(int), bits=16, photometric=2, planes=True, deflate=True)
    for content in (tiff(RGB.astype(int) * 257, bits=16, photometric=2, planes=True), dark):
        with pytest.raises(InputError, match="separate planes"):  # Pillow reads these as garbage
            read_image(content)


def test_float_and_32_bit_tiff_are_scaled_from_minimum_to_maximum() -> None:
    for samples in (
        RANDOM.normal(0, 3, (6, 9)).astype(np.float32),
        RANDOM.integers(-(10**6), 10**6, (6, 9), dtype=np.int32),
    ):
        span = float(samples.max()) - float(samples.min())
        expected = (samples.astype(float) - float(samples.min())) / span * 255
        image = read_image(encode(samples, "TIFF"))
        np.testing.assert_allclose(image[..., 0], expected, atol=0.51)
        assert (image.min(), image.max()) == (0, 255)
    assert read_image(encode(np.full((2, 3), 0.7, np.float32), "TIFF")).max() == 0
    large = np.array([[[0], [2**31], [2**32 - 1]]])
    np.testing.assert_array_equal(
        read_image(tiff(large, bits=32, photometric=1))[0, :, 0], [0, 128, 255]
    )
    bad = np.array([[0, np.nan], [1, 2]], np.float32)
    with pytest.raises(InputError, match="not finite"):
        read_image(encode(bad, "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_of_several_frames(kind: str) -> None:
    frames = [Image.new("RGB", (8, 5), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    # An animation's frames are one picture; pages may be ten.
    pages = pytest.warns(PictureWarning, match="several pages; the first is taken")
    with pages if kind == "TIFF" else contextlib.nullcontext():
        image = read_image(content)
    np.testing.assert_array_equal(image, np.asarray(frames[0]))


def test_first_picture_of_a_phones_multi_picture_jpeg() -> None:
    frames = [Image.new("RGB", (8, 5), color) for color in ("red", "lime")]
    content = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read_image(content), np.asarray(frames[0]), atol=2)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5000), (5000, 3)])
def test_elongated_pictures(size_hw: tuple[int, int]) -> None:
    picture = RANDOM.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(encode(picture, "PNG")), picture)
    small = resize(picture, (64, 64))
    assert small.shape == (64, 64, 3)
    probability = resize_probability(small[..., 0].astype(np.float32) / 255, size_hw)
    assert probability.shape == size_hw


# What is refused


def test_missing_folder_empty_and_foreign_files(tmp_path: Path) -> None:
    refused(tmp_path / "no.png", f"File not found: {tmp_path / 'no.png'}")
    refused(tmp_path, f"{tmp_path} is a folder")
    empty = tmp_path / "empty.png"
    empty.touch()
    refused(empty, "empty.png is empty")
    text = tmp_path / "text.jpg"
    text.write_text("this is no picture")
    refused(text, "text.jpg is not a picture", "PNG, JPEG, TIFF, BMP, WebP and GIF")
    refused(b"\0\0\0\x18ftypavif" + bytes(100), "AVIF", "PNG, JPEG", "Export it")
    refused(b"RIFF\0\0\0\0WAVEfmt ", "not a picture")


@pytest.mark.parametrize(
    ("content", "kind", "extra"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC", "heic"),
        (bytes(128) + b"DICM" + bytes(50), "DICOM", "dicom"),
    ],
)
def test_formats_of_an_extra_say_what_to_install(
    content: bytes, kind: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"ulvm.use.{extra}", raising=False)
    for package in ("pi_heif", "pydicom"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(content, kind, f"pip install '.[{extra}]'")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: Any) -> None:  # root, which runs many containers, may read everything
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(limits.io, "FileIO", deny)
    refused(tmp_path / "a.png", "a.png cannot be opened (Permission denied)")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
def test_truncated_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "half.img"
    content = encode(SMOOTH, kind)
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(content[: max(12, int(share * len(content)))])
        refused(path, "half.img", "damaged")
    path.write_bytes(content[: len(content) // 2])
    if kind in ("JPEG", "PNG", "BMP"):
        refused(path, "it is truncated")


def test_damaged_bytes_raise_nothing_else() -> None:
    random = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"):
        content = encode(SMOOTH, kind)
        for _ in range(60):
            damaged = bytearray(content)
            for place in random.integers(0, min(200, len(content)), 4):
                damaged[place] = random.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on odd metadata
                with contextlib.suppress(InputError):
                    assert read_image(bytes(damaged)).ndim == 3


def test_no_pixels() -> None:
    header = struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    refused(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data, "states no size")


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def test_bomb_is_refused_from_its_header() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    refused(bomb(20_000, 10_001), "10001×20000 pixels", "200,000,000")
    refused(bomb(2**31 - 1, 2**31 - 1), "200,000,000")
    # Within our limit, above Pillow's: no warning and no error but the missing pixels.
    refused(bomb(20_000, 10_000), "damaged")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_own_limit_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(read_image(encode(RGB, "PNG")), RGB)
    refused(encode(SMOOTH, "WEBP"), "too many pixels")  # this decoder asks Pillow's limit itself
    monkeypatch.setattr(limits, "PIXELS", 53)
    refused(encode(RGB, "PNG"), "6×9 pixels", "Up to 53")


# Masks

LESION = GREY > 100
MASK = np.where(LESION, 255, 0).astype(np.uint8)


def palette_mask(colors: list[tuple[int, int, int]], indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([value for color in colors for value in color])
    return image


@pytest.mark.parametrize(
    "stored",
    [
        LESION,
        MASK,
        LESION.astype(np.uint8),
        MASK // 2,
        np.dstack([MASK] * 3),
        np.dstack([MASK, MASK, MASK, np.full_like(MASK, 255)]),
        np.dstack([MASK, np.full_like(MASK, 255)]),
        np.where(LESION, 65535, 0).astype(np.uint16),
        palette_mask([(0, 0, 0), (255, 255, 255)], LESION),
        palette_mask([(255, 255, 255), (0, 0, 0)], ~LESION),  # the colours count …
        palette_mask([(0, 0, 0), (128, 0, 0)], LESION),  # … unless they are labels
    ],
    ids=[
        "bit",
        "255",
        "1",
        "127",
        "rgb",
        "rgba",
        "la",
        "16-bit",
        "palette",
        "swapped-palette",
        "label-palette",
    ],
)
def test_masks_of_two_values(stored: Any) -> None:
    mask = read_mask(encode(stored, "PNG"))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, MASK)


def test_masks_in_other_formats() -> None:
    np.testing.assert_array_equal(read_mask(encode(LESION.astype(np.float32), "TIFF")), MASK)
    np.testing.assert_array_equal(read_mask(encode(MASK, "BMP")), MASK)
    np.testing.assert_array_equal(read_mask(encode(Image.fromarray(LESION), "BMP")), MASK)
    np.testing.assert_array_equal(read_mask(encode(MASK, "GIF")), MASK)
    white_is_zero = tiff(65535 * LESION[..., None], bits=16, photometric=0)
    np.testing.assert_array_equal(read_mask(white_is_zero), 255 - MASK)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 255), (255, 255)])
def test_masks_of_one_value(value: int, expected: int) -> None:
    mask = read_mask(encode(np.full((3, 4), value, np.uint8), "PNG"))
    np.testing.assert_array_equal(mask, np.full((3, 4), expected))


def test_refused_masks(tmp_path: Path) -> None:
    def refuse(picture: Any, *words: str, kind: str = "PNG") -> None:
        path = tmp_path / "m.png"
        path.write_bytes(encode(picture, kind))
        with pytest.raises(InputError) as caught:
            read_mask(path)
        for word in ("m.png", *words):
            assert word in str(caught.value)

    refuse(np.array([[0, 7, 255]], np.uint8), "3 different values (0, 7, 255)", "threshold")
    refuse(np.arange(20, dtype=np.uint8)[None], "20 different values (0, 1, 2, 3, 4, 5, …)")
    refuse(np.array([[3, 200]], np.uint8), "2 different values (3, 200)")
    refuse(np.full((2, 2), 90, np.uint8), "the value 90 only")
    refuse(RGB, "colour picture")
    refuse(np.array([[0, 1, np.nan]], np.float32), "nan", kind="TIFF")
    refuse(np.dstack([MASK, MASK]), "transparent")
    refuse(palette_mask([(0, 0, 0), (9, 0, 0), (0, 9, 0)], GREY % 3), "3 different values")
    refuse(np.asarray(Image.fromarray(MASK).resize((90, 60))), "threshold", kind="JPEG")
    with pytest.raises(InputError, match="File not found"):
        read_mask(tmp_path / "no.png")


# Writing


def test_write_png_comes_back(tmp_path: Path) -> None:
    for array, expected in ((RGB, RGB), (LESION, MASK), (GREY, GREY)):
        path = tmp_path / "new" / "folder" / "a.png"
        write_png(path, array)
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)
            assert image.mode == ("RGB" if array is RGB else "L")
        assert is_written_by_ulvm(path)
        assert [each.name for each in path.parent.iterdir()] == ["a.png"]
    foreign = tmp_path / "b.png"
    foreign.write_bytes(encode(RGB, "PNG"))
    assert not is_written_by_ulvm(foreign)
    assert not is_written_by_ulvm(tmp_path)


def test_write_png_into_what_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_png(file / "a.png", RGB)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_png(tmp_path / "taken.png", RGB)
    assert {each.name for each in tmp_path.iterdir()} == {"file", "taken.png"}
