"""Pictures as phones, converters and microscopes write them: read as browsers show them."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made_up_pictures import chunk, encode, refused, segment, tiff
from ulvm.errors import InputError
from ulvm.image import read_image
from ulvm.picture import TURNED, read_picture, turn_upright

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.asarray(Image.fromarray(RGB).resize((90, 60), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_film_behind_a_phones_photo_is_no_part_of_it(options: dict[str, Any]) -> None:
    """Its bytes look like the beginning of many passes over the picture."""
    content = encode(SMOOTH, "JPEG", **options)
    film = b"\xff\xda" * 200 + RANDOM.bytes(1000)
    np.testing.assert_array_equal(read_image(content + film), read_image(content))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def test_only_exif_turns_a_picture_as_in_browsers() -> None:
    """XMP that a converter left in a picture which it had turned turned it again."""
    jpeg, exif = encode(SMOOTH, "JPEG"), Image.Exif()
    exif[0x010F] = "a camera, which says nothing of a turn"
    known = segment(0xE1, b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    without_density = jpeg[:2] + known + xmp + jpeg[20:]  # for which Pillow asks the EXIF early
    for content in (jpeg[:2] + xmp + jpeg[2:], without_density):
        np.testing.assert_array_equal(read_image(content), read_image(jpeg))
    text, whole = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), encode(SMOOTH, "PNG")
    exif[0x0112] = 6
    profile = f"Raw profile type exif\0\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n"
    for content in (
        whole[:33] + text + whole[33:],
        whole[:-12] + text + whole[-12:],
        whole[:33] + chunk(b"tEXt", profile.encode()) + whole[33:],
        encode(SMOOTH, "WEBP", lossless=True, xmp=XMP),
        encode(SMOOTH, "TIFF", tiffinfo={700: XMP}),
    ):
        np.testing.assert_array_equal(read_image(content), SMOOTH)


BROKEN_VALUE = (0x010F, 2, 99, 10**6)  # a camera's name that lies behind the end
NO_RESOLUTION = (0x011A, 2, 2, 0x37003700)  # a text of one letter, or of none


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tag", [BROKEN_VALUE, NO_RESOLUTION])
def test_damage_in_exif_beside_the_turn_leaves_it(tag: tuple[int, ...], order: str) -> None:
    """Browsers turn such a picture; here it lay on its side."""
    shift = 0 if order == "<" else 16
    tags = sorted([tag, (0x0112, 3, 1, 6 << shift), (0x0128, 3, 1, 2 << shift)])
    exif = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    exif += b"".join(struct.pack(order + "HHII", *each) for each in tags) + bytes(4)
    jpeg, whole = encode(SMOOTH, "JPEG"), encode(SMOOTH, "PNG")
    noted = jpeg[:2] + segment(0xE1, b"Exif\0\0" + exif) + jpeg[20:]  # without its density
    np.testing.assert_array_equal(read_image(noted), np.rot90(read_image(jpeg), -1))
    noted = whole[:33] + chunk(b"eXIf", exif) + whole[33:]
    np.testing.assert_array_equal(read_image(noted), np.rot90(SMOOTH, -1))
    for prefix in (b"", b"Exif\0\0"):
        webp = encode(SMOOTH, "WEBP", lossless=True, exif=prefix + exif)
        np.testing.assert_array_equal(read_image(webp), np.rot90(SMOOTH, -1))


@pytest.mark.parametrize(
    "kind", [b"eXIf", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"fcTL", b"tEXt"]
)
def test_damage_beside_the_pixels_of_a_png_is_passed_over(kind: bytes) -> None:
    whole = encode(SMOOTH, "PNG", transparency=(1, 2, 3))
    damaged = chunk(kind, b"\xff")[:-1] + b"\0"  # too short, and its check sum is wrong
    for content in (whole[:33] + damaged + whole[33:], whole[:-12] + damaged + whole[-12:]):
        np.testing.assert_array_equal(read_image(content), read_image(whole))


def test_damage_beside_the_pixels_of_a_jpeg_is_passed_over() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    for image in (SMOOTH, cmyk):  # of CMYK another note says how the inks are stored
        whole = encode(image, "JPEG", exif=exif)
        for marker, note in (
            (0xE0, b"JFIF\0"),
            (0xE2, b"ICC_PROFILE\0"),
            (0xED, b"Photoshop 3.0\x008BIM\3\xed\xff"),
            (0xEE, b"Adobe"),
        ):
            content = whole[:2] + segment(marker, note) + whole[2:]
            np.testing.assert_array_equal(read_image(content), read_image(whole))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_turned_picture_says_what_it_was_turned_from(kind: str) -> None:
    """A mask beside it may not be turned, which data sets are checked for."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encode(RGB, kind, exif=exif)).info[TURNED] == 6


def test_tiff_files_that_pillow_misreads_are_refused() -> None:
    """Compressed samples come in the machine's order of bytes, which it forgets for some types."""
    grey, short, is_float, is_signed = GREY[..., None].astype(int), 3, [3], [2]
    for sample_format, bits in ((is_float, 32), (is_signed, 32), (is_signed, 16)):
        tags = [(339, short, sample_format)]
        turned = tiff(grey, bits=bits, photometric=1, order=">", deflate=True, more_tags=tags)
        plain = tiff(grey, bits=bits, photometric=1, order="<", deflate=True, more_tags=tags)
        if "NS" in str(Image.open(io.BytesIO(turned)).tile):  # Pillow 10 forgets fewer
            np.testing.assert_array_equal(read_image(turned), read_image(plain))
            continue
        refused(turned, "largest byte first", "without compression")
    floats = tiff(grey, bits=32, photometric=1, order=">", deflate=True, more_tags=[(339, 3, [3])])
    with pytest.raises(InputError, match="largest byte first"):
        turn_upright(Image.open(io.BytesIO(floats)))
    signed = tiff(grey, bits=8, photometric=1, more_tags=[(339, short, is_signed)])
    refused(signed, "signed 8-bit samples")


def test_a_palette_of_eight_bits_in_sixteen_is_not_black() -> None:
    """Some writers forget to multiply by 257; libtiff's own tools look for that too."""
    palette = RANDOM.integers(0, 256, (3, 256))
    for factor in (1, 257):
        colours = (320, 3, (palette * factor).ravel().tolist())
        content = tiff(GREY[..., None], bits=8, photometric=3, more_tags=[colours])
        np.testing.assert_array_equal(read_image(content), palette.T[GREY])


def test_the_small_copy_in_a_cameras_raw_file_is_not_taken_for_the_photo() -> None:
    long, copy, other = 4, (254, 4, [1]), (330, 4, [8])
    refused(
        tiff(RGB, bits=8, photometric=2, more_tags=[copy, other]), "a small copy", "Export it as"
    )
    for tags in ([copy], [other], [(254, long, [0]), other]):
        read_image(tiff(RGB, bits=8, photometric=2, more_tags=tags))
