"""UltraLight VM-UNet: outline a skin lesion on any device. Not a medical device.

import ulvm

segmenter = ulvm.load()
segmentation = segmenter("photo.jpg")  # or bytes, a file, a Pillow image, an array
segmentation.mask  # bool, the size of the photo
"""

import importlib
from typing import TYPE_CHECKING, Any

from ulvm.errors import InputError
from ulvm.version import __version__

if TYPE_CHECKING:
    from ulvm.image import draw_overlay, read_image, write_png
    from ulvm.segmenter import Segmentation, Segmenter, load

__all__ = [
    "InputError",
    "Segmentation",
    "Segmenter",
    "__version__",
    "draw_overlay",
    "load",
    "read_image",
    "write_png",
]

# Imported when first asked for: the command reads the first picture while numpy is imported.
_HOMES = {
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "draw_overlay": "image",
    "load": "segmenter",
    "read_image": "image",
    "write_png": "image",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
