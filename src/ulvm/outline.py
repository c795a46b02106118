"""A mask as polygons along the edges of its pixels, for tools that keep shapes by their corners."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ulvm.image import BoolArray

Points = npt.NDArray[np.float64]
"""(corners, 2): x and y in pixels from the top left; the first corner is there once."""

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # x, y of each heading


class Polygon(NamedTuple):
    """One piece of a mask. No outline crosses or touches itself; a hole may touch at a corner.

    Args:
        outline: Round the piece, clockwise as seen.
        holes: Round what is not in the mask inside it, the other way round, largest first.
    """

    outline: Points
    holes: tuple[Points, ...]


def find_polygons(mask: BoolArray, *, tolerance: float = 0.0) -> list[Polygon]:
    """The pieces of a mask, and the holes in them.

    Filled, outlines less holes, they are the mask again, pixel for pixel, if the tolerance is 0.
    Pieces that touch at a corner only are apart.

    Args:
        mask: bool (height, width).
        tolerance: How far, in pixels, an outline may leave the pixels' edges to need fewer
            corners; 0 keeps every corner.

    Returns:
        Largest first; empty for an empty mask.
    """
    rings = [ring for traced in _trace(mask) for ring in _cut(traced)]
    areas = [_signed_area(ring) for ring in rings]  # below 0 for a hole
    order = sorted(range(len(rings)), key=lambda index: -abs(areas[index]))
    holes: dict[int, list[int]] = {index: [] for index in order if areas[index] > 0}
    for hole, piece in _find_pieces(rings, areas).items():
        holes[piece].append(hole)

    def simple(index: int) -> Points:
        return _simplify(rings[index], tolerance) if tolerance else rings[index]

    return [
        Polygon(simple(piece), tuple(simple(hole) for hole in sorted(inside, key=order.index)))
        for piece, inside in holes.items()
    ]


def polygons(mask: BoolArray, *, tolerance: float = 0.0) -> list[Points]:
    """The outlines of ``find_polygons`` without their holes."""
    return [polygon.outline for polygon in find_polygons(mask, tolerance=tolerance)]


def flatten(corners: Points) -> list[float]:
    """x, y, x, y … in hundredths of a pixel, as most file formats want them."""
    return [float(value) for value in corners.round(2).ravel()]


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


def _cut(corners: Points) -> list[Points]:
    """An outline that touches itself at corners, as outlines that don't."""
    if len(np.unique(corners, axis=0)) == len(corners):
        return [corners]
    rings: list[Points] = []
    path: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    for x, y in corners.tolist():
        corner = (x, y)
        if (first := place.get(corner)) is not None:
            rings.append(np.array(path[first:]))
            for passed in path[first:]:
                del place[passed]
            del path[first:]
        place[corner] = len(path)
        path.append(corner)
    return [*rings, np.array(path)]


def _find_pieces(rings: list[Points], areas: list[float]) -> dict[int, int]:
    """Hole → the piece that it is in, as indices of rings."""
    inside = [index for index, area in enumerate(areas) if area < 0]
    if not inside:
        return {}
    # Every edge that goes up or down: its x, its ends, and whose it is.
    columns, tops, bottoms, owners = [], [], [], []
    for index, ring in enumerate(rings):
        following = np.roll(ring, -1, axis=0)
        upright = ring[:, 0] == following[:, 0]
        y = np.stack([ring[upright, 1], following[upright, 1]])
        columns.append(ring[upright, 0])
        tops.append(y.min(axis=0))
        bottoms.append(y.max(axis=0))
        owners.append(np.full(int(upright.sum()), index))
    x, top, bottom, owner = map(np.concatenate, (columns, tops, bottoms, owners))
    found: dict[int, int] = {}
    for hole in sorted(inside, key=lambda index: rings[index][:, 0].min()):
        # Left of a hole's leftmost edge there is mask; it begins at an edge of the piece, or of
        # another of its holes, which lies farther left and is known.
        own = np.flatnonzero(owner == hole)
        leftmost = own[x[own].argmin()]
        before = np.flatnonzero(
            (x < x[leftmost]) & (top <= top[leftmost]) & (top[leftmost] < bottom)
        )
        nearest = int(owner[before[x[before].argmax()]])
        found[hole] = nearest if areas[nearest] > 0 else found[nearest]
    return found


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
