"""Pictures of more than eight bits as arrays."""

import warnings
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base

from ulvm.errors import InputError, PictureWarning

BAND_ROWS = 256  # of a large picture at once


def read_16_bit(image: Image.Image) -> tuple[npt.NDArray[np.uint16], int]:
    """Samples (height, width) with black at 0, and the value of white in the file's form."""
    samples = np.asarray(image, np.uint16)
    tags: Any = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(Base.BitsPerSample) == (12,) else 65535
    if tags.get(Base.PhotometricInterpretation) == 0:  # White is zero: Pillow inverts 8 bits only.
        samples = np.uint16(white) - samples
    return samples, white


def bits_of(largest: float) -> int:
    """How many bits the samples of a 16-bit file have, from the largest of them."""
    return next((bits for bits in (8, 10, 12) if 0 < largest < 2**bits), 16)


def _scale_16_bit(samples: npt.NDArray[np.uint16], white: int) -> npt.NDArray[np.uint8]:
    """As uint8; a camera's 10 or 12 bits by their own range, which is said."""
    return _table_16_bit(samples.max(), white)[samples]


def _table_16_bit(largest: int, white: int) -> npt.NDArray[np.uint8]:
    """For each sample up to the largest what it is in eight bits."""
    bits = bits_of(largest)
    if 2**bits <= white:
        white = 2**bits - 1
        said = f"a 16-bit picture holds {bits}-bit samples: they are scaled by {white}, not 65535"
        warnings.warn(said, PictureWarning, stacklevel=2)
    samples = np.arange(int(largest) + 1, dtype=np.uint32)
    return ((samples * 255 + white // 2) // white).astype(np.uint8)


def join_bytes(high: Image.Image, low: Image.Image) -> Image.Image:
    """A picture of 16-bit colours from two of their high and low bytes, scaled by their range.

    The first of the two becomes the result, for a large one more would not fit into memory.
    """

    def samples(box: tuple[int, int, int, int]) -> npt.NDArray[np.uint16]:
        joined = np.asarray(high.crop(box), np.uint16)[..., :3] * 256
        joined += np.asarray(low.crop(box))[..., :3]
        return joined

    height, width = high.height, high.width
    bands = [(0, top, width, min(top + BAND_ROWS, height)) for top in range(0, height, BAND_ROWS)]
    table = _table_16_bit(max(samples(box).max() for box in bands), 65535)
    for box in bands:
        scaled = np.array(high.crop(box))
        scaled[..., :3] = table[samples(box)]
        high.paste(Image.fromarray(scaled), box)
    return high


def scale_grey(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """16-bit or float samples as uint8 (height, width); ``name`` is for messages."""
    if image.mode.startswith("I;16"):
        return _scale_16_bit(*read_16_bit(image))
    samples = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(Base.SampleFormat, (1,)) == (1,):
        samples = samples.view(np.uint32)  # Pillow has no such mode
    values = samples.astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise InputError(
            f"{name} holds pixels that are not finite (NaN or infinity)",
            "",
            "replace them and save it again",
        )
    scaled = np.rint((values - low) * (255 / max(high - low, 1e-300)))
    return cast(npt.NDArray[np.uint8], scaled.astype(np.uint8))
