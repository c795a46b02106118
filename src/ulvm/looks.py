"""Copies of a picture under another name: what it looks like in 120 bits, however it is turned.

Each bit is the sign of a slow cosine wave in the grey picture. Saving as JPEG, another size or
brightness changes few of them; a flip changes those of known waves. A crop changes many, and in a
picture without detail small changes do too.
Of 16 million pairs of pictures of ISIC 2017, HAM10000, PAD-UFES-20 and PH2, turned in each way, six
are at most 7 bits apart, the same spot each time; JPEG at quality 75 or half the size changes at
most 6, at quality 30 at most 7.
"""

from __future__ import annotations

import functools
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
BLOCK = 1024  # pictures at once: the whole table may not fit into memory

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
    return np.concatenate([block.min(axis=1) <= NEAR for block in _bits_apart(looks, known)])


def find_alike(looks: Sequence[str]) -> list[tuple[int, int, int]]:
    """Pictures that look alike, two by two: their places, and in how many bits they differ."""
    found = []
    blocks = _bits_apart(looks, looks) if looks else ()
    for number, block in enumerate(blocks):
        for row, column in np.argwhere(block <= NEAR):
            if (first := number * BLOCK + int(row)) < column:
                found.append((first, int(column), int(block[row, column])))
    return found


def _bits_apart(looks: Sequence[str], known: Sequence[str]) -> Iterator[npt.NDArray[np.floating]]:
    """Of some pictures after the other (some, known): bits that they differ in, turned as fits."""
    theirs = _signs(known).reshape(len(known), -1).T
    for start in range(0, len(looks), BLOCK):
        signs = _signs(looks[start : start + BLOCK])
        # Of two signs the product is 1 where they agree and -1 where not.
        sums = (turned.reshape(len(signs), -1) @ theirs for turned in _turn(signs))
        yield (BITS - functools.reduce(np.maximum, sums)) / 2


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
