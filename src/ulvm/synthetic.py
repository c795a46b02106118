"""Drawn dermoscopy pictures with exact masks, for tests, examples and a first try without data."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

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
from ulvm.errors import InputError
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


class _Layout(NamedTuple):
    """Names of pictures and masks in a download, its licence files, and the number of the first."""

    image: str
    mask: str
    beside: tuple[str, ...] = ()
    first: int = 0


_ISIC2017, _ISIC2018 = "ISIC-2017_Training_", "ISIC2018_Task1"
_PH2 = "PH2Dataset/PH2 Dataset images/IMD{0:03d}/IMD{0:03d}_"
_LAYOUTS = {
    "folder": _Layout("images/drawn_{:04d}.png", "masks/drawn_{:04d}.png"),
    "isic2017": _Layout(
        _ISIC2017 + "Data/ISIC_{:07d}.jpg",
        _ISIC2017 + "Part1_GroundTruth/ISIC_{:07d}_segmentation.png",
        ("LICENSE.txt",),
    ),
    "isic2018": _Layout(
        _ISIC2018 + "-2_Training_Input/ISIC_{:07d}.jpg",
        _ISIC2018 + "_Training_GroundTruth/ISIC_{:07d}_segmentation.png",
        ("ATTRIBUTION.txt", "LICENSE.txt"),
    ),
    "ph2": _Layout(
        _PH2 + "Dermoscopic_Image/IMD{0:03d}.bmp",
        _PH2 + "lesion/IMD{0:03d}_lesion.bmp",
        ("PH2_dataset.txt",),
        first=2,
    ),
}
LAYOUTS = tuple(_LAYOUTS)
_LICENCE = b"Drawn by ulvm.synthetic; no photographs. Dedicated to the public domain (CC0 1.0).\n"

# File name: seed, size, what is asked for, and how the file is saved.
_EXAMPLES: dict[str, tuple[int, tuple[int, int], dict[str, Any], dict[str, Any]]] = {
    "light-skin.jpg": (120, (768, 1024), {"skin_tone": "I"}, {"quality": 85}),
    "dark-skin.png": (108, (240, 320), {"skin_tone": "VI"}, {"optimize": True}),
    "hair-and-ruler.jpg": (101, (600, 800), {"hair": True, "ruler": True}, {"quality": 85}),
    "frame-and-bubbles.jpg": (107, (640, 640), {"frame": True, "bubbles": True}, {"quality": 85}),
    "portrait.jpg": (109, (800, 600), {"skin_tone": "IV"}, {"quality": 85}),
    "grey.png": (106, (320, 400), {"skin_tone": "III"}, {"optimize": True}),
}


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
        raise InputError(
            f"skin tone '{skin_tone}'",
            f"tones are the Fitzpatrick types {', '.join(SKIN_TONES)}",
            "name one of them",
        )
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
    yield np.ascontiguousarray(
        np.resize(drawn, (4, size, size, channels)) if channels != 3 else drawn
    )
    black_but_one = np.zeros((1, size, size, channels), np.uint8)
    black_but_one[0, size // 2, size // 2] = 255
    checkers = ((np.indices((size, size)).sum(0) % 2) * 255).astype(np.uint8)
    halves = np.where(np.arange(size) < size // 2, 0, 255).astype(np.uint8)
    for extreme in (
        np.zeros_like(black_but_one),
        np.full_like(black_but_one, 255),
        black_but_one,
        np.broadcast_to(checkers[None, :, :, None], black_but_one.shape),
        np.broadcast_to(halves[None, None, :, None], black_but_one.shape),
        np.broadcast_to(
            resize(checkers[:4, :4], (size, size))[None, :, :, None], black_but_one.shape
        ),
    ):
        yield np.ascontiguousarray(extreme)


def write_dataset(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    size_hw: tuple[int, int] = (256, 256),
    layout: str = "folder",
) -> None:
    """Write drawn pictures and masks as a data set in one of the official folder layouts.

    `folder` has `images/` and `masks/` with equal file names. `isic2017` and `isic2018` are the
    training parts, JPEG pictures and PNG masks, with the side files of the downloads; `ph2` is
    nested, with .bmp files.

    Args:
        folder: The folder that gets the data set's own folders; made if missing.
        count: Number of pictures.
        seed: Whole number from 0, as in `draw_batch`.
        size_hw: Height and width of each picture in pixels.
        layout: One of `LAYOUTS`.

    Raises:
        InputError: As in `draw_batch`, or the layout is unknown, or there are pictures already.
    """
    if layout not in _LAYOUTS:
        raise InputError(
            f"layout '{layout}'", f"layouts are {', '.join(LAYOUTS)}", "name one of them"
        )
    form = _LAYOUTS[layout]
    images = folder / Path(form.image.partition("{")[0]).parent
    if images.is_dir() and any(images.iterdir()):
        raise InputError(
            f"{images} has files already",
            "a data set is written into a new folder, so that none is mixed with another",
            "choose another folder or empty this one",
        )
    seeds = _spawn_seeds(count, seed)
    _check_size(size_hw)
    for name in form.beside:
        for path in (form.image, form.mask):
            write_atomically(folder / Path(path).parts[0] / name, _LICENCE)
    for number, one in enumerate(seeds, form.first):
        lesion = draw_lesion(one, size_hw)
        image, mask = Image.fromarray(lesion.image_rgb), Image.fromarray(lesion.mask)
        picture = folder / form.image.format(number)
        _save(image, picture, **({"quality": 90} if picture.suffix == ".jpg" else {}))
        _save(mask if layout == "ph2" else mask.convert("L"), folder / form.mask.format(number))
        if layout == "ph2":
            _save(mask, folder / (_PH2 + "roi/IMD{0:03d}_R1_Label4.bmp").format(number))
        if layout == "isic2017":
            # A 16×16 grid; a superpixel's number is stored as red + 256 green + 65536 blue.
            cells = np.arange(256, dtype=np.uint8).reshape(16, 16)
            grid = Image.fromarray(np.stack([cells, cells * 0, cells * 0], axis=-1))
            grid = grid.resize(image.size, Image.Resampling.NEAREST)
            _save(grid, picture.with_name(f"{picture.stem}_superpixels.png"))


def write_examples(folder: Path) -> None:
    """Write the example pictures that come with the package, and their masks under `masks/`.

    `portrait.jpg` is stored lying on its side with EXIF orientation 6, as phones do; its mask,
    like all, is upright, as the picture is seen.

    Args:
        folder: The folder that gets the files; made if missing, equal names are replaced.
    """
    for name, (seed, size_hw, options, save_options) in _EXAMPLES.items():
        lesion = draw_lesion(seed, size_hw, **options)
        image = Image.fromarray(lesion.image_rgb)
        if name == "grey.png":
            image = image.convert("L")
        if name == "portrait.jpg":
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            save_options = {**save_options, "exif": exif}
        _save(image, folder / name, **save_options)
        _save(Image.fromarray(lesion.mask), folder / "masks" / f"{Path(name).stem}_mask.png")


def _save(image: Image.Image, path: Path, **options: Any) -> None:
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[path.suffix], **options)
    write_atomically(path, buffer.getvalue())


def _spawn_seeds(count: int, seed: int) -> list[int]:
    _check_seed(seed)
    if count < 1:
        raise InputError(f"a count of {count} pictures", "the count is at least 1", "ask for one")
    return [int(one) for one in np.random.SeedSequence(seed).generate_state(count)]


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"seed {seed}", "seeds are whole numbers from 0", "give such a number")


def _check_size(size_hw: tuple[int, int]) -> None:
    short, long = sorted(size_hw)
    if short < MIN_SIDE or long > min(MAX_ASPECT * short, MAX_SIDE):
        raise InputError(
            f"size {size_hw[0]}×{size_hw[1]} (height×width)",
            f"each side is from {MIN_SIDE} to {MAX_SIDE} pixels and at most {MAX_ASPECT:g} times "
            "the other",
            "choose such a size",
        )
