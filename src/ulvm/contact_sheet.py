"""The contact sheet of an evaluation: pictures with the true and the predicted outline."""

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ulvm.errors import InputError, install_extra
from ulvm.image import BoolArray, Uint8Array, resize, rim

TRUTH_COLOUR = (0, 230, 90)
PREDICTION_COLOUR = (255, 30, 220)

# Sizes in pixels.
TILE = 256
_GAP, _MARGIN, _LINE, _DPI = 8, 24, 24, 100
_STROKE, _DASH = 3, 8
_LETTERS = 36  # of a label beside each other under a tile
_INK, _QUIET = "#18181b", "#6e6e76"


def draw_contact_sheet(
    images: Uint8Array,
    masks: BoolArray,
    truths: BoolArray,
    labels: Sequence[str],
    *,
    heading: Sequence[str] = (),
) -> Image.Image:
    """A sheet of pictures with both outlines: truth solid green, prediction dashed magenta.

    Args:
        images: From worst to best, uint8 (cases, height, width, 3), RGB; the first half is drawn
            under "Worst", the rest under "Best" with the best first.
        masks: Predicted lesions, bool, (cases, height, width).
        truths: True lesions, bool, (cases, height, width).
        labels: One line of text for each case; cut off where it is wider than the picture.
        heading: Lines of text above the pictures.

    Returns:
        An RGB picture.

    Raises:
        InputError: matplotlib is not installed.
    """
    Figure, FigureCanvasAgg = import_matplotlib()
    half = math.ceil(len(images) / 2)
    columns = {"Worst": range(half), "Best": range(len(images) - 1, half - 1, -1)}
    step = TILE + _GAP
    top = _MARGIN + _LINE * (len(heading) + 3)  # of the first tile
    width = 2 * _MARGIN + 4 * step + _MARGIN
    height = top + math.ceil(half / 2) * (step + _LINE) + 2 * _LINE
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    canvas: Any = FigureCanvasAgg(figure)

    def write(x: float, y: float, words: str, colour: str = _INK, points: float = 9) -> None:
        figure.text(x / width, 1 - y / height, words, color=colour, size=points, va="top")

    for line, words in enumerate(heading):
        write(_MARGIN, _MARGIN + line * _LINE, words)
    y = top - 3 * _LINE
    write(_MARGIN, y, "— truth (solid)", "#{:02x}{:02x}{:02x}".format(*TRUTH_COLOUR))
    write(step, y, "-- prediction (dashed)", "#{:02x}{:02x}{:02x}".format(*PREDICTION_COLOUR))
    for column, (name, cases) in enumerate(columns.items()):
        left = _MARGIN + column * (2 * step + _MARGIN)
        write(left, top - 1.5 * _LINE, name, points=13)
        for position, case in enumerate(cases):
            row, place = divmod(position, 2)
            x, y = left + place * step, top + row * (step + _LINE)
            tile = _draw_tile(images[case], masks[case], truths[case])
            figure.figimage(tile, x, height - y - TILE, origin="upper")
            label = labels[case]
            write(x, y + TILE + 4, label[:_LETTERS] + "…" * (len(label) > _LETTERS))
    write(_MARGIN, height - 1.5 * _LINE, "Not a medical device.", _QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw_tile(image_rgb: Uint8Array, mask: BoolArray, truth: BoolArray) -> Uint8Array:
    """A picture at the tile's size with both outlines, uint8 (tile, tile, 3)."""
    tile = np.array(Image.fromarray(image_rgb).resize((TILE, TILE), Image.Resampling.BICUBIC))
    tile[_outline(truth)] = TRUTH_COLOUR
    line = _outline(mask)
    if line.any():
        y, x = np.nonzero(line)
        # Dashes by the angle seen from the middle, about _DASH pixels long.
        middle_y, middle_x = y.mean(), x.mean()
        around = np.arctan2(y - middle_y, x - middle_x)
        dashes = max(4, round(math.pi * np.hypot(y - middle_y, x - middle_x).mean() / _DASH))
        drawn = np.floor((around / math.pi + 1) * dashes) % 2 == 0
        tile[y[drawn], x[drawn]] = PREDICTION_COLOUR
    return tile


def _outline(mask: BoolArray) -> BoolArray:
    """The mask's rim at the tile's size."""
    return rim(resize(mask.astype(np.uint8) * 255, (TILE, TILE)) >= 128, _STROKE)


def import_matplotlib() -> tuple[Any, Any]:
    """matplotlib's ``Figure`` and ``FigureCanvasAgg``.

    A notebook names its own way of showing in ``MPLBACKEND`` to the programs that it starts; where
    that isn't installed for them, matplotlib cannot be imported.

    Raises:
        InputError: matplotlib is not installed.
    """
    named = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError(
            "matplotlib is not installed",
            "pictures of results are drawn with it",
            install_extra("eval"),
        ) from error
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named is not None:
        with contextlib.suppress(ValueError):  # for figures of others, in this process
            matplotlib.rcParams["backend"] = named
    return Figure, FigureCanvasAgg
