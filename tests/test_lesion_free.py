"""Pictures without a lesion: beside the masks, drawn, repeated by their seed."""

import numpy as np

from ulvm import lesion_free, synthetic


def test_crops_hold_nothing_of_the_mask() -> None:
    images = np.zeros((3, 64, 64, 3), np.uint8)
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[0, 20:40, 20:40] = 255
    masks[1] = 255  # no room
    images[masks > 0] = 255
    crops = lesion_free.crop_beside(images, masks, seed=1)
    assert crops.shape == (2, 64, 64, 3)
    assert crops.max() == 0


def test_nothing_to_crop_from() -> None:
    full = np.full((2, 32, 32), 255, np.uint8)
    assert lesion_free.crop_beside(np.zeros((2, 32, 32, 3), np.uint8), full, 0).shape[0] == 0


def test_drawn_pictures_repeat_by_their_seed() -> None:
    first, again, other = (lesion_free.draw_pictures(10, seed, 48) for seed in (1, 1, 2))
    assert first.shape == (10, 48, 48, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_bare_skin_is_that_of_the_picture_with_a_lesion() -> None:
    bare, full = (synthetic.draw_lesion(5, (64, 64), lesion=lesion) for lesion in (False, True))
    assert not bare.mask.any()
    assert full.mask.any()
    far = ~full.mask
    far[:-1] &= ~full.mask[1:]
    difference = np.abs(bare.image_rgb.astype(int) - full.image_rgb)
    assert difference[full.mask].mean() > 5 * difference[far].mean()
