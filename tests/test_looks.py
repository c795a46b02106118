"""Copies are known however they are turned, saved or sized; other pictures are not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ulvm import synthetic
from ulvm.image import Uint8Array
from ulvm.looks import DIGITS, are_copies, look_of

PICTURES = [synthetic.draw_lesion(seed, (96, 96)).image_rgb for seed in range(40)]
LOOKS = [look_of(each) for each in PICTURES]


def as_jpeg(image_rgb: Uint8Array) -> Uint8Array:
    file = io.BytesIO()
    Image.fromarray(image_rgb).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda image: np.asarray(Image.fromarray(image).resize((64, 64))),
        lambda image: np.clip(image * 1.1, 0, 255).astype(np.uint8),
        lambda image: as_jpeg(image[::-1]),
        lambda image: as_jpeg(image[:, ::-1]),
        *(lambda image, times=times: as_jpeg(np.rot90(image, times)) for times in (1, 2, 3)),
        lambda image: as_jpeg(image.transpose(1, 0, 2)),
    ],
    ids=["jpeg", "size", "bright", "down", "mirror", "left", "round", "right", "transposed"],
)
def test_copies_are_known(change: Callable[[Uint8Array], Uint8Array]) -> None:
    copies = [look_of(np.ascontiguousarray(change(each))) for each in PICTURES[:20]]
    for copy, original, other in zip(copies, LOOKS, LOOKS[20:], strict=False):
        assert are_copies([copy, other], [original]).tolist() == [True, False]


def test_other_pictures_are_no_copies() -> None:
    assert len(LOOKS[0]) == DIGITS
    for index, look in enumerate(LOOKS):
        assert not are_copies(LOOKS[:index] + LOOKS[index + 1 :], [look]).any()
    assert are_copies([], LOOKS).tolist() == []
    assert are_copies(LOOKS[:2], []).tolist() == [False, False]
