"""How much of a foreign file is read: every limit, and the readers that keep them.

``docs/limits.md`` lists the limits; a test compares.
"""

import contextlib
import io
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ulvm.errors import InputError, not_found

PIXELS = 200_000_000
"""Of a picture. Larger ones are refused from their header, before they are decoded."""

SIDE = 2**20
"""Height and width of a picture in pixels."""

RUN_LENGTH_PIXELS = 20_000_000
"""Of a run-length coded BMP, which Pillow decodes in Python, some seconds for so many."""

JPEG_SCANS = 100
"""Passes over one JPEG, each of which may take a second and hold next to nothing."""

PNG_TEXT_BYTES = 2**26
"""Of all text and notes in a PNG or JPEG, as stored; they are passed over, not read."""

PICTURE_SECONDS = 60
"""Processor time of one picture's decoder, asked for whenever it reads on."""

STREAM_BYTES = 2**29
"""Of standard input or another stream."""

ZIP_MEMBER_BYTES = 2**29
"""Of one file in a zip, inflated."""

JSON_BYTES = 2**24
"""Of a JSON file, such as a split."""

TABLE_BYTES = 2**24
"""Of a CSV file: groups or classes."""

JSON_DEPTH = 16
"""Objects and lists in each other; the engine's reader of weights has the same (json.h)."""

MODEL_BYTES = 2**30
"""Of a model file: weights, ONNX, a checkpoint of the authors."""


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """The file, to read, without a buffer. Pipes and devices are refused: they may never end.

    Raises:
        InputError: It is missing, no regular file, or cannot be opened.
    """
    if not os.fspath(path):  # which Path takes for the folder here
        raise InputError("the path is empty", "", "name a file")
    try:
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode):
            return io.FileIO(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise not_found(path) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be opened ({reason})", "", "check its name and permissions"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder", "a file is needed", "name a file in it")
    raise InputError(
        f"{path} is a pipe or a device", "it must be a regular file", "copy its content to a file"
    )


def read_at_most(file: IO[bytes] | io.FileIO, limit: int, name: str) -> bytes:
    """All bytes of a file or stream.

    Raises:
        InputError: It cannot be read, or there are more.
    """
    pieces, left = [], limit
    try:
        while piece := file.read(2**20):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                raise InputError(f"{name} is longer than {limit:,} bytes", "", "choose another")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it is closed
        given = f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError(given, "", "copy it again") from error
    return b"".join(pieces)


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        InputError: It cannot be opened or read, or there are more bytes.
    """
    with open_regular(path) as file:
        return read_at_most(file, limit, str(path))


def parse_json(text: str | bytes) -> Any:
    """The value in foreign JSON.

    Raises:
        ValueError: It is no JSON, too long, or too deep; the message says which.
    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"longer than {JSON_BYTES:,} bytes")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"more than {JSON_DEPTH} brackets deep") from None
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH + 1):
        outers = [each for each in level if isinstance(each, dict | list)]
        if not outers:
            return value
        level = [
            inner
            for outer in outers
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    raise ValueError(f"more than {JSON_DEPTH} brackets deep")


class Room:
    """Room for the pixels that all workers hold at once: no more than those of a largest picture.

    Args:
        pixels: In all; one picture has no more.
    """

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that waits until there is room for so many pixels, until the block ends."""
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            with self._changed:
                self._changed.wait_for(lambda: self._free >= pixels)
                self._free -= pixels
                taken += pixels

        try:
            yield take
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()
