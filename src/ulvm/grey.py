"""Grey pictures of more than eight bits as arrays."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base

from ulvm.errors import InputError


def read_16_bit(image: Image.Image) -> tuple[npt.NDArray[np.uint16], int]:
    """Samples (height, width) with black at 0, and the value of white."""
    samples = np.asarray(image, np.uint16)
    tags: Any = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(Base.BitsPerSample) == (12,) else 65535
    if tags.get(Base.PhotometricInterpretation) == 0:  # White is zero: Pillow inverts 8 bits only.
        samples = np.uint16(white) - samples
    return samples, white


def scale_grey(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """16-bit or float samples as uint8 (height, width); ``name`` is for messages."""
    if image.mode.startswith("I;16"):
        samples, white = read_16_bit(image)
        return ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise InputError(
            f"{name} holds pixels that are not finite (NaN or infinity)",
            "",
            "replace them and save it again",
        )
    scaled = np.rint((values - low) * (255 / max(high - low, 1e-300)))
    return cast(npt.NDArray[np.uint8], scaled.astype(np.uint8))
