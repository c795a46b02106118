"""Picture files written by hand or by Pillow, for tests of readers."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ulvm.errors import InputError
from ulvm.image import read_image


def encode(picture: Any, kind: str, **options: Any) -> bytes:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(samples: np.ndarray, color_type: int, *, bits: int = 16, extra: bytes = b"") -> bytes:
    """A PNG written by hand, for Pillow writes no 16-bit colour."""
    height, width = samples.shape[:2]
    kind = ">u2" if bits == 16 else "u1"
    lines = b"".join(b"\0" + row.astype(kind).tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def tiff(
    samples: np.ndarray,
    *,
    bits: int,
    photometric: int,
    order: str = "<",
    planes: bool = False,
    deflate: bool = False,
    more_tags: Sequence[tuple[int, int, list[int]]] = (),
) -> bytes:
    """A TIFF written by hand, (height, width, channels)."""
    height, width, channels = samples.shape
    parts = [samples[..., k] for k in range(channels)] if planes else [samples]
    strips = [part.astype(f"{order}u{bits // 8}").tobytes() for part in parts]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    starts = np.cumsum([8, *map(len, strips)])
    end = int(starts[-1]) + int(starts[-1]) % 2
    short, long = 3, 4
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [bits] * channels),
        (259, short, [8 if deflate else 1]),
        (262, short, [photometric]),
        (273, long, starts[:-1].tolist()),
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [len(strip) for strip in strips]),
        (284, short, [2 if planes else 1]),
    ]
    tags = sorted([*tags, *more_tags])
    directory, beyond = struct.pack(order + "H", len(tags)), b""
    for tag, kind, values in tags:
        value = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(value) > 4:
            place = end + 2 + 12 * len(tags) + 4 + len(beyond)
            value, beyond = struct.pack(order + "I", place), beyond + value
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    first = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", end)
    body = (first + b"".join(strips)).ljust(end, b"\0")
    return body + directory + struct.pack(order + "I", 0) + beyond


def refused(source: Any, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_image(source)
    for word in words:
        assert word in str(caught.value)
