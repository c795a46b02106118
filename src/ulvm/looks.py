"""Copies of a picture under another name: what it looks like in 120 bits, however it is turned.

Each bit is the sign of a slow cosine wave in the grey picture. Saving as JPEG, another size or
brightness changes few of them; a flip changes those of known waves. A crop changes many, and in a
picture without detail small changes do too.
Of 16 million pairs of pictures of ISIC 2017, HAM10000, PAD-UFES-20 and PH2, turned in each way, six
are at most 7 bits apart, the same spot each time; JPEG at quality 75 or half the size changes at
most 6, at quality 30 at most 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ulvm.image import BoolArray, Uint8Array

SIDE = 32
WAVES = 11  # on each side
BITS = WAVES**2 - 1  # all but the mean
DIGITS = BITS // 4
NEAR = 7  # bits that a copy may differ in
_BLOCK = 1024

_COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(WAVES), np.arange(SIDE) + 0.5))

Signs = npt.NDArray[np.float32]  # (pictures, WAVES, WAVES): -1 or 1; 0 for the mean


def look_of(image_rgb: Uint8Array) -> str:
    """What a picture, uint8 (height, width, 3), looks like, as 30 hex digits."""
    grey = Image.fromarray(image_rgb).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    waves = _COSINES @ np.asarray(grey, np.float64) @ _COSINES.T
    return np.packbits(waves.ravel()[1:] > 0).tobytes().hex()


def are_copies(looks: Sequence[str], known: Sequence[str]) -> BoolArray:
    """Which pictures look like one of those that are known, or one of them turned or flipped.

    Args:
        looks: What ``look_of`` says of each.
        known: The same of the others.

    Returns:
        bool (looks,).
    """
    if not looks or not known:
        return np.zeros(len(looks), np.bool_)
    return np.asarray(_compare(looks, known).any(axis=1))


def find_copies(looks: Sequence[str]) -> list[tuple[int, int]]:
    """The positions, the smaller first, of each two pictures that look alike."""
    pairs = []
    for start in range(0, len(looks), _BLOCK):  # the whole table may not fit into memory
        alike = _compare(looks[start : start + _BLOCK], looks)
        pairs += [(start + int(i), int(j)) for i, j in np.argwhere(alike) if start + i < j]
    return pairs


def _compare(looks: Sequence[str], known: Sequence[str]) -> BoolArray:
    """Whether each two look alike, (looks, known)."""
    theirs = _signs(known).reshape(len(known), -1)
    agreement = np.full((len(looks), len(known)), -BITS, np.float32)
    for turned in _turn(_signs(looks)):
        # Of two signs the product is 1 where they agree and -1 where not.
        np.maximum(agreement, turned.reshape(len(looks), -1) @ theirs.T, out=agreement)
    alike: BoolArray = agreement >= BITS - 2 * NEAR
    return alike


def _signs(looks: Sequence[str]) -> Signs:
    packed = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(len(looks), -1)
    signs = np.zeros((len(looks), WAVES**2), np.float32)
    signs[:, 1:] = np.unpackbits(packed, axis=1) * 2.0 - 1
    return signs.reshape(-1, WAVES, WAVES)


def _turn(signs: Signs) -> Iterator[Signs]:
    """The signs of the pictures turned and flipped in all eight ways."""
    flipped = np.where(np.arange(WAVES) % 2, -1, 1).astype(np.float32)  # odd waves change sign
    for straight in (signs, signs.swapaxes(1, 2)):
        for rows in (1, flipped[:, None]):
            for columns in (1, flipped):
                yield straight * rows * columns
