"""What a segmentation looks like in a notebook: one HTML element without scripts or links."""

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from ulvm.image import BoolArray, Uint8Array, draw_overlay
from ulvm.use import NOTICE

LONGEST_SIDE = 512  # pixels


def show(picture: Image.Image | Uint8Array | None, mask: BoolArray, summary: dict[str, Any]) -> str:
    """A picture with the outline, above what was found in it.

    Args:
        picture: Of mode RGB, or uint8 (height, width, 3); None shows the mask alone.
        mask: bool (height, width).
        summary: Of the segmentation: its ``to_dict()``.

    Returns:
        HTML with the picture inside, shrunk to at most ``LONGEST_SIDE`` pixels on a side.
    """
    small_mask = Image.fromarray(mask)
    small_mask.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.NEAREST)
    shown = small_mask
    if picture is not None:
        small = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        small = small.resize(small_mask.size, Image.Resampling.BILINEAR, reducing_gap=2)
        shown = Image.fromarray(draw_overlay(np.asarray(small), np.asarray(small_mask)))
    file = io.BytesIO()
    shown.save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    found = html.escape(_describe(summary))
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{encoded}" alt="{found}">'
        f"<figcaption>{found}<br><small>{html.escape(NOTICE)}</small></figcaption></figure>"
    )


def _describe(summary: dict[str, Any]) -> str:
    height, width = summary["size_hw"]
    if summary["bounding_box_xyxy"] is None:
        return f"No lesion found in {width}×{height} pixels."
    left, top, right, bottom = summary["bounding_box_xyxy"]
    return (
        f"Lesion: {100 * summary['area_fraction']:.1f} % of {width}×{height} pixels, "
        f"x {left}–{right}, y {top}–{bottom}, "
        f"mean probability inside {summary['mean_probability_inside']:.2f}."
    )
