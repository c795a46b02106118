"""Pictures as arrays: reading, resizing, masks, outlines, overlays, and back to files."""

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.grey import bits_of, read_16_bit
from ulvm.picture import (
    SIGNATURE,
    ImageSource,
    decode,
    read_picture,
    size_text,
)

TWO_THREADS = 4_000_000  # pixels from which shrinking takes long enough to be worth a second thread

Uint8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def read_image(source: ImageSource) -> Uint8Array:
    """The picture as a viewer shows it, in RGB.

    EXIF orientation is applied and transparency is put on white; of several frames the first is
    taken. 16-bit samples are scaled by their full range, or by that of 12, 10 or 8 bits if
    none is larger, with a `PictureWarning`; 32-bit integer and float samples by the picture's own
    minimum and maximum. Embedded colour profiles are not applied.

    Args:
        source: A path, the bytes of a file, or a binary file object.

    Returns:
        uint8 (height, width, 3), range 0..255.

    Raises:
        InputError: The file is missing, no picture, damaged, or beyond ``limits``.
    """
    return np.array(read_picture(source))


def read_mask(source: ImageSource, *, threshold: bool = False) -> Uint8Array:
    """The mask in a file of two values, as 0 (background) and 255 (lesion).

    Accepted are 0 and one other value, in 1-bit, grey, palette, or colour files of equal
    channels. A palette that is not grey is a label map: its indices are the values. A mask of
    one value is all background (0) or all lesion (1 or the highest value of 8 or 16 bits).

    Args:
        source: A path, the bytes of a file, or a binary file object.
        threshold: Accept other values too: lesion is what is at least 128 of 255, the half of
            10, 12 or 16 bits, or .5 of floats up to 1. A
            mask with nothing above an eighth of its range is refused.

    Returns:
        uint8 (height, width) holding 0 and 255 only.

    Raises:
        InputError: As ``read_image``; or the file holds other values, colours or transparency.
    """
    with decode(source) as (image, name):
        values = mask_values(image, name)
    low, high = values.min(), values.max()
    all_lesion = low == high and high in (1, 255, 65535)
    if all_lesion or (low == 0 and ((values == 0) | (values == high)).all()):
        return np.where(values == 0, 0, 255).astype(np.uint8)
    if threshold:
        # Floats up to 1 are shares; other samples have the range of their bits.
        half = 0.5 if values.dtype.kind == "f" and high <= 1 else 2 ** (bits_of(high) - 1)
        if high < half / 4:  # of a whole data set of such nothing would be left, without a word
            raise InputError(
                f"{name} holds {high:g} at most",
                f"of a grey mask the lesion is what is at least {half:g}",
                "stretch it to 0..255; if its values are classes, list them in classes.csv",
            )
        return np.where(values >= half, 255, 0).astype(np.uint8)
    found = np.unique(values)
    listed = ", ".join(f"{value:g}" for value in found[:6])
    raise InputError(
        f"{name} holds {len(found)} different values ({listed}{', …' * (len(found) > 6)})"
        if len(found) > 1
        else f"{name} holds the value {listed} only, neither background nor lesion",
        "a mask holds 0 for background and one other value for the lesion",
        "pass --threshold-masks (read_mask(threshold=True)) if it shows a lesion in grey",
    )


def resize(image: Uint8Array | Image.Image, size_hw: tuple[int, int]) -> Uint8Array:
    """A picture or mask at another size: Pillow's bilinear filter, which averages when shrinking.

    This is the one resize between a file and the network: training data, runtime and web page
    share it. Aspect is not kept. A resized mask is soft: 0..255.

    Args:
        image: uint8 (height, width, 3) or (height, width), or a Pillow image of mode RGB or L.
        size_hw: Height and width wanted, in pixels.

    Returns:
        uint8 of the given size.

    Raises:
        InputError: The array is not uint8.
    """
    if isinstance(image, Image.Image):
        source = image
    elif image.dtype == np.uint8:
        source = Image.fromarray(image)
    else:
        raise InputError(
            f"the array to resize is {image.dtype}",
            "it must be uint8, range 0..255",
            "scale it to 0..255 and convert it with .astype(np.uint8)",
        )
    height, width = size_hw
    resized = np.empty((height, width, 3) if source.mode == "RGB" else size_hw, np.uint8)
    scale = source.height / height

    def fill(top: int, bottom: int) -> None:
        box = (0, top * scale, source.width, min(bottom * scale, source.height))
        part = source.resize((width, bottom - top), Image.Resampling.BILINEAR, box)
        resized[top:bottom] = np.asarray(part)

    if source.width * source.height < TWO_THREADS or height < 2:
        fill(0, height)
    else:
        with ThreadPoolExecutor(1) as pool:
            below = pool.submit(fill, height // 2, height)
            fill(0, height // 2)
            below.result()
    return resized


def rim(mask: BoolArray, width: int) -> BoolArray:
    """The rim of a mask: its pixels within ``width`` pixels of the background.

    What lies beyond the frame counts as background, so the rim is closed.

    Args:
        mask: bool (height, width).
        width: Thickness in pixels, at least 1.

    Returns:
        bool (height, width), a subset of the mask.
    """
    rim = np.zeros_like(mask)
    box = bounding_box_xyxy(mask)
    if box is None:
        return rim
    left, top, right, bottom = box
    inside = np.pad(mask[top:bottom, left:right], 1)
    beside = np.zeros_like(inside)
    beside[1:] |= inside[:-1]
    beside[:-1] |= inside[1:]
    beside[:, 1:] |= inside[:, :-1]
    beside[:, :-1] |= inside[:, 1:]
    y, x = np.nonzero(beside & ~inside)
    # A disc round each background pixel that touches the mask. A disc's row is +1 where it
    # starts and -1 where it ends, so a running sum along the row counts the discs there.
    height, columns = inside.shape
    changes = np.zeros((height, columns + 1), np.int32)
    for offset in range(-width, width + 1):
        reach = int((width**2 - offset**2) ** 0.5)
        kept = (y + offset >= 0) & (y + offset < height)
        np.add.at(changes, (y[kept] + offset, np.maximum(x[kept] - reach, 0)), 1)
        np.add.at(changes, (y[kept] + offset, np.minimum(x[kept] + reach + 1, columns)), -1)
    near = np.cumsum(changes, axis=1, out=changes)[:, :-1] > 0
    rim[top:bottom, left:right] = (near & inside)[1:-1, 1:-1]
    return rim


def bounding_box_xyxy(mask: BoolArray) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the mask, right and bottom exclusive; None when empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def draw_overlay(
    image_rgb: Uint8Array,
    mask: BoolArray,
    *,
    color_rgb: tuple[int, int, int] = (0, 230, 210),
    opacity: float = 0.25,
    line_width: int | None = None,
) -> Uint8Array:
    """The picture with the mask tinted and outlined.

    Args:
        image_rgb: uint8 (height, width, 3).
        mask: bool (height, width).
        color_rgb: Colour of tint and outline, each 0..255.
        opacity: Of the tint, 0 (outline only) to 1. The outline is opaque.
        line_width: Thickness of the outline in pixels; by default it grows with the picture.

    Returns:
        uint8 (height, width, 3), a new array.

    Raises:
        InputError: Mask and picture differ in size or are of other types; the opacity is none.
    """
    _require_picture(image_rgb)
    if mask.dtype != np.bool_:
        raise InputError(f"the mask is {mask.dtype}", "it must be bool", "give mask > 0")
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity={opacity} is out of range", "", "choose one from 0 to 1")
    if mask.shape != image_rgb.shape[:2]:
        raise InputError(
            f"the mask is {size_text(*mask.shape)} and the picture "
            f"{size_text(*image_rgb.shape[:2])}",
            "both must have one size",
            "resize the mask to the picture's size",
        )
    image = Image.fromarray(image_rgb)
    paint_overlay(image, mask, color_rgb, opacity, line_width)
    return np.array(image)


def paint_overlay(
    image: Image.Image,
    mask: BoolArray,
    color_rgb: tuple[int, int, int] = (0, 230, 210),
    opacity: float = 0.25,
    line_width: int | None = None,
) -> None:
    """As ``draw_overlay``, into a Pillow image of mode RGB and the mask's size, without a copy."""
    if line_width is None:
        line_width = max(2, round(mask.size**0.5 / 250))
    cover = np.where(mask, np.uint8(round(255 * opacity)), np.uint8(0))
    cover[rim(mask, line_width)] = 255
    image.paste(color_rgb, mask=Image.fromarray(cover))


def paint_caption(image: Image.Image, text: str) -> None:
    """Write words on a dark strip along the lower edge of an RGB image, in place.

    Args:
        image: Mode RGB.
        text: One line; it is broken where it is longer than the picture is wide. Without words
            the picture stays as it is.
    """
    if not text:
        return
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(image)
    height = max(9, round(min(image.height / 14, image.width / 24)))
    font = ImageFont.load_default(height)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > image.width - height:
            lines.append(word)
        else:
            lines[-1] = longer
    pitch = round(1.3 * height)
    top = image.height - pitch * len(lines) - height // 2
    draw.rectangle((0, top, image.width, image.height), fill=(20, 20, 20))
    for number, line in enumerate(lines):
        place = (height // 2, top + height // 4 + number * pitch)
        draw.text(place, line, fill=(255, 255, 255), font=font)


def is_rgb(array: npt.NDArray[Any]) -> bool:
    """Whether it is a picture as all here take them: uint8 (height, width, 3), not empty."""
    is_colour = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    return bool(is_colour and array.size)


def _require_picture(array: Any, *, or_mask: bool = False) -> None:
    is_mask = or_mask and array.dtype in (np.uint8, np.bool_) and array.ndim == 2 and array.size
    if not (is_rgb(array) or is_mask):
        raise InputError(
            f"the picture is {array.dtype} {array.shape}",
            "it must be uint8 (height, width, 3), range 0..255"
            + ", or uint8 or bool (height, width)" * or_mask,
            "convert it with .astype(np.uint8)",
        )


def write_png(path: str | os.PathLike[str], array: Uint8Array | BoolArray | Image.Image) -> None:
    """Write a PNG file, whole or not at all, and make its folder.

    Args:
        path: Where to; an existing file is replaced.
        array: bool (height, width) is written as 0 and 255; uint8 (height, width) or
            (height, width, 3) as it is; a Pillow image without what else its file held.

    Raises:
        InputError: The folder cannot be written, or the array is another one.
    """
    write_atomically(path, encode_png(array))


def encode_png(array: Uint8Array | BoolArray | Image.Image) -> bytes | memoryview:
    """The content of a PNG file; the picture as for ``write_png``."""
    if isinstance(array, Image.Image):
        image = array
    else:
        _require_picture(array, or_mask=True)
        if array.ndim == 2:
            return _encode_grey(array)
        image = Image.fromarray(array)
    from PIL.PngImagePlugin import PngInfo

    signature = PngInfo()
    signature.add_text(*SIGNATURE)
    content = io.BytesIO()
    # On photographs run-length coding is smaller than zlib's level 1, and 15 times as fast as the
    # default level, which would take longer than decoding and inference together.
    image.info = {}  # profiles and text
    image.save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=signature)
    return content.getbuffer()


def _encode_grey(array: Uint8Array | BoolArray) -> bytes:
    """A grey PNG file of a mask or labels (height, width).

    Pillow would try five filters on each row, which takes longer and gains nothing on masks.
    """
    height, width = array.shape
    keyword, text = (word.encode() for word in SIGNATURE)
    coder = zlib.compressobj(1, memLevel=9, strategy=zlib.Z_RLE)
    coded = bytearray()
    count = max(1, 2**18 // width)
    for top in range(0, height, count):
        band = array[top : top + count]
        rows = np.zeros((len(band), width + 1), np.uint8)  # a row begins with its filter, 0: none
        if band.dtype == np.bool_:
            np.negative(band.view(np.uint8), out=rows[:, 1:])  # 1 becomes 255
        else:
            rows[:, 1:] = band
        coded += coder.compress(rows.data)
    coded += coder.flush()
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"tEXt" + keyword + b"\0" + text,
        b"IDAT" + coded,
        b"IEND",
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def mask_values(image: Image.Image, name: str) -> npt.NDArray[Any]:
    """The samples (height, width) of an opened mask that tell background from lesion.

    Raises:
        InputError: It has transparent pixels, or colours beyond those of a palette.
    """
    if image.has_transparency_data and not image.mode.startswith("I"):
        lowest_alpha, _ = image.convert("RGBA").getchannel("A").getextrema()
        if cast(float, lowest_alpha) < 255:
            raise InputError(
                f"{name} has transparent pixels",
                "a mask is opaque, with 0 for background and one other value for the lesion",
                "flatten it and save it as a grey PNG",
            )
    if image.mode.startswith("I;16"):
        return read_16_bit(image)[0]
    if image.mode in ("1", "L", "I", "F"):
        return np.asarray(image)
    channels = np.asarray(image.convert("RGB"))
    if (channels == channels[..., :1]).all():
        return channels[..., 0]
    if image.mode == "P":
        return np.asarray(image)
    raise InputError(
        f"{name} is a colour picture",
        "a mask is grey, with 0 for background and one other value for the lesion",
        "choose the mask file, or save it as a grey PNG",
    )
