"""A mask as polygons, for tools that keep shapes by their corners."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ulvm.image import BoolArray

Points = npt.NDArray[np.float64]

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # x, y of each heading


def polygons(mask: BoolArray, *, tolerance: float = 0.0) -> list[Points]:
    """The outer outlines of a mask, along the edges of its pixels; holes are filled.

    Pieces that touch at a corner only are polygons of their own.

    Args:
        mask: bool (height, width).
        tolerance: How far, in pixels, an outline may leave the pixels' edges to need fewer
            corners; 0 keeps every corner.

    Returns:
        Largest first: float64 (corners, 2), x and y in pixels from the picture's top left corner,
        clockwise as seen, the first corner not repeated.
    """
    found = []
    for corners in _trace(mask):
        area = _signed_area(corners)
        if area > 0:  # a hole runs the other way round
            kept = _simplify(corners, tolerance) if tolerance else corners
            found.append((area, kept))
    found.sort(key=lambda each: -each[0])
    return [corners for _, corners in found]


def flatten(corners: Points, *, decimals: int = 2) -> list[float]:
    """x, y, x, y … as most file formats want them."""
    return [float(value) for value in corners.round(decimals).ravel()]


def _trace(mask: BoolArray) -> list[Points]:
    """Every closed outline, the mask on its right hand, as its corners (corners, 2)."""
    padded = np.pad(mask, 1)
    inside, above = padded[1:, 1:], padded[:-1, 1:]
    beside, diagonal = padded[1:, :-1], padded[:-1, :-1]
    # From each point where four pixels meet, which headings an outline leaves it by.
    leaves = {
        _RIGHT: inside & ~above,
        _DOWN: beside & ~inside,
        _LEFT: diagonal & ~beside,
        _UP: above & ~diagonal,
    }
    ordered = [
        (x, y, heading)
        for heading, where in leaves.items()
        for y, x in zip(*(axis.tolist() for axis in np.nonzero(where)), strict=True)
    ]
    edges = set(ordered)
    outlines = []
    for start in ordered:
        if start not in edges:
            continue  # of an outline that was followed already
        x, y, heading = start
        corners = []
        while True:
            edges.discard((x, y, heading))
            x, y = x + _STEPS[heading][0], y + _STEPS[heading][1]
            # Right first, so that an outline stays with its pixel where two touch at a corner.
            for turn in (1, 0, 3):
                following = (heading + turn) % 4
                if (x, y, following) in edges or (x, y, following) == start:
                    break
            if following != heading:
                corners.append((x, y))
            heading = following
            if (x, y, heading) == start:
                break
        outlines.append(np.array(corners, np.float64))
    return outlines


def _signed_area(corners: Points) -> float:
    """Positive where the outline runs clockwise as seen, y pointing down."""
    x, y = corners.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _simplify(corners: Points, tolerance: float) -> Points:
    """Fewer corners, the outline nowhere farther than the tolerance from those left out.

    Source: Douglas and Peucker 1973, on each half between two far corners.
    """
    apart: Any = ((corners - corners[0]) ** 2).sum(axis=1)
    far = int(apart.argmax())
    closed = np.concatenate([corners, corners[:1]])
    kept = np.zeros(len(closed), bool)
    kept[[0, far, -1]] = True
    waiting = [(0, far), (far, len(corners))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        along = closed[last] - closed[first]
        between = closed[first + 1 : last] - closed[first]
        length = float(np.hypot(*along))
        distance = (
            np.abs(between[:, 0] * along[1] - between[:, 1] * along[0]) / length
            if length
            else np.hypot(*between.T)
        )
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    simple = closed[:-1][kept[:-1]]
    return simple if len(simple) > 2 else corners
