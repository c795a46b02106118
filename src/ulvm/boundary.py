"""How far two outlines are apart: boundary F1 and the 95 % Hausdorff distance; needs scipy."""

import importlib.util
import math
from dataclasses import dataclass

import numpy as np

from ulvm.errors import InputError, install_extra
from ulvm.image import BoolArray, rim

TOLERANCE = 2 / 256  # of the picture's side: 2 pixels at 256×256


@dataclass(frozen=True, kw_only=True)
class BoundarySummary:
    """Boundary scores over images: the tolerance of F1, its mean, the median of HD95."""

    tolerance_px: float
    f1_mean: float
    hd95_median_px: float


def require_scipy() -> None:
    """Refuse to go on without it, before anything is scored."""
    if importlib.util.find_spec("scipy") is None:
        raise InputError(
            "boundary scores were asked for and scipy is not installed",
            "boundary distances need scipy; all other scores do without",
            f"{install_extra('eval')}, or leave the boundary scores out",
        )


def boundary_scores(mask: BoolArray, truth: BoolArray, tolerance_px: float) -> tuple[float, float]:
    """Boundary F1 and 95 % Hausdorff distance between two masks.

    With both masks empty they agree: 1 and 0. With one empty: 0 and the picture's diagonal.

    Args:
        mask: Predicted lesion, bool, (height, width).
        truth: True lesion, bool, (height, width).
        tolerance_px: A boundary pixel is matched if the other boundary is this near, in pixels.

    Returns:
        F1 of matched boundary pixels, 0..1, and HD95 in pixels: the larger of the two 95th
        percentiles of distance, from the predicted boundary to the true one and back.

    Source: boundary F1 after Csurka et al., BMVC 2013; HD95 as in MONAI (others take one percentile
    of both directions together).
    """
    from scipy import ndimage  # the one use of scipy, an optional dependency

    if not mask.any() or not truth.any():
        agree = bool(mask.any() == truth.any())
        return (1.0, 0.0) if agree else (0.0, math.hypot(*mask.shape))
    edges = np.stack([rim(mask, 1), rim(truth, 1)])  # (2, height, width)
    # Outside the box around both boundaries there is nothing to measure.
    box = ndimage.find_objects(edges.any(axis=0).astype(np.int8))[0]
    mask_edge, truth_edge = edges[0][box], edges[1][box]
    to_truth = ndimage.distance_transform_edt(~truth_edge)[mask_edge]  # (boundary pixels,)
    to_mask = ndimage.distance_transform_edt(~mask_edge)[truth_edge]
    precision, recall = np.mean(to_truth <= tolerance_px), np.mean(to_mask <= tolerance_px)
    f1 = 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)
    return float(f1), float(max(np.percentile(to_truth, 95), np.percentile(to_mask, 95)))


def summarise(boundaries: list[tuple[float, float]], tolerance_px: float) -> BoundarySummary | None:
    """The summary of what `boundary_scores` gives of each image; None of none."""
    if not boundaries:
        return None
    f1, hd95 = np.array(boundaries).T
    return BoundarySummary(
        tolerance_px=tolerance_px, f1_mean=float(f1.mean()), hd95_median_px=float(np.median(hd95))
    )
