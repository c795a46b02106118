"""Draws what each network with weights outlines on drawn pictures, beside the true outline.

Networks are the bundled models and ``results/weights/<preset>.safetensors``. Writes
``docs/figures/drawn-pictures.png`` and, with the default model alone, ``outlines.png``, each with
a description inside for ``tables.py``. Nobody's picture is in them, and they say little about
photographs. The default model has learnt from drawn pictures too, of other seeds; the others not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from documents import FIGURES, RESULTS, ROOT
from ulvm.contact_sheet import PREDICTION_COLOUR, TRUTH_COLOUR
from ulvm.files import write_atomically
from ulvm.image import draw_overlay, resize
from ulvm.metrics import confusion, dice
from ulvm.models import find_weights
from ulvm.nn.checkpoint import load_probability
from ulvm.presets import PRESETS
from ulvm.synthetic import SyntheticLesion, draw_lesion

BUNDLED = find_weights()
WEIGHTS = RESULTS / "weights"
FIGURE = FIGURES / "drawn-pictures.png"
FIRST = FIGURES / "outlines.png"  # of the default model alone

PLAIN: dict[str, Any] = {"hair": False, "ruler": False, "frame": False, "bubbles": False}
# Column: seed, and what differs from a plain picture.
PICTURES: dict[str, tuple[int, dict[str, Any]]] = {
    "very light skin": (120, {"skin_tone": "I"}),
    "medium skin": (105, {"skin_tone": "III"}),
    "very dark skin": (108, {"skin_tone": "VI"}),
    "hair": (101, {"skin_tone": "II", "hair": True}),
    "ruler, frame": (107, {"skin_tone": "II", "ruler": True, "frame": True}),
    "low contrast": (85, {"skin_tone": "IV"}),
}
TILE, GAP, HEAD = 112, 4, 22  # pixels; names of pictures take a row, networks' a column
MARGIN = 8  # pixels on both sides of a network's name
COLOURS = 254  # of a sheet, beside those of the outlines
LINE_WIDTH = 3  # at the network's 256 pixels
INK, PAPER = (24, 24, 27), (255, 255, 255)


def find_networks(weights_dir: Path) -> dict[str, Path]:
    """Name → weights: the bundled model first, then presets in their order."""
    found = {"skin, the default": BUNDLED}
    for preset in PRESETS:
        path = weights_dir / f"{preset}.safetensors"
        if path.exists():
            found[preset] = path
    return found


def draw_rows(
    networks: dict[str, Path], lesions: list[SyntheticLesion]
) -> Iterator[tuple[str, list[Image.Image], list[float]]]:
    """The truth, then each network: name, tiles and Dice of each picture (none of the truth)."""
    truth = [draw_tile(each, each.mask, TRUTH_COLOUR) for each in lesions]
    yield "true outline", truth, []
    images_rgb = np.stack([each.image_rgb for each in lesions])
    for name, path in networks.items():
        probability_of, run = load_probability(path)
        masks = probability_of(images_rgb)[:, 0] >= run.threshold
        scores = dice(confusion(masks, np.stack([each.mask for each in lesions]))).tolist()
        tiles = [
            draw_tile(each, mask, PREDICTION_COLOUR)
            for each, mask in zip(lesions, masks, strict=True)
        ]
        for tile, score in zip(tiles, scores, strict=True):
            ImageDraw.Draw(tile).text(
                (TILE - 4, TILE - 3),
                f"{score:.2f}",
                PAPER,
                ImageFont.load_default(size=15),
                anchor="rs",
                stroke_width=2,
                stroke_fill=INK,
            )
        yield name, tiles, scores


def draw_tile(
    lesion: SyntheticLesion, mask: np.ndarray[Any, Any], color_rgb: tuple[int, int, int]
) -> Image.Image:
    """A tile with the mask's outline."""
    drawn = draw_overlay(
        lesion.image_rgb, mask, color_rgb=color_rgb, opacity=0, line_width=LINE_WIDTH
    )
    return Image.fromarray(resize(drawn, (TILE, TILE)))


def draw_sheet(weights_dir: Path) -> tuple[Image.Image, str]:
    """The sheet, and what it shows in words."""
    lesions = [draw_lesion(seed, **PLAIN | options) for seed, options in PICTURES.values()]
    networks = find_networks(weights_dir)
    step = TILE + GAP
    font = ImageFont.load_default(size=15)
    left = round(max(font.getlength(name) for name in networks)) + 2 * MARGIN
    size = (left + step * len(PICTURES), HEAD + step * (1 + len(networks)))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(PICTURES):
        draw.text((left + column * step + TILE / 2, 2), label, INK, font, anchor="ma")
    told = []
    for row, (name, tiles, scores) in enumerate(draw_rows(networks, lesions)):
        top = HEAD + row * step
        draw.text((left - MARGIN, top + TILE / 2), name, INK, font, anchor="rm")
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (left + column * step, top))
        if scores:
            told.append(f"{name} {np.mean(scores):.3f}")
    words = f"Outlines on drawn pictures ({'; '.join(PICTURES)}); mean Dice: {', '.join(told)}"
    return sheet, words


def reduce_colours(sheet: Image.Image, colours: int) -> Image.Image:
    """So many colours and those of the outlines, which have too few pixels to be found."""
    found = sheet.quantize(colours, dither=Image.Dither.NONE)
    values = (found.getpalette() or [])[: 3 * colours]
    found.putpalette([*values, *TRUTH_COLOUR, *PREDICTION_COLOUR])
    return sheet.quantize(palette=found, dither=Image.Dither.NONE)


def write(path: Path, weights_dir: Path) -> None:
    """Draw a sheet into a file."""
    sheet, words = draw_sheet(weights_dir)
    description = PngImagePlugin.PngInfo()
    description.add_text("Description", words)
    content = io.BytesIO()
    reduce_colours(sheet, COLOURS).save(content, "PNG", optimize=True, pnginfo=description)
    write_atomically(path, content.getvalue())
    print(f"{path.relative_to(ROOT)}: {words}; {len(content.getvalue()) / 1e3:.0f} kB")


def main() -> None:
    """Draw and write both."""
    write(FIGURE, WEIGHTS)
    write(FIRST, WEIGHTS / "none")


if __name__ == "__main__":
    main()
