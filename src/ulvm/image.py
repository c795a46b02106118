"""Picture files to RGB and back: reading, resizing, masks, outlines, overlays."""

import contextlib
import importlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile

from ulvm.errors import InputError
from ulvm.files import write_atomically

MAX_PIXELS = 200_000_000
"""Larger pictures are refused from their header, before they are decoded."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
)
"""File name endings, in lower case, that a folder search takes for pictures."""

FORMATS = "PNG, JPEG, TIFF, BMP, WebP and GIF"

ImageSource = str | os.PathLike[str] | bytes | IO[bytes]
Uint8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

# The plug-ins are called by the file's first bytes, not through `Image.open`: that one warns or
# refuses by its own pixel limit, a process-wide global which a library must not change, and it
# takes a damaged header for an unknown format. Each is imported when a file needs it.
_OPENERS = {
    b"\x89PNG\r\n\x1a\n": ("PngImagePlugin", "PngImageFile"),
    b"\xff\xd8\xff": ("JpegImagePlugin", "jpeg_factory"),
    b"II*\0": ("TiffImagePlugin", "TiffImageFile"),
    b"MM\0*": ("TiffImagePlugin", "TiffImageFile"),
    b"II+\0": ("TiffImagePlugin", "TiffImageFile"),
    b"MM\0+": ("TiffImagePlugin", "TiffImageFile"),
    b"BM": ("BmpImagePlugin", "BmpImageFile"),
    b"GIF8": ("GifImagePlugin", "GifImageFile"),
    b"RIFF": ("WebPImagePlugin", "WebPImageFile"),
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANAR = 258, 262, 284
_SIGNATURE = ("Software", "ulvm")
_SIGNED_BY = b"tEXt" + "\0".join(_SIGNATURE).encode()


def read_image(source: ImageSource) -> Uint8Array:
    """The picture as a viewer shows it, in RGB.

    EXIF orientation is applied and transparency is put on white; of several frames the first is
    taken. 16-bit samples are scaled by their full range, 32-bit integer and float samples by
    the picture's own minimum and maximum. Embedded colour profiles are not applied.

    Args:
        source: A path, the bytes of a file, or a binary file object.

    Returns:
        uint8 (height, width, 3), range 0..255.

    Raises:
        InputError: The file is missing, no picture, damaged, or above ``MAX_PIXELS`` pixels.
    """
    return np.array(read_picture(source))


def read_picture(source: ImageSource) -> Image.Image:
    """As ``read_image``, but a Pillow image of mode RGB: of a large photo half the time."""
    image, name = _decode(source)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_grey(image, name)).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # Pillow keeps a 16-bit colour key but 8-bit samples, so it would match wrong pixels.
        del image.info["transparency"]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_mask(source: ImageSource) -> Uint8Array:
    """The mask in a file of two values, as 0 (background) and 255 (lesion).

    Accepted are 0 and one other value, in 1-bit, grey, palette, or colour files of equal
    channels. A palette that is not grey is a label map: its indices are the values. A mask of
    one value is all background (0) or all lesion (1 or the highest value of 8 or 16 bits).

    Args:
        source: A path, the bytes of a file, or a binary file object.

    Returns:
        uint8 (height, width) holding 0 and 255 only.

    Raises:
        InputError: As ``read_image``; or the file holds other values, colours or transparency.
    """
    image, name = _decode(source)
    values = _mask_values(image, name)
    low, high = values.min(), values.max()
    all_lesion = low == high and high in (1, 255, 65535)
    if all_lesion or (low == 0 and ((values == 0) | (values == high)).all()):
        return np.where(values == 0, 0, 255).astype(np.uint8)
    found = np.unique(values)
    listed = ", ".join(f"{value:g}" for value in found[:6])
    raise InputError(
        f"{name} holds {len(found)} different values ({listed}{', …' * (len(found) > 6)})"
        if len(found) > 1
        else f"{name} holds the value {listed} only, neither background nor lesion",
        "a mask holds 0 for background and one other value for the lesion",
        "threshold it (for JPEG at 128) and save it as PNG",
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
    height, width = size_hw
    if isinstance(image, Image.Image):
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    if image.dtype != np.uint8:
        raise InputError(
            f"the array to resize is {image.dtype}",
            "accepted is uint8, range 0..255",
            "scale it to 0..255 and convert it with .astype(np.uint8)",
        )
    return resize(Image.fromarray(image), size_hw)


def outline(mask: BoolArray, width: int) -> BoolArray:
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
        InputError: Mask and picture differ in size.
    """
    if mask.shape != image_rgb.shape[:2]:
        raise InputError(
            f"the mask is {_size_text(*mask.shape)} and the picture "
            f"{_size_text(*image_rgb.shape[:2])}",
            "accepted is one size",
            "resize the mask to the picture's size",
        )
    if line_width is None:
        line_width = max(2, round(mask.size**0.5 / 250))
    cover = np.where(mask, np.uint8(round(255 * opacity)), np.uint8(0))
    cover[outline(mask, line_width)] = 255
    image = Image.fromarray(image_rgb)
    image.paste(color_rgb, mask=Image.fromarray(cover))
    return np.array(image)


def write_png(path: str | os.PathLike[str], array: Uint8Array | BoolArray) -> None:
    """Write a PNG file, whole or not at all, and make its folder.

    Args:
        path: Where to; an existing file is replaced.
        array: bool (height, width) is written as 0 and 255; uint8 (height, width) or
            (height, width, 3) as it is.

    Raises:
        InputError: The folder cannot be written.
    """
    if array.ndim == 2:
        write_atomically(path, _encode_grey(array))
        return
    from PIL.PngImagePlugin import PngInfo

    signature = PngInfo()
    signature.add_text(*_SIGNATURE)
    content = io.BytesIO()
    # On photographs run-length coding is smaller than zlib's level 1, and 15 times as fast as the
    # default level, which would take longer than decoding and inference together.
    Image.fromarray(array).save(
        content, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=signature
    )
    write_atomically(path, content.getbuffer())


def _encode_grey(array: Uint8Array | BoolArray) -> bytes:
    """A grey PNG file of a mask or labels (height, width).

    Pillow would try five filters on each row, which takes longer and gains nothing on masks.
    """
    height, width = array.shape
    keyword, text = (word.encode() for word in _SIGNATURE)
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


def is_written_by_ulvm(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a PNG that ``write_png`` wrote; no, if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return _SIGNED_BY in file.read(128)
    except OSError:
        return False


def _decode(source: ImageSource) -> tuple[Image.Image, str]:
    """The first frame, turned upright, in the file's own mode, and what to call it in messages."""
    with _open(source) as (file, name):
        image = _read_header(file, name)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(name, f"{_size_text(height, width)} pixels")
        _refuse_misread_tiff(image, name)
        with _damage_reported(name):
            image.load()
        turn = _UPRIGHT.get(_orientation(image))
        return (image if turn is None else image.transpose(turn)), name


@contextlib.contextmanager
def _open(source: ImageSource) -> Iterator[tuple[IO[bytes], str]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source), "the picture given as bytes"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            raise InputError(
                f"{path} is a folder", "accepted is one picture file", "name a file in it"
            )
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist", "accepted is a picture file", "check the path"
            ) from error
        except OSError as error:
            raise InputError(
                f"{path} cannot be opened ({error.strerror})",
                "accepted is a readable file",
                "check its permissions",
            ) from error
        with file:
            yield file, str(path)
    else:  # A pipe cannot seek, which decoders need.
        yield io.BytesIO(source.read()), str(getattr(source, "name", "the picture"))


def _read_header(file: IO[bytes], name: str) -> ImageFile:
    head = file.read(132)
    file.seek(0)
    for signature, (plugin, opener) in _OPENERS.items():
        if head.startswith(signature) and (signature != b"RIFF" or head[8:12] == b"WEBP"):
            module = importlib.import_module(f"PIL.{plugin}")
            with _damage_reported(name):
                image: ImageFile = getattr(module, opener)(file)
                return image
    if not head:
        raise InputError(f"{name} is empty", f"accepted are {FORMATS} files", "copy it again")
    if head[4:8] == b"ftyp":
        kind, remedy = "HEIC or AVIF", "export it as JPEG or PNG"
    elif head[128:132] == b"DICM":
        kind, remedy = "DICOM", "export its picture as PNG with your DICOM viewer"
    else:
        kind, remedy = "not a picture of a known kind", "export it as PNG or JPEG"
    raise InputError(f"{name} is {kind}", f"accepted are {FORMATS} files", remedy)


@contextlib.contextmanager
def _damage_reported(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, "too many pixels for Pillow") from error
    except Exception as error:  # On damaged bytes Pillow's decoders raise nearly any type.
        reason = str(error) or type(error).__name__
        if "truncated" in reason.lower():
            reason = "it is truncated"
        elif "not identified by this driver" in reason:  # Pillow's words for a zero size
            reason = "its header states no size"
        raise InputError(
            f"{name} is damaged or of an unsupported variant ({reason})",
            f"accepted are whole {FORMATS} files",
            "copy it again, or open it in a picture editor and save it as PNG",
        ) from error


def _refuse_misread_tiff(image: ImageFile, name: str) -> None:
    """Refuse the one TIFF layout that Pillow decodes to wrong values without an error."""
    tags: Any = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return
    raw = any(tile[0] == "raw" for tile in image.tile)
    plain = set(tags.get(_TIFF_BITS, (1,))) == {8} and tags.get(_TIFF_PHOTOMETRIC) != 0
    if raw and tags.get(_TIFF_PLANAR) == 2 and not plain:
        raise InputError(
            f"{name} is an uncompressed TIFF with separate planes that are not plain 8-bit",
            "accepted is TIFF with interleaved samples",
            "save it as PNG, or as TIFF with planar configuration 1",
        )


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Viewers too show a picture with unreadable EXIF as it is stored.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _read_16_bit(image: Image.Image) -> tuple[npt.NDArray[np.uint16], int]:
    """Samples (height, width) with black at 0, and the value of white."""
    samples = np.asarray(image, np.uint16)
    tags: Any = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # White is zero: Pillow inverts 8 bits only.
        samples = np.uint16(white) - samples
    return samples, white


def _scale_grey(image: Image.Image, name: str) -> Uint8Array:
    if image.mode.startswith("I;16"):
        samples, white = _read_16_bit(image)
        return ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise InputError(
            f"{name} holds pixels that are not finite (NaN or infinity)",
            "accepted are finite values",
            "replace them and save it again",
        )
    scaled = np.rint((values - low) * (255 / max(high - low, 1e-300)))
    return cast(Uint8Array, scaled.astype(np.uint8))


def _mask_values(image: Image.Image, name: str) -> npt.NDArray[Any]:
    """The samples (height, width) that tell background from lesion."""
    if image.has_transparency_data and not image.mode.startswith("I"):
        lowest_alpha, _ = image.convert("RGBA").getchannel("A").getextrema()
        if cast(float, lowest_alpha) < 255:
            raise InputError(
                f"{name} has transparent pixels",
                "a mask is opaque, with 0 for background and one other value for the lesion",
                "flatten it and save it as a grey PNG",
            )
    if image.mode.startswith("I;16"):
        return _read_16_bit(image)[0]
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


def _too_large(name: str, given: str) -> InputError:
    return InputError(
        f"{name} has {given}",
        f"accepted are up to {MAX_PIXELS:,} pixels",
        "scale it down or cut out the lesion",
    )


def _size_text(height: int, width: int) -> str:
    return f"{height}×{width}"
