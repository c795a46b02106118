"""Drawn dermoscopy pictures with exact masks, for tests, examples and a first try without data."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ulvm.drawing import (
    LESION_COLOURS,
    SKIN_TONES,
    Canvas,
    add_sensor_noise,
    draw_bubbles,
    draw_frame,
    draw_hair,
    draw_light,
    draw_pigment,
    draw_ruler,
    draw_skin,
    place_lesion,
    resize_field,
)
from ulvm.errors import InputError, unknown_name
from ulvm.files import write_atomically
from ulvm.image import BoolArray, Uint8Array, resize

_ADDED = ("ruler", "frame", "bubbles", "vignette", "touches border")
ATTRIBUTES = (*LESION_COLOURS, "network", "globules", "hair", "light hair", *_ADDED)

MIN_SIDE = 16
MAX_SIDE = 4096  # a drawing of that size takes seconds and a gigabyte
MAX_ASPECT = 4.0

# Drawing happens at this many pixels per unit length at most and at least; the rest is resizing.
_MAX_SCALE = 1400.0
_MIN_SCALE = 128.0


@dataclass(frozen=True)
class SyntheticLesion:
    """A drawn dermoscopy picture, its exact mask and what was drawn.

    Args:
        image_rgb: uint8 (height, width, 3), 0..255.
        mask: bool (height, width), true where the lesion's pigment before the blurring of its
            border is, and the dermoscope's frame does not hide it.
        skin_tone: Key of `SKIN_TONES`.
        attributes: Which of `ATTRIBUTES` are in the picture.
    """

    image_rgb: Uint8Array
    mask: BoolArray
    skin_tone: str
    attributes: frozenset[str]


def draw_lesion(
    seed: int,
    size_hw: tuple[int, int] = (256, 256),
    *,
    skin_tone: str | None = None,
    hair: bool | None = None,
    ruler: bool | None = None,
    frame: bool | None = None,
    bubbles: bool | None = None,
    lesion: bool = True,
) -> SyntheticLesion:
    """Get a drawn dermoscopy picture of one pigmented lesion with its exact mask.

    The same seed and size give the same picture; another size gives the same content, cut or
    extended where the aspect differs. What is left `None` is drawn by lot from the seed.

    Args:
        seed: Whole number from 0.
        size_hw: Height and width in pixels, 16 to 4096 each and at most 4:1.
        skin_tone: Key of `SKIN_TONES`, a Fitzpatrick type `I` to `VI`.
        hair: Whether hair, dark or light or both, lies over the skin.
        ruler: Whether a millimetre scale is in the picture.
        frame: Whether the dermoscope's round black frame is in the picture.
        bubbles: Whether the gel has bubbles and glare.
        lesion: Whether there is one; without it the skin is bare and the mask empty.

    Raises:
        InputError: The seed is negative, the size too small or too long, or the tone unknown.
    """
    _check_seed(seed)
    _check_size(size_hw)
    if skin_tone is not None and skin_tone not in SKIN_TONES:
        raise unknown_name(f"no skin tone '{skin_tone}' of Fitzpatrick's", skin_tone, SKIN_TONES)
    scale = float(np.sqrt(size_hw[0] * size_hw[1]))
    zoom = min(max(scale, _MIN_SCALE), _MAX_SCALE) / scale
    canvas = Canvas((round(size_hw[0] * zoom), round(size_hw[1] * zoom)))

    # One stream per subject: asking for a ruler leaves the lesion as it was.
    streams = np.random.default_rng(seed).spawn(10)
    plan, shape, pigment, skin, lighting, hairs, marks, gel, scope, sensor = streams
    lots = plan.random(5)
    tone = skin_tone or tuple(SKIN_TONES)[int(lots[0] * len(SKIN_TONES))]
    hair, ruler, frame, bubbles = (
        bool(lot < chance) if asked is None else asked
        for lot, chance, asked in zip(
            lots[1:], (0.45, 0.25, 0.25, 0.25), (hair, ruler, frame, bubbles), strict=True
        )
    )

    place = place_lesion(canvas, shape, framed=frame)
    light, vignette = draw_light(canvas, lighting)
    image = draw_skin(canvas, skin, tone)  # (3, height, width)
    attributes: set[str] = set()
    if lesion:
        transmittance, attributes = draw_pigment(canvas, pigment, place, tone)
        image *= transmittance
    if hair:
        attributes |= draw_hair(canvas, hairs, image, tone)
    image *= light
    if ruler:
        draw_ruler(canvas, marks, image, place, framed=frame)
    if bubbles:
        draw_bubbles(canvas, gel, image)
    outside = place.outside
    if frame:
        visible = draw_frame(canvas, scope, image)
        outside = np.maximum(outside, 0.5 - visible)

    mask = resize_field(outside, size_hw) <= 0 if lesion else np.zeros(size_hw, bool)
    image = np.stack([resize_field(channel, size_hw) for channel in image], axis=-1)
    add_sensor_noise(image, sensor)
    touches = bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())
    added = zip(_ADDED, (ruler, frame, bubbles, vignette, touches), strict=True)
    attributes |= {name for name, is_drawn in added if is_drawn}
    image_rgb = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return SyntheticLesion(image_rgb, mask, tone, frozenset(attributes))


def draw_batch(
    count: int, seed: int, size_hw: tuple[int, int] = (256, 256)
) -> tuple[Uint8Array, BoolArray]:
    """Get `count` different drawn pictures and their masks, stacked.

    Args:
        count: Number of pictures.
        seed: Whole number from 0; other seeds give other pictures.
        size_hw: Height and width of each in pixels.

    Returns:
        Images uint8 (count, height, width, 3) and masks bool (count, height, width).

    Raises:
        InputError: As in `draw_lesion`, or the count is not positive.
    """
    lesions = [draw_lesion(one, size_hw) for one in _spawn_seeds(count, seed)]
    return np.stack([one.image_rgb for one in lesions]), np.stack([one.mask for one in lesions])


def probe_images(size: int, channels: int) -> Iterator[Uint8Array]:
    """Batches uint8 (batch, size, size, channels) of several lengths: random, drawn, extreme."""
    random = np.random.default_rng(0)
    yield random.integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    drawn = np.stack([draw_lesion(seed, (size, size)).image_rgb for seed in range(4)])
    yield drawn if channels == 3 else np.resize(drawn, (4, size, size, channels))
    rows, columns = np.indices((size, size))
    checkers = ((rows + columns) % 2 * 255).astype(np.uint8)
    for extreme in (
        np.zeros((size, size)),
        np.full((size, size), 255),
        255 * ((rows == size // 2) & (columns == size // 2)),
        checkers,
        255 * (columns >= size // 2),
        resize(checkers[:4, :4], (size, size)),
    ):
        yield np.repeat(extreme.astype(np.uint8)[None, :, :, None], channels, axis=3)


def write_dataset(
    folder: Path, count: int, *, seed: int = 0, size_hw: tuple[int, int] = (256, 256)
) -> None:
    """Write drawn pictures as `images/` and their masks as `masks/`, with equal file names.

    Args:
        folder: The folder that gets the two; made if missing.
        count: Number of pictures.
        seed: Whole number from 0, as in `draw_batch`.
        size_hw: Height and width of each picture in pixels.

    Raises:
        InputError: As in `draw_batch`, or there are pictures already.
    """
    images = folder / "images"
    if images.is_dir() and any(images.iterdir()):
        raise InputError(
            f"{images} has files already",
            "a data set is written into a new folder, so that none is mixed with another",
            "choose another folder or empty this one",
        )
    for number, one in enumerate(_spawn_seeds(count, seed)):
        lesion = draw_lesion(one, size_hw)
        name = f"drawn_{number:04d}.png"
        save_picture(Image.fromarray(lesion.image_rgb), images / name)
        save_picture(Image.fromarray(lesion.mask).convert("L"), folder / "masks" / name)


def save_picture(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture in the format of its path's ending; the options are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[path.suffix], **options)
    write_atomically(path, buffer.getvalue())


def _spawn_seeds(count: int, seed: int) -> list[int]:
    _check_seed(seed)
    if count < 1:
        raise InputError(f"count={count} is too small", "it must be at least 1", "ask for one")
    return [int(one) for one in np.random.SeedSequence(seed).generate_state(count)]


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(
            f"seed={seed} is out of range", "seeds are whole numbers from 0", "give such a number"
        )


def _check_size(size_hw: tuple[int, int]) -> None:
    short, long = sorted(size_hw)
    if short < MIN_SIDE or long > min(MAX_ASPECT * short, MAX_SIDE):
        raise InputError(
            f"size {size_hw[0]}×{size_hw[1]} (height×width) is out of range",
            f"each side is from {MIN_SIDE} to {MAX_SIDE} pixels and at most {MAX_ASPECT:g} times "
            "the other",
            "choose such a size",
        )
