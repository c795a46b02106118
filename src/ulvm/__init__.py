"""UltraLight VM-UNet: outline a skin lesion on any device. Not a medical device.

import ulvm

segmenter = ulvm.load()
segmentation = segmenter(ulvm.read_image("photo.jpg"))
segmentation.mask  # bool, the size of the photo
"""

from ulvm.errors import InputError
from ulvm.image import draw_overlay, read_image, write_png
from ulvm.segmenter import Segmentation, Segmenter, load
from ulvm.version import __version__

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
