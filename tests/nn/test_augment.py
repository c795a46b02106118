"""Augmentation against numpy's turns and flips and scipy's rotation, found by trying them all."""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.augment import Draws, Part, Pool, augment, draw, draw_donors
from ulvm.nn.model import normalise
from ulvm.synthetic import draw_batch

SIDE = 96
COUNT = 120
KINDS = ("none", "paper", "strong", "stronger")
ANGLES = range(20, 80)
FloatArray = npt.NDArray[np.float32]


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def drawn_batch(count: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """uint8 pictures (count, 3, side, side) and masks (count, side, side) of 0 and 255."""
    images, masks = draw_batch(count, 3, (side, side))
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks).byte() * 255


def augment_all(
    images: Tensor, masks: Tensor, kind: Any, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw for a batch and apply it."""
    draws = draw(kind, len(images), images.shape[1], generator)
    return augment(Part(images, masks), torch.arange(len(images)), draws)


def same_picture(count: int) -> tuple[Tensor, Tensor]:
    images, masks = drawn_batch(1)
    return images.repeat(count, 1, 1, 1), masks.repeat(count, 1, 1)


def turns_and_flips(plane: FloatArray) -> list[FloatArray]:
    """The plane itself, then its four different results of a quarter turn and a flip."""
    every = [
        np.flip(np.rot90(plane, turn), axis) for turn, axis in itertools.product(range(4), (0, 1))
    ]
    different = {each.tobytes(): each for each in every}
    assert len(different) == 4  # turning by 180° and flipping is flipping the other axis
    return [plane, *different.values()]


@functools.cache
def paper_results() -> tuple[FloatArray, FloatArray]:
    """One picture's first channel, normalised, and COUNT augmentations of it."""
    images, masks = same_picture(COUNT)
    augmented, _ = augment_all(images, masks, "paper", generator_of(0))
    return normalise(images[:1])[0, 0].numpy(), augmented[:, 0].numpy()


@functools.cache
def paper_matches() -> list[tuple[int, int, float]]:
    """For each result: which turn (0 none), which angle (0 none), share of equal pixels."""
    original, results = paper_results()
    keys, candidates = [], []
    for which, turned in enumerate(turns_and_flips(original)):
        for angle in (0, *ANGLES):
            keys.append((which, angle))
            candidates.append(scipy.ndimage.rotate(turned, angle, order=0, reshape=False))
    table = np.stack(candidates)
    matches = []
    for result in results:
        agreement = (np.abs(table - result) < 0.01).mean(axis=(1, 2))
        best = int(agreement.argmax())
        matches.append((*keys[best], float(agreement[best])))
    return matches


def test_none_normalises_and_scales() -> None:
    images, masks = drawn_batch(2)
    masks = masks.clone()
    masks[0, 0, :4] = torch.tensor([0, 51, 128, 255], dtype=torch.uint8)
    inputs, soft = augment_all(images, masks, "none", generator_of(0))
    assert torch.equal(inputs, normalise(images))
    assert soft.shape == (2, SIDE, SIDE)
    assert soft[0, 0, :4].tolist() == pytest.approx([0, 0.2, 128 / 255, 1])


def test_every_paper_result_is_a_turn_and_a_rotation_of_scipys() -> None:
    assert min(agreement for _, _, agreement in paper_matches()) >= 0.97


def test_turns_and_flips_without_rotation_are_numpys_exactly() -> None:
    original, results = paper_results()
    candidates = turns_and_flips(original)
    found = set()
    for result, (which, angle, _) in zip(results, paper_matches(), strict=True):
        if angle == 0:
            assert np.array_equal(result, candidates[which])
            found.add(which)
    assert len(found) == 5


def test_half_are_turned_and_half_are_rotated() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8)
    images = torch.from_numpy(noise).repeat(4000, 1, 1, 1)
    results, _ = augment_all(images, images[:, 0], "paper", generator_of(0))
    candidates = torch.from_numpy(np.stack(turns_and_flips(normalise(images)[0, 0].numpy())))
    equal = (results - candidates).flatten(2).abs().amax(2) == 0  # (picture, candidate)
    unturned, *turned = equal.sum(0).tolist()
    # Within four standard deviations: turned or not and rotated or not are independent.
    assert unturned == pytest.approx(1000, abs=110)
    assert len(turned) == 4
    assert turned == pytest.approx([250] * 4, abs=61)
    assert sum(turned) == pytest.approx(1000, abs=110)


def test_angles_fill_20_to_79() -> None:
    angles = [angle for _, angle, _ in paper_matches() if angle > 0]
    assert min(angles) <= 22
    assert max(angles) >= 77
    assert np.mean(angles) == pytest.approx(49.5, abs=7)
    assert len(set(angles)) > 30


def test_the_search_detects_other_angles() -> None:
    original, _ = paper_results()
    candidates = [scipy.ndimage.rotate(original, a, order=0, reshape=False) for a in ANGLES]
    for angle in (-45, 10, 85):
        wrong = scipy.ndimage.rotate(original, angle, order=0, reshape=False)
        agreement = [np.mean(np.abs(each - wrong) < 0.01) for each in candidates]
        assert max(agreement) < 0.97


@pytest.mark.parametrize("kind", ["none", "paper"])
def test_picture_and_mask_move_together(kind: Any) -> None:
    _, masks = drawn_batch(20)
    images = masks[:, None].repeat(1, 3, 1, 1)  # every channel is the mask
    moved, soft = augment_all(images, masks, kind, generator_of(1))
    assert masks.amax() == 255
    for channel in range(3):
        torch.testing.assert_close(moved[:, channel] / 255, soft, rtol=0, atol=1e-6)


def test_picture_and_mask_move_together_under_strong() -> None:
    # Colour changes values but not their order, so a grey picture of the mask stays sorted.
    _, masks = drawn_batch(20)
    moved, soft = augment_all(masks[:, None], masks, "strong", generator_of(1))
    for picture, mask in zip(moved.flatten(1), soft.flatten(1), strict=True):
        ordered = picture[mask.argsort()]
        assert (ordered.diff() >= -1e-3).all()
        assert ordered[0] < 1 < 254 < ordered[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_same_generator_state_gives_the_same_result(kind: Any) -> None:
    images, masks = drawn_batch(4)
    generator = generator_of(5)
    state = generator.get_state()
    first = augment_all(images, masks, kind, generator)
    second = augment_all(images, masks, kind, generator)
    generator.set_state(state)
    again = augment_all(images, masks, kind, generator)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first[0], second[0]) == (kind == "none")


@pytest.mark.parametrize("kind", KINDS)
def test_global_seed_and_arguments_are_left_alone(kind: Any) -> None:
    images, masks = drawn_batch(2)
    copies = images.clone(), masks.clone()
    state = torch.get_rng_state()
    augment_all(images, masks, kind, generator_of(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, copies[0])
    assert torch.equal(masks, copies[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shapes_types_and_ranges(kind: Any, channels: int) -> None:
    drawn, masks = drawn_batch(8, 32)
    images = drawn[:, [0, 1, 2, 0]][:, :channels]
    inputs, soft = augment_all(images, masks, kind, generator_of(2))
    assert inputs.shape == images.shape
    assert soft.shape == masks.shape
    assert inputs.dtype == soft.dtype == torch.float32
    assert inputs.is_contiguous()
    assert inputs.min() >= 0
    assert inputs.max() <= 255.001
    assert soft.min() >= 0
    assert soft.max() <= 1


def test_strong_pictures_are_normalised_each() -> None:
    images, masks = drawn_batch(10)
    inputs, _ = augment_all(images, masks, "strong", generator_of(3))
    assert inputs.amin(dim=(1, 2, 3)).tolist() == [0] * 10
    assert inputs.amax(dim=(1, 2, 3)).tolist() == pytest.approx([255] * 10, abs=1e-3)


def test_strong_changes_colour_and_place_but_keeps_the_lesions() -> None:
    images, masks = same_picture(60)
    inputs, soft = augment_all(images, masks, "strong", generator_of(4))
    share = soft.mean(dim=(1, 2))
    original = (masks[0] / 255).mean()
    assert share.std() > 0.02  # scaled and shifted
    assert 0.6 * original < share.mean() < 1.6 * original
    red, blue = inputs.mean(dim=(2, 3))[:, [0, 2]].T
    assert (red / blue).std() > 0.02
    edges = (soft > 0) & (soft < 1)
    assert edges.any()  # bilinear


def test_strong_never_shows_black_corners() -> None:
    # Reflection at the border: a picture of one colour stays one, whatever moves.
    images = torch.full((20, 3, 32, 32), 200, dtype=torch.uint8)
    inputs, soft = augment_all(
        images, torch.full((20, 32, 32), 255).byte(), "strong", generator_of(6)
    )
    assert soft.min() > 1 - 1e-6
    spread = inputs.amax(dim=(2, 3)) - inputs.amin(dim=(2, 3))
    assert spread.max() < 0.1


def test_black_picture_stays_finite() -> None:
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    inputs, _ = augment_all(images, torch.zeros(4, 32, 32).byte(), "strong", generator_of(7))
    assert torch.equal(inputs, torch.zeros(4, 3, 32, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_an_epochs_draws_gives_each_picture_alone(kind: Any) -> None:
    images, masks = drawn_batch(6)
    part = Part(images, masks)
    draws = draw(kind, 6, 3, generator_of(8))
    order = torch.tensor([4, 1, 3, 0, 5, 2])
    inputs, soft = augment(part, order, draws)
    for place, row in enumerate(order):
        alone = Part(images[row : row + 1], masks[row : row + 1])
        one, mask = augment(alone, torch.tensor([0]), draws[place : place + 1])
        torch.testing.assert_close(one[0], inputs[place], rtol=0, atol=1e-4)
        torch.testing.assert_close(mask[0], soft[place], rtol=0, atol=1e-6)
    chosen = draws[order[:2]]
    assert torch.equal(chosen.maps, draws.maps[[4, 1]])
    assert torch.equal(chosen.colours, draws.colours[[4, 1]])


def test_draws_that_change_nothing_leave_pictures_as_they_are() -> None:
    images, masks = drawn_batch(3)
    identity = draw("none", 3, 3, generator_of(0))
    for kind in ("paper", "strong"):
        still = Draws(kind, *identity.tensors())  # type: ignore[arg-type]
        inputs, soft = augment(Part(images, masks), torch.arange(3), still)
        torch.testing.assert_close(inputs, normalise(images), rtol=0, atol=0.01)
        torch.testing.assert_close(soft, masks / 255, rtol=0, atol=1e-4)


def test_normalising_with_kept_extremes_is_normalising() -> None:
    images, masks = drawn_batch(4)
    images = images.clone()
    images[2] = 7  # of one value
    part = Part(images, masks)
    for rows in ([0, 2, 3], [1]):
        assert torch.equal(part.normalised(torch.tensor(rows)), normalise(images[rows]))


def bare_skin(donor_colour: int = 220) -> tuple[Part, Tensor]:
    """Four pictures with a lesion, then four of bare skin; an order of the bare ones alone."""
    lesions = torch.full((4, 3, SIDE, SIDE), donor_colour, dtype=torch.uint8)
    lesions[:, :, 32:64, 32:64] //= 2
    masks = torch.zeros(8, SIDE, SIDE, dtype=torch.uint8)
    masks[:4, 32:64, 32:64] = 255
    bare = torch.full((4, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    pools = (Pool(0, 4, 4), Pool(4, 4, 4, bare=True))
    return Part(torch.cat([lesions, bare]), masks, pools), torch.arange(4, 8)


def pasted(part: Part, rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    draws = draw("stronger", len(rows), 3, generator_of(1))
    donors, maps = draw_donors(rows, part.pools, share, generator_of(2))
    draws.colours.fill_(1)
    return augment(part, rows, dataclasses.replace(draws, donors=donors, donor_maps=maps))


def test_a_lesion_is_laid_on_bare_skin_where_the_mask_says() -> None:
    part, rows = bare_skin()
    images, masks = pasted(part, rows, 1.0)
    assert bool((masks.amax((1, 2)) > 0.9).all())
    for image, mask in zip(images, masks, strict=True):
        inside, outside = (
            image[:, mask > 0.99],
            image[:, F.max_pool2d(mask[None], 17, 1, 8)[0] == 0],
        )
        assert float(inside.mean()) < 0.75 * float(outside.mean())  # half the light of its skin


def test_only_bare_pictures_get_a_lesion_and_only_their_share() -> None:
    part, bare = bare_skin()
    rows = torch.arange(8)
    donors, _ = draw_donors(rows, part.pools, 1.0, generator_of(0))
    assert bool((donors[:4] == -1).all())
    assert bool(((donors[4:] >= 0) & (donors[4:] < 4)).all())  # rows that show one
    none, _ = draw_donors(rows, part.pools, 0.0, generator_of(0))
    assert bool((none == -1).all())
    _, masks = pasted(part, bare, 0.0)
    assert float(masks.max()) == 0


def test_a_lesion_in_the_dark_is_left_out() -> None:
    part, rows = bare_skin(donor_colour=20)
    images, masks = pasted(part, rows, 1.0)
    assert float(masks.max()) == 0
    assert float(images.amax() - images.amin()) < 16  # rounding, stretched
