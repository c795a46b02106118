"""How far a result can be trusted: an estimate of its Dice, and warnings in plain words.

Two formulas weigh a dozen measures of the probability, the mask and the picture: one estimates the
Dice if there is a lesion, the other the chance that there is one. Their numbers are in
``weights/quality.json``, which ``bench/quality.py`` fits to pictures that the networks had not
seen; ``web/quality.js`` has the same formulas for the page. They are fitted to the bundled model;
for others they rank, at best.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

CONSTANTS = Path(__file__).with_name("weights") / "quality.json"
ONE_COLOUR = 8  # a picture has one colour where each channel spans at most this, of 255
STEP = 4  # colours are measured at every fourth pixel of every fourth row
START = 2  # the first of them
RING = 0.25  # of the spot's box: how far its surroundings reach on each side
SIDES = 12  # sectors of the surroundings, seen from the spot's middle
FIRST_SIDE = 0.01  # of a turn: no line of pixels lies where one sector ends
SIDE_LEAST = 3  # colours that a sector is judged by
FURTHEST = 3.0  # spreads: a measure further from its mean counts as this far

SENTENCES = {
    "one-colour": "the picture has one colour",
    "nothing-found": "no spot was found",
    "unlike-lesion": "what was found looks unlike a lesion",
    "low-contrast": "the spot has little contrast to the skin",
    "small": "the spot is small",
    "over-half": "the spot covers more than half of the picture",
    "touches-frame": "the spot touches the edge of the picture",
    "fragments": "other spots beside it were left out",
    "unsure": "the border is uncertain",
}


@dataclass(frozen=True)
class Doubt:
    """A reason not to trust a result.

    Args:
        code: A key of ``SENTENCES``; it stays the same in later versions.
        text: The same in plain words, without a full stop.
    """

    code: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {"code": self.code, "text": self.text}


@dataclass(frozen=True)
class Assessment:
    """What is thought of a result.

    Args:
        quality: Estimate of the mask's Dice, 0..1; 0 for an empty mask.
        warnings: Reasons for doubt, the weightiest first.
    """

    quality: float
    warnings: tuple[Doubt, ...]


def is_one_colour(image_rgb: npt.NDArray[np.uint8]) -> bool:
    """Whether a picture, uint8 (height, width, 3), has nothing to see in it."""
    some = image_rgb[::16, ::16]  # enough to tell nearly every picture, and 50 times as fast
    return all(
        int(part[..., channel].max()) - int(part[..., channel].min()) <= ONE_COLOUR
        for part in (some, image_rgb)
        for channel in range(3)
    )


def assess(
    image_rgb: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    threshold: float,
) -> Assessment:
    """The quality of a result, and what speaks against it.

    Args:
        image_rgb: uint8 (size, size, 3), the picture as the network saw it.
        probability: float32 (size, size), the network's, 0..1.
        mask: bool (size, size), without specks and holes.
        threshold: Of the mask.
    """
    if is_one_colour(image_rgb):
        return Assessment(0.0, (_doubt("one-colour"),))
    if not mask.any():
        return Assessment(0.0, (_doubt("nothing-found"),))
    constants = _constants()
    measures = measure(image_rgb, probability, mask, threshold)
    score, chance = weigh(constants, measures)
    quality = rate(constants, score, chance)
    codes = doubts(constants["bound"], quality, chance, measures)
    return Assessment(quality, tuple(_doubt(code) for code in codes))


def weigh(constants: dict[str, Any], measures: dict[str, float]) -> tuple[float, float]:
    """The two formulas.

    Returns:
        The score of the outline, unbounded, and the chance that there is a lesion, 0..1.
    """
    names = list(constants["mean"])
    far = [(measures[one] - constants["mean"][one]) / constants["spread"][one] for one in names]
    x = np.clip(far, -FURTHEST, FURTHEST)
    outline, lesion = constants["outline"], constants["lesion"]
    score = outline["bias"] + x @ [outline["weight"][one] for one in names]
    logit = lesion["bias"] + x @ [lesion["weight"][one] for one in names]
    logit += x @ np.array(lesion["products"]) @ x
    return float(score), float(1 / (1 + np.exp(-np.clip(logit, -50, 50))))


def rate(constants: dict[str, Any], score: float, chance: float) -> float:
    """Quality, 0..1: Dice by the score, less where a lesion is unlikely."""
    dice = np.interp(score, constants["curve"]["score"], constants["curve"]["dice"])
    return float(dice * min(1.0, chance / constants["bound"]["unlike-lesion"]))


def doubts(
    bound: dict[str, float], quality: float, chance: float, measures: dict[str, float]
) -> list[str]:
    """Codes of what speaks against a mask that is not empty."""
    found = {
        "unlike-lesion": chance < bound["unlike-lesion"],
        "low-contrast": np.expm1(measures["contrast"]) < bound["low-contrast"],
        "small": np.exp(measures["size"]) < bound["small"],
        "over-half": np.exp(measures["size"]) > bound["over-half"],
        "touches-frame": measures["touch"] ** 2 > bound["touches-frame"],
        "fragments": measures["dropped"] > bound["fragments"],
    }
    codes = [code for code, is_so in found.items() if is_so]
    return codes or (["unsure"] if quality < bound["unsure"] else [])


def measure(
    image_rgb: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    threshold: float,
) -> dict[str, float]:
    """What is known of a mask that is not empty; arguments as of ``assess``.

    Returns:
        ``inside``: mean probability inside. ``overlap``: the Dice that the probabilities expect.
        ``doubt``: log of the sum of p (1 - p) over the mask's area. ``size``: log of the share
        of the frame. ``shape``: length of the border over the root of the area. ``touch``: root
        of the share of the frame's edge that the mask covers. ``dropped``: share of the pixels
        from the threshold on that the clean-up took away. ``contrast``: log of 1 + ΔE between
        spot and surroundings. ``weakest``: the same of the surroundings' sector most like the
        spot. ``clarity``: log of ΔE over their spread. ``aside``: distance of the spot's middle
        from the frame's, 1 at an edge. ``colours``: spread of a* and b* in the frame. ``red``,
        ``yellow``: mean a* and b* outside the mask.
    """
    size = len(mask)
    p = probability.astype(np.float64)
    area = int(mask.sum())
    inside = float(p[mask].sum())
    raw = probability >= np.float32(threshold)
    edge = sum(int(side.sum()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    border = int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()) + edge
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    middle_y = float(mask.sum(axis=1) @ np.arange(size)) / area + 0.5
    middle_x = float(mask.sum(axis=0) @ np.arange(size)) / area + 0.5

    lab = to_lab(image_rgb[START::STEP, START::STEP])
    spot = mask[START::STEP, START::STEP]
    at = np.arange(START, size, STEP)
    reach_y, reach_x = (max(8.0, RING * (line[-1] - line[0] + 1)) for line in (rows, columns))
    near_y = (at >= rows[0] - reach_y) & (at <= rows[-1] + reach_y)
    near_x = (at >= columns[0] - reach_x) & (at <= columns[-1] + reach_x)
    ring = near_y[:, None] & near_x & ~spot
    contrast, spread = _contrast(lab, spot, ring)
    outside = lab if spot.all() else lab[~spot]
    return {
        "inside": inside / area,
        "overlap": 2 * inside / (float(p.sum()) + area),
        "doubt": float(np.log(max(float((p * (1 - p)).sum()) / area, 1e-4))),
        "size": float(np.log(area / size**2)),
        "shape": border / area**0.5,
        "touch": (edge / (4 * size)) ** 0.5,
        "dropped": int((raw & ~mask).sum()) / max(1, int(raw.sum())),
        "contrast": float(np.log1p(contrast)),
        "weakest": float(np.log1p(_weakest(lab, spot, ring, (middle_y, middle_x)))),
        "clarity": float(np.log(0.05 + contrast / (1 + spread))),
        "aside": float(np.hypot(2 * middle_y / size - 1, 2 * middle_x / size - 1)),
        "colours": float(np.log1p(lab[..., 1:].var(axis=(0, 1)).sum())),
        "red": float(outside[..., 1].mean()),
        "yellow": float(outside[..., 2].mean()),
    }


def _contrast(lab: Float, spot: npt.NDArray[np.bool_], ring: npt.NDArray[np.bool_]) -> Any:
    """ΔE between the means of two parts, and the root of their mean variance; 0, 0 if one is empty.

    A spot smaller than the grid, or one that fills the frame, has no contrast to speak of.
    """
    if not spot.any() or not ring.any():
        return 0.0, 0.0
    one, other = lab[spot], lab[ring]
    difference = float(np.sqrt(((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum()))
    return difference, float(np.sqrt((one.var(axis=0).sum() + other.var(axis=0).sum()) / 2))


def _weakest(
    lab: Float,
    spot: npt.NDArray[np.bool_],
    ring: npt.NDArray[np.bool_],
    middle_yx: tuple[float, float],
) -> float:
    """Least ΔE between the mean of the spot and that of a sector around it; 0 without any."""
    y, x = (START + STEP * line + 0.5 for line in np.nonzero(ring))
    turn = np.arctan2(y - middle_yx[0], x - middle_yx[1]) / (2 * np.pi)
    side = (SIDES * ((turn + 1 + FIRST_SIDE) % 1)).astype(int)
    count = np.bincount(side, minlength=SIDES)
    enough = count >= SIDE_LEAST
    if not spot.any() or not enough.any():
        return 0.0
    total = np.stack([np.bincount(side, part, SIDES) for part in lab[ring].T], axis=-1)
    apart = total[enough] / count[enough, None] - lab[spot].mean(axis=0)
    return float(np.sqrt((apart**2).sum(axis=1)).min())


def to_lab(rgb: npt.NDArray[np.uint8]) -> Float:
    """sRGB, 0..255, as CIELAB with white D65, (…, 3). Source: IEC 61966-2-1, CIE 15."""
    xyz = _linear()[rgb] @ np.array(_TO_XYZ).T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


# Rows are divided by the white point, so that white is 1, 1, 1.
_TO_XYZ = (
    (0.4123908 / 0.9504559, 0.3575843 / 0.9504559, 0.1804808 / 0.9504559),
    (0.2126390, 0.7151687, 0.0721923),
    (0.0193308 / 1.0890578, 0.1191948 / 1.0890578, 0.9505322 / 1.0890578),
)


@functools.cache
def _linear() -> Float:
    """Linear light of each of the 256 values."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


@functools.cache
def _constants() -> dict[str, Any]:
    constants: dict[str, Any] = json.loads(CONSTANTS.read_text("utf-8"))
    return constants


def _doubt(code: str) -> Doubt:
    return Doubt(code, SENTENCES[code])
