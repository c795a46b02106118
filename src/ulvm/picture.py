"""Picture files to Pillow images. Needs no numpy, so that reading begins before it is imported."""

import contextlib
import functools
import importlib
import io
import os
import re
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image, ImagePalette
from PIL.ImageFile import ImageFile

from ulvm import limits
from ulvm.errors import InputError, PictureWarning
from ulvm.use.formats import HEAD_BYTES, open_optional

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
)
"""File name endings, in lower case, that a folder search takes for pictures."""


LARGEST_PIECE = 2**24  # bytes
FORMATS = "PNG, JPEG, TIFF, BMP, WebP and GIF"

ImageSource = str | os.PathLike[str] | bytes | IO[bytes]

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

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_EXIF = b"Exif\0\0"
_TURN = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0"  # EXIF of an orientation alone, up to it
TURNED = "turned by ulvm"
"""Key of a picture's ``info``: the EXIF orientation, 2..8, that it was turned upright from."""

SPACING_MM = "spacing_mm"
"""Key of a picture's ``info``: distance of its rows and of its columns, where a file says it."""

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
_TIFF_KIND, _TIFF_PLANAR, _TIFF_COLOURS, _TIFF_MORE_PICTURES = 254, 284, 320, 330
SIGNATURE = ("Software", "ulvm")
_SIGNED_BY = b"tEXt" + "\0".join(SIGNATURE).encode()

# Between the samples of a JPEG's pass there are no others but those that begin it anew.
_JPEG_MARKER = re.compile(rb"\xff([^\0\xd0-\xd7\xff])")
_JPEG_PASS, _JPEG_END = 0xDA, 0xD9
_JPEG_SEGMENTS = 100_000  # more than any has, of 64 kB each
_PNG_START = b"\x89PNG\r\n\x1a\n"


def read_picture(source: ImageSource, before: Callable[[int], None] | None = None) -> Image.Image:
    """As ``read_image``, but a Pillow image of mode RGB: of a large photo half the time.

    Args:
        source: As for ``read_image``.
        before: Called with the number of pixels before they are decoded; it may wait for memory, or
            refuse them.
    """
    with decode(source, before) as (image, name):
        return _as_rgb(image, name)


def turn_upright(image: Image.Image) -> Image.Image:
    """A Pillow image as ``read_picture`` gives a file: turned as its EXIF says, of mode RGB.

    What ``read_picture`` has turned isn't turned again. Pillow's own ``exif_transpose`` takes the
    turn out of the EXIF, so an image that went through it stays as it is.

    Raises:
        InputError: Its file is damaged, which Pillow finds out late.
    """
    name = str(getattr(image, "filename", "") or "the picture")
    with _damage_reported(name):
        _check_tiff(image, name)
        image.load()
    return _as_rgb(image if TURNED in image.info else _turn(image, _orientation(image)), name)


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    """The picture upright, which says what it was turned from; itself if it is upright."""
    if orientation not in UPRIGHT:
        return image
    upright = image.transpose(UPRIGHT[orientation])
    upright.info[TURNED] = orientation
    return upright


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        from ulvm.grey import scale_grey

        scaled = Image.fromarray(scale_grey(image, name)).convert("RGB")
        scaled.info = image.info
        return scaled
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # Pillow keeps a 16-bit colour key but 8-bit samples, so it would match wrong pixels.
        del image.info["transparency"]
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.info = rgba.info
        image.paste(rgba, mask=rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_written_by_ulvm(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a PNG that ``write_png`` wrote; no, if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return _SIGNED_BY in file.read(128)
    except OSError:
        return False


@contextlib.contextmanager
def decode(
    source: ImageSource, before: Callable[[int], None] | None = None
) -> Iterator[tuple[Image.Image, str]]:
    """The first frame, turned upright, in the file's own mode, and what to call it in messages.

    Whatever its decoder raises, here or in the body, becomes an ``InputError`` with its name.
    """
    with _open(source) as (file, name), _damage_reported(name):
        if before:
            before = functools.cache(before)
        try:
            image = _decode(file, name, before)
        except (InputError, PictureWarning, MemoryError):
            raise
        except Exception:
            # Pillow refuses a picture for its text, profile or camera's notes; it needs none.
            lighter = _without_notes(file, name)
            if lighter is None:
                raise
            image = _decode(lighter, name, before)
        yield image, name


def _decode(file: IO[bytes], name: str, before: Callable[[int], None] | None) -> Image.Image:
    image = _read_header(file, name)
    _refuse_large(image, file, name)
    _check_tiff(image, name)
    if _has_pages(image):
        said = f"{name} has several pages; the first is taken"
        warnings.warn(said, PictureWarning, stacklevel=2)
    # In one piece: between pieces other threads' Python would hold it up.
    image.decodermaxblock = LARGEST_PIECE
    is_deep = image.mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in image.tile)
    if before:
        before(image.width * image.height)
    _forget_hearsay(image)
    turned = _orientation(image) if image.format == "TIFF" else 1
    image.load()  # which turns a TIFF, and reads the end of a PNG
    _forget_hearsay(image)
    if turned in UPRIGHT:
        image.info[TURNED] = turned
    exif = image.info.get("exif")
    orientation = _read_orientation(exif) if isinstance(exif, bytes) else _orientation(image)
    return _turn(_keep_low_bytes(image, file, name) if is_deep else image, orientation)


class _Watched(io.BufferedReader):
    """A file that stops a decoder which takes too long, when it reads on."""

    def __init__(self, file: Any, name: str) -> None:
        super().__init__(file)
        self._name = name
        self._end = time.thread_time() + limits.PICTURE_SECONDS

    @property
    def name(self) -> str:
        """What some decoders ask for; the file under it may have none."""
        return self._name

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._end:
            raise InputError(
                f"{self._name} takes longer than {limits.PICTURE_SECONDS} seconds to decode",
                "",
                "open it in a picture editor and save it as PNG",
            )
        return super().read(size)


@contextlib.contextmanager
def _open(source: ImageSource) -> Iterator[tuple[IO[bytes], str]]:
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        with _Watched(limits.open_regular(source), name) as file:
            yield file, name
        return
    if isinstance(source, bytes):
        content, name = source, "the picture given as bytes"
    else:  # A pipe cannot seek, which decoders need.
        if not hasattr(source, "read"):
            raise InputError(
                f"the picture is a {type(source).__name__}",
                "a path, the bytes of a file or a binary file object is read",
                "give an array or a Pillow image to the model itself",
            )
        name = _name_of(source)
        content = limits.read_at_most(source, limits.STREAM_BYTES, name)
    yield _Watched(io.BytesIO(content), name), name


def _name_of(file: Any) -> str:
    """What to call a file object in messages: its path, if it has one.

    Raises:
        InputError: It gives text, not bytes.
    """
    path = getattr(file, "name", None)  # None or a number for temporary files
    name = path if isinstance(path, str) else "the picture"
    if isinstance(file, io.TextIOBase):
        raise InputError(f"{name} was opened as text", "", "open it with mode 'rb'")
    return name


def _read_header(file: IO[bytes], name: str) -> ImageFile:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    for signature, (plugin, opener) in _OPENERS.items():
        if head.startswith(signature) and (signature != b"RIFF" or head[8:12] == b"WEBP"):
            module = importlib.import_module(f"PIL.{plugin}")
            image: ImageFile = getattr(module, opener)(file)
            return image
    if not head:
        raise InputError(f"{name} is empty", "", "copy it again")
    foreign = open_optional(head, file, name)
    if foreign is not None:
        return foreign
    kind = "AVIF" if head[4:8] == b"ftyp" else "not a picture of a known kind"
    remedy = "export it as PNG or JPEG"
    raise InputError(f"{name} is {kind}", f"{FORMATS} files can be read", remedy)


@contextlib.contextmanager
def _damage_reported(name: str) -> Iterator[None]:
    try:
        yield
    except (InputError, PictureWarning, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # asked for by its readers of TIFF and WebP
        raise _too_large(name, "too many pixels for Pillow", limit) from error
    except Exception as error:  # On damaged bytes Pillow's decoders raise nearly any type.
        reason = str(error) or type(error).__name__
        if "truncated" in reason.lower():
            reason = "it is truncated"
        elif "not identified by this driver" in reason:  # Pillow's words for a zero size
            reason = "its header states no size"
        raise InputError(
            f"{name} is damaged or of an unsupported variant ({reason})",
            f"whole {FORMATS} files can be read",
            "copy it again, or open it in a picture editor and save it as PNG",
        ) from error


def _refuse_large(image: ImageFile, file: IO[bytes], name: str) -> None:
    """Refuse what would take minutes or gigabytes, by its header; read on to the pixels."""
    width, height = image.size
    is_run_length = any(tile[0] == "bmp_rle" for tile in image.tile)
    limit = limits.RUN_LENGTH_PIXELS if is_run_length else limits.PIXELS
    if width * height > limit or max(width, height) > limits.SIDE:
        kind = " in a run-length code" if is_run_length else ""
        raise _too_large(name, f"{size_text(height, width)} pixels{kind}", limit)
    if image.format in ("JPEG", "MPO"):
        scans = _count_scans(image, file)
        if scans > limits.JPEG_SCANS:
            raise InputError(
                f"{name} is a JPEG of {scans} passes",
                f"up to {limits.JPEG_SCANS} are read",
                "open it in a picture editor and save it as PNG",
            )


def _count_scans(image: ImageFile, file: IO[bytes]) -> int:
    """How often a JPEG goes over its picture; 1 where its first pass has all colours."""
    place = file.tell()
    colours = len(image.getbands())
    header = bytes((0, 6 + 2 * colours, colours))  # of a pass with all of them, after its marker
    is_progressive = bool(image.info.get("progressive"))
    scans = 1
    file.seek(max(0, place - header[1]))  # Pillow has just read the first pass's, but of an MPO
    if is_progressive or file.read(3) != header:
        file.seek(0)
        content = limits.read_at_most(file, limits.STREAM_BYTES, "the picture")
        passes = (segment for marker, segment in walk_jpeg(content) if marker == _JPEG_PASS)
        if is_progressive:
            scans = sum(1 for _ in passes)
        elif next(passes, b"")[2:5] != header:
            scans += sum(1 for _ in passes)
    file.seek(place)
    return scans


def walk_jpeg(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker of a JPEG and its segment, and 0 for the samples after one, to the picture's end.

    What phones put behind it, such as a film, isn't looked at.
    """
    end = 2
    for _ in range(_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(content, end)
        if not found:
            return
        start = found.start()
        if found[1][0] == _JPEG_END:
            yield _JPEG_END, found[0]
            return
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
        yield found[1][0], content[start:end]
        if found[1][0] == _JPEG_PASS:
            following = _JPEG_MARKER.search(content, end)
            samples = content[end : following.start() if following else len(content)]
            end += len(samples)
            yield 0, samples


def _without_notes(file: IO[bytes], name: str) -> IO[bytes] | None:
    """A PNG or JPEG again with nothing but what shows; None for others, and if that is all."""
    file.seek(0)
    head = file.read(8)
    if head == _PNG_START:
        kept, passed_over = _showing_chunks(file)
    elif head.startswith(b"\xff\xd8\xff"):
        content = head + limits.read_at_most(file, limits.STREAM_BYTES, name)
        parts = [content[:2]]
        for marker, segment in walk_jpeg(content):
            is_note = 0xE0 <= marker <= 0xEF or marker == 0xFE
            if segment[4:10] == _EXIF:
                turn = bytes((_read_orientation(segment[4:]),))
                parts += [b"\xff\xe1\0\x22", _EXIF, _TURN, turn, bytes(6)]
            elif not is_note or (segment[4:9] == b"Adobe" and len(segment) >= 16):
                parts.append(segment)
        kept = b"".join(parts)
        passed_over = len(content) - len(kept)
    else:
        return None
    if passed_over <= 0:
        return None
    if passed_over > limits.PNG_TEXT_BYTES:
        raise InputError(
            f"{name} holds {passed_over:,} bytes of text",
            f"up to {limits.PNG_TEXT_BYTES:,} are passed over",
            "open it in a picture editor and save it again",
        )
    return _Watched(io.BytesIO(kept), name)


def _showing_chunks(file: IO[bytes]) -> tuple[bytes, int]:
    """The chunks of a PNG that decide what it shows, and how many bytes all others have."""
    kept, passed_over = [_PNG_START], 0
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        data = b""
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):
            data = file.read(length + 4)
        else:
            file.seek(length + 4, os.SEEK_CUR)
        if kind[:1].isupper() or (
            data and zlib.crc32(kind + data[:-4]) == int.from_bytes(data[-4:])
        ):
            kept += [head, data]
        else:
            passed_over += length + 12
    return b"".join(kept), passed_over


def _keep_low_bytes(image: ImageFile, file: IO[bytes], name: str) -> Image.Image:
    """A picture of 16-bit colours, of which Pillow has kept the high bytes.

    Samples of 10 or 12 bits have only 4 or 16 different ones, so the low bytes are read too.
    """
    extremes = cast(tuple[tuple[int, int], ...], image.getextrema())
    if max(high for _, high in extremes[:3]) >= 16:
        return image
    if _tiff_tags(image).get(_TIFF_PLANAR) == 2:  # there Pillow doesn't ask for the bytes' order
        raise _separate_planes(name, "a TIFF of separate planes with few of 16 bits")
    from ulvm.grey import join_bytes

    file.seek(0)
    low = _read_header(file, name)
    is_grey = False
    for index, tile in enumerate(low.tile):
        args = tile[3]
        raw_mode = args if isinstance(args, str) else str(args and args[0])
        is_grey = raw_mode.startswith("LA;")
        swapped: Any = "RGBA" if is_grey else _swap_bytes(raw_mode)  # "RGBA": all four bytes
        if not isinstance(args, str):
            swapped = (swapped, *(args or ())[1:])
        make: Any = getattr(tile, "_make", tuple)  # a plain tuple before Pillow 11
        low.tile[index] = make((*tile[:3], swapped))
    low.load()
    if is_grey:
        grey = low.getchannel("G")
        return join_bytes(image, Image.merge("RGB", (grey, grey, grey)))
    return join_bytes(image, low)


def _swap_bytes(raw_mode: str) -> str:
    """Pillow's name of the same samples in the other order of bytes."""
    is_little = raw_mode.endswith("L") or (raw_mode.endswith("N") and sys.byteorder == "little")
    return raw_mode[:-1] + ("B" if is_little else "L")


def _tiff_tags(image: Image.Image) -> Any:
    """The tags of a TIFF; of others none, for some have such tags too."""
    tags = getattr(image, "tag_v2", None)
    return {} if tags is None or image.format != "TIFF" else tags


def _check_tiff(image: Image.Image, name: str) -> None:
    """Refuse TIFF files that Pillow decodes to wrong values without an error, or mend how it does.

    Raises:
        InputError: It is one of those; or its first picture is a small copy.
    """
    tags = _tiff_tags(image)
    if not tags or not isinstance(image, ImageFile):
        return
    if tags.get(_TIFF_KIND, 0) & 1 and (_has_pages(image) or _TIFF_MORE_PICTURES in tags):
        raise InputError(
            f"{name} begins with a small copy of its picture, as a camera's raw file does",
            "the first picture of a file is read",
            "export it as PNG or JPEG",
        )
    codes = {tile[0] for tile in image.tile}
    raw_modes = {str(tile[3] and tile[3][0]) for tile in image.tile}
    bits = set(tags.get(TIFF_BITS, (1,)))
    is_plain = bits == {8} and tags.get(TIFF_PHOTOMETRIC) != 0
    if "raw" in codes and tags.get(_TIFF_PLANAR) == 2 and not is_plain:
        given = "an uncompressed TIFF with separate planes that are not plain 8-bit"
        raise _separate_planes(name, given)
    if "libtiff" in codes and any(re.search(r";(16|32|64)B", mode) for mode in raw_modes):
        raise InputError(
            f"{name} is a compressed TIFF of signed or float samples, largest byte first",
            "",
            "save it as PNG, or as TIFF without compression",
        )
    colours = tags.get(_TIFF_COLOURS, ())
    if image.mode == "P" and colours and max(colours) < 256:  # of sixteen bits: all but black
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    if bits == {8} and 2 in tags.get(TIFF_SAMPLE_FORMAT, ()):
        raise InputError(f"{name} is a TIFF of signed 8-bit samples", "", "save it as PNG")


def _has_pages(image: Image.Image) -> bool:
    return image.format == "TIFF" and bool(getattr(image, "is_animated", False))


def _separate_planes(name: str, given: str) -> InputError:
    return InputError(
        f"{name} is {given}",
        "a TIFF must have interleaved samples",
        "save it as PNG, or as TIFF with planar configuration 1",
    )


def _read_orientation(exif: bytes) -> int:
    """The orientation in EXIF, as browsers read it; 1 where it says none.

    Pillow's reader stops at the first value that is damaged, be it the camera's name.
    """
    tiff = exif.removeprefix(_EXIF)
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        mark, start = struct.unpack_from(order + "2xHI", tiff)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, orientation = struct.unpack_from(order + "HHIH2x", tiff, place)
            if (mark, tag, kind, values) == (42, _EXIF_ORIENTATION, 3, 1):
                return orientation if orientation in UPRIGHT else 1
    except struct.error:  # it ends before
        pass
    return 1


def _forget_hearsay(image: Image.Image) -> None:
    """Let EXIF alone turn a picture, as in browsers; where it is silent, Pillow asks XMP and text.

    What stays there is often of the picture before it was turned by hand.
    """
    for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        if image.info.pop(key, None) is not None:
            image._exif = None  # it may have been asked already


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Viewers too show a picture with unreadable EXIF as it is stored.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _too_large(name: str, given: str, limit: int) -> InputError:
    return InputError(
        f"{name} has {given}",
        f"up to {limit:,} pixels can be read, and {limits.SIDE:,} on a side",
        "scale it down or cut out the lesion",
    )


def size_text(height: int, width: int) -> str:
    """A size for messages."""
    return f"{height}×{width}"
