"""Scores of kinds of pictures: how a model does on small, faint or dark ones, and by diagnosis.

Contrast and skin tone are measured in CIELAB on the decoded pictures, between the true lesion and
a ring of skin around it. Plain numpy.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ulvm.errors import InputError, unknown_name
from ulvm.image import rim
from ulvm.metrics import BoolArray, Confusion, FloatArray, dice, pooled
from ulvm.quality import to_lab
from ulvm.splits import name_some

# The ring of skin, in shares of the frame's side: it begins a little outside the border, which is
# soft, and is as wide as the skin that a lesion is seen against.
RING_FROM, RING_TO = 0.015, 0.06

SIZES = ((0.01, "< 1 %"), (0.04, "1–4 %"), (0.15, "4–15 %"), (0.40, "15–40 %"), (2.0, "> 40 %"))
"""Upper limits of the lesion's share of the frame, and their names."""

TONES = (
    (55.0, "very light"),
    (41.0, "light"),
    (28.0, "intermediate"),
    (10.0, "tan"),
    (-30.0, "brown"),
    (-181.0, "dark"),
)
"""Lower limits of the individual typology angle in degrees, and their names.

Source: Chardin et al., Int. J. Cosmet. Sci. 13 (1991); `dark` after Del Bino et al., Pigment Cell
Res. 19 (2006).
"""

MEASURED = ("size", "contrast", "tone", "source")
"""What pictures can be told apart by without a table; else its columns."""

NO_LESION, NOT_STATED = "no lesion", "not stated"
FAIL = 0.5  # Dice below which an outline is of no use

_TITLES = {
    "size": "lesion's share of the frame",
    "contrast": "contrast with the skin around, ΔE",
    "tone": "skin tone by ITA",
    "source": "data set",
}
_NOTES = {
    "contrast": "ΔE: distance of the mean CIELAB colours of lesion and surrounding skin (CIE 1976),"
    " in fifths of these pictures.",
    "tone": "ITA, the individual typology angle of the skin around the lesion, follows the light"
    " and the camera as well as the skin: under a colour cast it is not reliable.",
}


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Scores of the pictures of one kind.

    Args:
        name: The kind.
        images: How many there are.
        pooled_dice: Dice of all their pixels, 0..1.
        mean_dice: Mean Dice per picture, 0..1.
        failed: Share of pictures whose Dice is below .5, 0..1.
    """

    name: str
    images: int
    pooled_dice: float
    mean_dice: float
    failed: float


@dataclass(frozen=True, kw_only=True)
class StrataTable:
    """Scores by one property of the pictures.

    Args:
        by: The property: `size`, `contrast`, `tone`, `source`, or a column of the data set's table.
        rows: A kind each, in order.
    """

    by: str
    rows: tuple[Stratum, ...]

    def markdown(self) -> str:
        """The table as Markdown, with what has to be known of the property."""
        lines = [
            f"| {_TITLES.get(self.by, self.by)} | pictures | Dice, pooled | per image | below .5 |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.name.replace('|', '/')} | {row.images:,} | {row.pooled_dice:.4f} "
            f"| {row.mean_dice:.4f} | {row.failed:.1%} |"
            for row in self.rows
        ]
        note = _NOTES.get(self.by)
        return "\n".join([*lines, "", note] if note else lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def find_ring(mask: BoolArray) -> BoolArray:
    """The skin around a lesion: from 1.5 to 6 % of the frame's side outside it.

    Args:
        mask: Lesion, bool (height, width).

    Returns:
        bool (height, width); the whole picture for an empty mask.
    """
    if not mask.any():
        return np.ones_like(mask)
    side = float(np.sqrt(mask.size))
    first, last = (max(1, round(share * side)) for share in (RING_FROM, RING_TO))
    outside = np.pad(~mask, last, constant_values=True)  # the frame's edge is no lesion
    ring = rim(outside, last) & ~rim(outside, first)
    return ring[last:-last, last:-last]


def measure(image_rgb: npt.NDArray[np.uint8], truth: BoolArray) -> tuple[float, float]:
    """Contrast of a lesion and tone of the skin around it.

    Contrast is ΔE*ab, the Euclidean distance of two CIELAB colours (CIE 1976), of the means over
    the lesion and over `find_ring`. The individual typology angle of the latter is
    atan((L − 50) / b); continued past ±90° where b is negative, under bluish light.

    Args:
        image_rgb: uint8 (height, width, 3).
        truth: True lesion, bool (height, width).

    Returns:
        ΔE and ITA in degrees; nan where there is no lesion or no skin.

    Source: Chardin et al., Int. J. Cosmet. Sci. 13 (1991), for ITA.
    """
    ring = find_ring(truth)
    if not ring.any():
        return float("nan"), float("nan")
    skin = to_lab(image_rgb[ring]).mean(axis=0)
    angle = float(np.degrees(np.arctan2(skin[0] - 50, skin[2])))
    if not truth.any():
        return float("nan"), angle
    lesion = to_lab(image_rgb[truth]).mean(axis=0)
    return float(np.sqrt(((lesion - skin) ** 2).sum())), angle


def tabulate(
    by: str,
    counts: Confusion,
    ids: Sequence[str],
    *,
    measures: FloatArray,
    dataset: str,
    columns: Mapping[str, Mapping[str, str]],
) -> StrataTable:
    """The scores of each kind of picture.

    Args:
        by: `size`, `contrast`, `tone`, `source`, or a column of the data set's table.
        counts: Counts (images,).
        ids: Id of each.
        measures: What `measure` gives of each, (images, 2).
        dataset: Name of the data set.
        columns: Of each picture by its id, the value of each column.

    Raises:
        InputError: There is no such property.
    """
    check_name(by, columns, ids)
    if by == "size":
        area = (counts.tp + counts.fn) / (counts.tp + counts.fn + counts.fp + counts.tn)
        names = [_name_size(share) for share in area]
        order = [NO_LESION, *(name for _, name in SIZES)]
    elif by == "contrast":
        names, order = _name_fifths(measures[:, 0])
    elif by == "tone":
        names = [_name_tone(angle) for angle in measures[:, 1]]
        order = [*(name for _, name in TONES), NOT_STATED]
    else:
        stated = (columns.get(id_, {}).get(by) for id_ in ids)
        if by == "source":
            names = [name or dataset for name in stated]
        else:
            names = [name or NOT_STATED for name in stated]
        order = sorted(set(names), key=lambda name: (name == NOT_STATED, -names.count(name), name))
    kinds = np.array(names)
    each = dice(counts)
    rows = []
    for name in order:
        chosen = np.flatnonzero(kinds == name)
        if len(chosen):
            some = each[chosen]
            rows.append(
                Stratum(
                    name=name,
                    images=len(chosen),
                    pooled_dice=float(pooled(dice)(counts.select(chosen))),
                    mean_dice=float(some.mean()),
                    failed=float((some < FAIL).mean()),
                )
            )
    return StrataTable(by=by, rows=tuple(rows))


def check_name(by: str, columns: Mapping[str, Mapping[str, str]], ids: Sequence[str]) -> None:
    """Refuse a property that pictures don't have.

    Raises:
        InputError: It names those that they have; or the table has none of these ids.
    """
    known = dict.fromkeys([*MEASURED, *(name for row in columns.values() for name in row)])
    known.pop("id", None)
    if by not in known:
        raise unknown_name(f"pictures can't be told apart by '{by}'", by, known)
    if by not in MEASURED and not columns.keys() & set(ids):
        raise InputError(
            f"the table with '{by}' has none of these pictures; it has {name_some([*columns], 3)}",
            f"an id is a file's name without its ending, such as {ids[0]}",
            "correct the ids in the table",
        )


def _name_size(share: float) -> str:
    return NO_LESION if share == 0 else next(name for limit, name in SIZES if share < limit)


def _name_tone(angle: float) -> str:
    return next((name for limit, name in TONES if angle > limit), NOT_STATED)


def _name_fifths(values: FloatArray) -> tuple[list[str], list[str]]:
    """The fifth of each value by name, and all names in order."""
    known = values[~np.isnan(values)]
    limits = np.quantile(known, np.linspace(0, 1, 6)) if known.size else np.zeros(6)
    order = [f"{low:.1f}–{high:.1f}" for low, high in itertools.pairwise(limits)]
    fifth = np.digitize(values, limits[1:-1])  # nan comes last
    names = [
        NO_LESION if np.isnan(value) else order[index]
        for value, index in zip(values, fifth, strict=True)
    ]
    return names, [*dict.fromkeys(order), NO_LESION]
