"""Phones' photos, HEIC, through pi-heif; of the extra ``[heic]``.

A HEIC file says by a property of its own how the picture is turned, which its decoder obeys. Most
phones repeat it as EXIF orientation: pi-heif sets that to 1, so nothing is turned twice.
"""

from __future__ import annotations

from typing import IO

from pi_heif import HeifImageFile
from PIL.ImageFile import ImageFile


def open_picture(file: IO[bytes], name: str) -> ImageFile:
    """The file's primary picture, upright, its pixels not decoded yet; more bits become eight."""
    image: ImageFile = HeifImageFile(file, name)
    return image
