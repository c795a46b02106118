"""The picture formats that need an extra: how their files begin and end, and who opens them.

``picture.py`` asks here about files that it does not know itself. A further format is a row of
``OPTIONAL_FORMATS``; its module, or what that imports at its top, is of the extra.

A HEIC file says by a property of its own how the picture is turned, which its decoder obeys. Most
phones repeat it as EXIF orientation: pi-heif sets that to 1, so nothing is turned twice; of more
bits it makes eight.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import IO, NamedTuple

from PIL.ImageFile import ImageFile

from ulvm.errors import InputError, install_extra

HEAD_BYTES = 132
"""How many of a file's first bytes ``open_optional`` wants."""

_HEIC_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)


class OptionalFormat(NamedTuple):
    """A picture format of an extra.

    Args:
        kind: What people call it.
        suffixes: Endings of its files, in lower case.
        begins: Whether a file of this format can begin with these bytes.
        module: Has the class below.
        image: A ``PIL.ImageFile``, upright, not decoded until it is loaded.
        extra: What to install.
    """

    kind: str
    suffixes: frozenset[str]
    begins: Callable[[bytes], bool]
    module: str
    image: str
    extra: str


OPTIONAL_FORMATS = (
    OptionalFormat(
        "HEIC",
        frozenset({".heic", ".heif"}),
        lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS,
        "pi_heif",
        "HeifImageFile",
        "heic",
    ),
    OptionalFormat(
        "DICOM",
        frozenset({".dcm", ".dicom"}),
        lambda head: head[128:132] == b"DICM",
        "ulvm.use.dicom",
        "DicomImageFile",
        "dicom",
    ),
)

OPTIONAL_SUFFIXES = frozenset().union(*(each.suffixes for each in OPTIONAL_FORMATS))
"""A folder search takes these for pictures too, so that those that can't be read are named."""


def open_optional(head: bytes, file: IO[bytes], name: str) -> ImageFile | None:
    """A picture of one of these formats, its pixels not decoded yet.

    Args:
        head: The file's first ``HEAD_BYTES`` bytes, or all.
        file: The file, at its beginning.
        name: What to call it in messages.

    Returns:
        The picture; None if its format is none of these.

    Raises:
        InputError: The extra is not installed, or the file can't be read.
    """
    for known in OPTIONAL_FORMATS:
        if not known.begins(head):
            continue
        try:
            module = importlib.import_module(known.module)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{name} is {known.kind}, which needs the package {error.name}",
                "",
                f"{install_extra(known.extra)}, or export it as PNG",
            ) from error
        image: ImageFile = getattr(module, known.image)(file, name)
        return image
    return None
