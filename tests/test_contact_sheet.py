"""The contact sheet shows both outlines where they are."""

import sys

import numpy as np
import pytest

from made_up_predictions import SIZE, square
from ulvm.contact_sheet import PREDICTION_COLOUR, TILE, TRUTH_COLOUR, draw_contact_sheet
from ulvm.errors import InputError
from ulvm.image import rim


def test_contact_sheet_draws_both_outlines_where_they_are() -> None:
    size = TILE
    grey = np.full((1, size, size, 3), 128, dtype=np.uint8)
    truth, mask = square(40, 40, 60, size), square(150, 130, 80, size)
    sheet = np.asarray(draw_contact_sheet(grey, mask[None], truth[None], ["one"]))
    top = np.argwhere((sheet == 128).all(axis=-1))[0]  # the tile's first pixel
    tile = sheet[top[0] : top[0] + size, top[1] : top[1] + size]
    green = (tile == TRUTH_COLOUR).all(axis=-1)
    magenta = (tile == PREDICTION_COLOUR).all(axis=-1)
    assert np.array_equal(green & rim(truth, 1), rim(truth, 1))
    assert not (green & ~truth).any()
    assert not (magenta & ~mask).any()
    drawn = np.count_nonzero(magenta & rim(mask, 1)) / rim(mask, 1).sum()
    assert 0.4 < drawn < 0.6, "about half of a dashed line is drawn"


def test_contact_sheet_without_best_cases_and_with_long_labels() -> None:
    picture = np.zeros((3, SIZE, SIZE, 3), dtype=np.uint8)
    empty = np.zeros((3, SIZE, SIZE), dtype=bool)
    plain = draw_contact_sheet(picture, empty, empty, ["Dice 0.1", "", ""])
    long = draw_contact_sheet(picture, empty, empty, ["Dice 0.1 " + "long-" * 40, "", ""])
    assert plain.size == long.size
    one = draw_contact_sheet(picture[:1], empty[:1], empty[:1], ["only"])
    assert one.size[0] == plain.size[0]


def test_letters_that_the_font_lacks_are_no_warning() -> None:
    picture, empty = np.zeros((1, SIZE, SIZE, 3), np.uint8), np.zeros((1, SIZE, SIZE), bool)
    draw_contact_sheet(picture, empty, empty, ["\u76ae\u819a \x07"])


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    picture, empty = np.zeros((1, SIZE, SIZE, 3), np.uint8), np.zeros((1, SIZE, SIZE), bool)
    with pytest.raises(InputError, match=r"\.\[eval\]"):
        draw_contact_sheet(picture, empty, empty, ["one"])
