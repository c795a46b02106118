"""`ulvm.synthetic` draws what it says, the same each time, with masks that fit."""

from collections import deque
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from ulvm.errors import InputError
from ulvm.image import BoolArray
from ulvm.synthetic import (
    ATTRIBUTES,
    SKIN_TONES,
    SyntheticLesion,
    draw_batch,
    draw_lesion,
    save_picture,
    write_dataset,
)

EXAMPLES = Path(str(resources.files("ulvm") / "examples"))


@pytest.fixture(scope="module")
def lesions() -> list[SyntheticLesion]:
    return [draw_lesion(seed) for seed in range(60)]


def measure_luminance(image_rgb: np.ndarray) -> np.ndarray:
    return image_rgb @ np.array([0.299, 0.587, 0.114])


def find_largest_part(mask: BoolArray) -> int:
    """Number of pixels in the largest 4-connected part of a mask, by flooding."""
    left, largest = mask.copy(), 0
    while left.any():
        start = tuple(np.argwhere(left)[0])
        left[start] = False
        queue, size = deque([start]), 0
        while queue:
            y, x = queue.popleft()
            size += 1
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < mask.shape[0] and 0 <= nx < mask.shape[1] and left[ny, nx]:
                    left[ny, nx] = False
                    queue.append((ny, nx))
        largest = max(largest, size)
    return largest


def test_same_seed_gives_the_same_bytes() -> None:
    first, second = draw_lesion(5, (120, 200)), draw_lesion(5, (120, 200))
    np.testing.assert_array_equal(first.image_rgb, second.image_rgb)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.attributes == second.attributes
    assert (draw_lesion(6, (120, 200)).image_rgb != first.image_rgb).mean() > 0.9


def test_other_platforms_draw_the_same() -> None:
    # Written down once; loose, for the last bit of an arithmetic may differ.
    lesion = draw_lesion(0)
    assert lesion.skin_tone == "VI"
    assert lesion.mask.sum() == pytest.approx(4299, abs=4)
    np.testing.assert_allclose(
        lesion.image_rgb.mean(axis=(0, 1)), [76.118, 50.815, 39.722], atol=0.05
    )


@pytest.mark.parametrize("size_hw", [(16, 16), (64, 256), (256, 64), (97, 131), (480, 640)])
def test_any_size(size_hw: tuple[int, int]) -> None:
    lesion = draw_lesion(1, size_hw)
    assert lesion.image_rgb.shape == (*size_hw, 3)
    assert lesion.image_rgb.dtype == np.uint8
    assert lesion.mask.shape == size_hw
    assert lesion.mask.dtype == np.bool_
    assert lesion.mask.any()


@pytest.mark.parametrize("seed", range(4))
def test_content_does_not_depend_on_size(seed: int) -> None:
    small, large = draw_lesion(seed, (192, 256)), draw_lesion(seed, (768, 1024))
    reduced = Image.fromarray(large.image_rgb).reduce(4)
    difference = np.asarray(reduced, dtype=float) - small.image_rgb
    assert np.abs(difference).mean() < 4
    nearest = large.mask[2::4, 2::4]
    overlap = (nearest & small.mask).sum() / (nearest | small.mask).sum()
    assert overlap > 0.95


def test_large_pictures_hold_the_same_lesion() -> None:
    lesion = draw_lesion(3, (1500, 2000))
    assert lesion.mask.mean() == pytest.approx(draw_lesion(3, (150, 200)).mask.mean(), rel=0.03)


def test_masks_cover_a_plausible_part(lesions: list[SyntheticLesion]) -> None:
    areas = np.array([lesion.mask.mean() for lesion in lesions])
    assert areas.min() > 0.02
    assert areas.max() < 0.60
    assert areas.max() > 3 * areas.min()
    for lesion in lesions[:20]:
        assert find_largest_part(lesion.mask) > 0.97 * lesion.mask.sum()


def test_masks_fit_the_pictures(lesions: list[SyntheticLesion]) -> None:
    for lesion in lesions:
        outside = ~lesion.mask
        skin = outside & (lesion.image_rgb.min(axis=-1) > 25)  # without the frame
        inside_rgb = lesion.image_rgb[lesion.mask].mean(axis=0)
        contrast = np.abs(lesion.image_rgb[skin].mean(axis=0) - inside_rgb).max()
        assert contrast > 12, lesion


def grow(mask: BoolArray) -> BoolArray:
    """A mask with its 4-neighbours added."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 8])
def test_mask_ends_where_the_picture_changes_most(seed: int) -> None:
    lesion = draw_lesion(seed, skin_tone="II", hair=False, ruler=False, frame=False, bubbles=False)
    luminance = measure_luminance(lesion.image_rgb)
    masks = [lesion.mask]
    for _ in range(8):
        masks = [~grow(~masks[0]), *masks, grow(masks[-1])]
    # Rings of one pixel from 8 inside to 8 outside; the border lies between rings 7 and 8.
    rings = [luminance[outer & ~inner].mean() for inner, outer in pairwise(masks)]
    steps = np.convolve(np.diff(rings), np.ones(3), "same")
    assert abs(int(np.argmax(steps)) - 7) <= 2, steps


def test_every_attribute_and_tone_is_reached(lesions: list[SyntheticLesion]) -> None:
    reached = frozenset().union(*(lesion.attributes for lesion in lesions))
    assert reached == set(ATTRIBUTES)
    assert {lesion.skin_tone for lesion in lesions} == set(SKIN_TONES)
    centres = [np.argwhere(lesion.mask).mean(axis=0) / 256 - 0.5 for lesion in lesions]
    assert np.abs(centres).max() > 0.15  # some are off-centre


@pytest.mark.parametrize("name", ["hair", "ruler", "frame", "bubbles"])
def test_options_are_obeyed_and_leave_the_rest(name: str) -> None:
    plain = {"hair": False, "ruler": False, "frame": False, "bubbles": False}
    without = draw_lesion(2, **plain)  # type: ignore[arg-type]
    with_it = draw_lesion(2, **{**plain, name: True})  # type: ignore[arg-type]
    added = {"hair", "light hair"} if name == "hair" else {name}
    assert not without.attributes & {"hair", "light hair", "ruler", "frame", "bubbles"}
    assert with_it.attributes & added
    changed = (with_it.image_rgb != without.image_rgb).any(axis=-1).mean()
    assert changed > 0.002
    if name != "frame":  # a frame keeps the lesion inside
        np.testing.assert_array_equal(with_it.mask, without.mask)
        assert changed < 0.4


def test_frame_is_dark_and_outside_the_mask() -> None:
    lesion = draw_lesion(4, frame=True)
    corners = lesion.image_rgb[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 40
    assert not lesion.mask[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_tones_are_ordered_in_luminance() -> None:
    means = []
    for tone, skin in SKIN_TONES.items():
        lesion = draw_lesion(7, skin_tone=tone, frame=False)
        assert lesion.skin_tone == tone
        assert all(low < high for low, high in zip(skin.rgb_low, skin.rgb_high, strict=True))
        means.append(np.median(measure_luminance(lesion.image_rgb)[~lesion.mask]))
    assert all(np.diff(means) < -8)


def test_batches_are_drawn_from_one_seed() -> None:
    images, masks = draw_batch(3, 11, (48, 64))
    assert images.shape == (3, 48, 64, 3)
    assert images.dtype == np.uint8
    assert masks.shape == (3, 48, 64)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(draw_batch(2, 11, (48, 64))[0], images[:2])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(draw_batch(1, 12, (48, 64))[0][0], images[0])


def test_a_written_dataset_holds_the_drawn_pictures(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, seed=9, size_hw=(64, 96))
    images, masks = draw_batch(2, 9, (64, 96))
    image = np.asarray(Image.open(tmp_path / "images/drawn_0001.png").convert("RGB"))
    mask = np.asarray(Image.open(tmp_path / "masks/drawn_0001.png").convert("L"))
    np.testing.assert_array_equal(image, images[1])
    np.testing.assert_array_equal(mask, 255 * masks[1].astype(np.uint8))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2 * 2
    with pytest.raises(InputError, match="already"):
        write_dataset(tmp_path, 2, seed=9, size_hw=(64, 96))


# File name: seed, size, what is asked for, and how the file is saved.
EXAMPLES_DRAWN: dict[str, tuple[int, tuple[int, int], dict[str, Any], dict[str, Any]]] = {
    "light-skin.jpg": (120, (768, 1024), {"skin_tone": "I"}, {"quality": 85}),
    "dark-skin.png": (108, (240, 320), {"skin_tone": "VI"}, {"optimize": True}),
    "hair-and-ruler.jpg": (101, (600, 800), {"hair": True, "ruler": True}, {"quality": 85}),
    "frame-and-bubbles.jpg": (107, (640, 640), {"frame": True, "bubbles": True}, {"quality": 85}),
    "portrait.jpg": (109, (800, 600), {"skin_tone": "IV"}, {"quality": 85}),
    "grey.png": (106, (320, 400), {"skin_tone": "III"}, {"optimize": True}),
}


def write_examples(folder: Path) -> None:
    """Write the example pictures that come with the package, and their masks under `masks/`.

    `portrait.jpg` is stored lying on its side with EXIF orientation 6, as phones do; its mask,
    like all, is upright, as the picture is seen.

    Args:
        folder: The folder that gets the files; made if missing, equal names are replaced.
    """
    for name, (seed, size_hw, options, save_options) in EXAMPLES_DRAWN.items():
        lesion = draw_lesion(seed, size_hw, **options)
        image = Image.fromarray(lesion.image_rgb)
        if name == "grey.png":
            image = image.convert("L")
        if name == "portrait.jpg":
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            save_options = {**save_options, "exif": exif}
        save_picture(image, folder / name, **save_options)
        save_picture(Image.fromarray(lesion.mask), folder / "masks" / f"{Path(name).stem}_mask.png")


def test_examples_are_what_the_module_draws(tmp_path: Path) -> None:
    write_examples(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    shipped = sorted(
        str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.*") if path.suffix != ".py"
    )
    assert names == shipped
    assert len(names) == 12
    for name in names:
        drawn, committed = Image.open(tmp_path / name), Image.open(EXAMPLES / name)
        assert drawn.mode == committed.mode
        difference = np.asarray(drawn, dtype=float) - np.asarray(committed, dtype=float)
        limit = 0.001 if name.startswith("masks") else 3
        assert np.abs(difference).mean() < limit, name


def test_examples_are_small_and_fit_their_masks() -> None:
    pictures = [path for path in EXAMPLES.iterdir() if path.suffix in (".jpg", ".png")]
    assert len(pictures) == 6
    sizes = [path.stat().st_size for path in pictures]
    assert max(sizes) <= 120_000
    assert sum(sizes) < 500_000
    for path in pictures:
        upright = ImageOps.exif_transpose(Image.open(path))
        mask_image = Image.open(EXAMPLES / "masks" / f"{path.stem}_mask.png")
        assert upright.size == mask_image.size
        mask = np.asarray(mask_image)
        luminance = np.asarray(upright.convert("L"), dtype=float)
        assert np.median(luminance[mask]) < np.median(luminance[~mask]) - 8, path.name
    with (
        Image.open(EXAMPLES / "portrait.jpg") as portrait,
        Image.open(EXAMPLES / "grey.png") as grey,
    ):
        assert portrait.getexif()[0x0112] == 6
        assert grey.mode == "L"


def test_wrong_calls_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed=-1 is out of range"):
        draw_lesion(-1)
    with pytest.raises(InputError, match="8×64"):
        draw_lesion(0, (8, 64))
    with pytest.raises(InputError, match="from 16 to 4096 pixels"):
        draw_lesion(0, (4000, 4100))
    with pytest.raises(InputError, match="100×500"):
        draw_lesion(0, (100, 500))
    with pytest.raises(InputError, match="I, II, III, IV, V, VI"):
        draw_lesion(0, skin_tone="pale")
    with pytest.raises(InputError, match="count=0 is too small"):
        draw_batch(0, 0)
    with pytest.raises(InputError, match="4×4"):
        write_dataset(tmp_path, 1, size_hw=(4, 4))
    assert not list(tmp_path.iterdir())
