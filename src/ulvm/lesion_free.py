"""Pictures without a lesion, for training: skin beside the masks, drawn skin, and no skin at all.

Everything repeats by its seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ulvm.image import Uint8Array
from ulvm.synthetic import draw_lesion

MIN_CROP = 0.2  # of the picture's side
MAX_CROP = 0.8
MARGIN = 0.03  # between a crop and the mask, of the picture's side
TRIES = 40


def crop_beside(images: Uint8Array, masks: Uint8Array, seed: int) -> Uint8Array:
    """A square of skin outside the mask from each picture that has room for one.

    Args:
        images: (pictures, size, size, 3).
        masks: (pictures, size, size), 0..255.
        seed: Whole number from 0.

    Returns:
        (crops, size, size, 3), at most one a picture; the largest of those that were tried.
    """
    rng = np.random.default_rng(seed)
    size = images.shape[1]
    margin = round(MARGIN * size)
    crops = []
    for image, mask in zip(images, masks, strict=True):
        sums = np.zeros((size + 1, size + 1), np.int64)
        sums[1:, 1:] = (mask > 0).cumsum(0).cumsum(1)  # of all pixels above and to the left
        best: tuple[int, int, int] | None = None
        for _ in range(TRIES):
            side = int(rng.integers(round(MIN_CROP * size), round(MAX_CROP * size) + 1))
            top, left = (int(place) for place in rng.integers(0, size - side + 1, 2))
            up, low = max(0, top - margin), min(size, top + side + margin)
            near, far = max(0, left - margin), min(size, left + side + margin)
            marked = sums[low, far] - sums[up, far] - sums[low, near] + sums[up, near]
            if not marked and (best is None or side > best[0]):
                best = side, top, left
        if best:
            side, top, left = best
            crop = Image.fromarray(image[top : top + side, left : left + side])
            crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)


def draw_pictures(count: int, seed: int, size: int) -> Uint8Array:
    """Drawn pictures without a lesion, (count, size, size, 3).

    Half are skin of all tones, with hair, rulers, frames and bubbles by lot; the others are of one
    colour, blurred, patterned, written on, or noise.
    """
    seeds = np.random.SeedSequence(seed).spawn(count)
    kinds: list[Callable[[np.random.Generator, int], Uint8Array]] = [
        _skin, _one_colour, _skin, _blurred, _skin, _pattern, _skin, _text, _skin, _noise,
    ]  # fmt: skip
    return np.stack(
        [
            kinds[index % len(kinds)](np.random.default_rng(each), size)
            for index, each in enumerate(seeds)
        ]
    )


def draw_lesions(count: int, seed: int, size: int) -> tuple[Uint8Array, Uint8Array]:
    """As many drawn pictures with a lesion, of all tones: (count, size, size, 3), and their masks.

    Masks are (count, size, size), 0 or 255.
    """
    seeds = np.random.SeedSequence([seed, 1]).generate_state(count)
    drawn = [draw_lesion(int(each), (size, size)) for each in seeds]
    masks = np.stack([one.mask for one in drawn]).astype(np.uint8) * 255
    return np.stack([one.image_rgb for one in drawn]), masks


def _skin(rng: np.random.Generator, size: int) -> Uint8Array:
    return draw_lesion(int(rng.integers(2**31)), (size, size), lesion=False).image_rgb


def _one_colour(rng: np.random.Generator, size: int) -> Uint8Array:
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.7 else np.repeat(rng.uniform(0, 255), 3)
    noise = rng.normal(0, rng.choice([0.0, 1.0, 4.0, 12.0]), (size, size, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def _blurred(rng: np.random.Generator, size: int) -> Uint8Array:
    """A few soft colours that run into each other."""
    cells = int(rng.integers(2, 6))
    base = rng.uniform(0, 255, 3)
    lattice = np.clip(base + rng.normal(0, rng.uniform(5, 60), (cells, cells, 3)), 0, 255)
    small = Image.fromarray(lattice.astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def _pattern(rng: np.random.Generator, size: int) -> Uint8Array:
    """Stripes or checks, as of cloth and tiles."""
    y, x = np.mgrid[:size, :size] / size
    turn = rng.uniform(0, 2 * np.pi)
    wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * rng.uniform(10, 120))
    if rng.random() < 0.5:
        wave = wave * np.sin((y * np.cos(turn) - x * np.sin(turn)) * rng.uniform(10, 120))
    if rng.random() < 0.5:
        wave = np.sign(wave)
    first, second = rng.uniform(0, 255, (2, 3))
    share = (wave[..., None] + 1) / 2
    picture = first * share + second * (1 - share) + rng.normal(0, 5, (size, size, 3))
    pixels: Uint8Array = np.clip(picture, 0, 255).astype(np.uint8)
    return pixels


def _text(rng: np.random.Generator, size: int) -> Uint8Array:
    """Lines of letters on paper or a screen."""
    light = rng.random() < 0.7
    paper, ink = (rng.integers(190, 256, 3), rng.integers(0, 90, 3))[:: 1 if light else -1]
    image = Image.new("RGB", (size, size), tuple(int(part) for part in paper))
    draw = ImageDraw.Draw(image)
    height = int(rng.integers(size // 24, size // 5))
    font = ImageFont.load_default(height)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     ABCDEFGH0123456789"))
    for top in range(int(rng.integers(0, height)), size, int(height * 1.4)):
        words = "".join(rng.choice(letters, 3 * size // height))
        draw.text((int(rng.integers(-9, 30)), top), words, tuple(int(part) for part in ink), font)
    return np.asarray(image.rotate(float(rng.uniform(-20, 20)), fillcolor=image.getpixel((0, 0))))


def _noise(rng: np.random.Generator, size: int) -> Uint8Array:
    cells = int(rng.choice([size, size // 2, size // 8, size // 16]))
    small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))
