"""What a segmentation looks like in a notebook: one HTML element without scripts or links."""

import base64
import html
import io
from typing import Any

from PIL import Image

from ulvm.models import NOTICE

LONGEST_SIDE = 512  # pixels


def show(picture: Image.Image, summary: dict[str, Any]) -> str:
    """A picture above what was found in it.

    Args:
        picture: The overlay, or another; shrunk to at most ``LONGEST_SIDE`` pixels on a side.
        summary: Of the segmentation: its ``to_dict()``.

    Returns:
        HTML with the picture inside.
    """
    shrunk = picture.copy()
    shrunk.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    shrunk.save(file, "PNG")
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
