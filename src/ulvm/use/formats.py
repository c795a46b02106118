"""The picture formats that need an extra: how their files begin and end, and who opens them.

``picture.py`` asks here about files that it does not know itself. A further format is a row of
``OPTIONAL_FORMATS`` and a module with ``open_picture``, whose top imports what the extra installs.
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
        module: Has ``open_picture(file, name)``, which gives a Pillow image that is not decoded.
        extra: What to install.
    """

    kind: str
    suffixes: frozenset[str]
    begins: Callable[[bytes], bool]
    module: str
    extra: str


OPTIONAL_FORMATS = (
    OptionalFormat(
        "HEIC",
        frozenset({".heic", ".heif"}),
        lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS,
        "ulvm.use.heic",
        "heic",
    ),
    OptionalFormat(
        "DICOM",
        frozenset({".dcm", ".dicom"}),
        lambda head: head[128:132] == b"DICM",
        "ulvm.use.dicom",
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
        image: ImageFile = module.open_picture(file, name)
        return image
    return None
