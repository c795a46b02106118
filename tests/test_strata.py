"""Scores of kinds of pictures, on drawn pictures whose answer is known."""

import numpy as np
import pytest

from ulvm.errors import InputError
from ulvm.evaluate import evaluate
from ulvm.metrics import Confusion, confusion
from ulvm.quality import to_lab
from ulvm.strata import check_name, find_ring, measure, tabulate
from ulvm.synthetic import SKIN_TONES, draw_lesion

SIZE = 64


def square(side: int, size: int = SIZE) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    start = (size - side) // 2
    mask[start : start + side, start : start + side] = True
    return mask


def paint(skin_rgb: tuple[int, ...], lesion_rgb: tuple[int, ...], mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], np.uint8(lesion_rgb), np.uint8(skin_rgb))


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (100, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        # As published for sRGB's primaries under D65.
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(to_lab(np.uint8(rgb)), lab, atol=0.03)


def test_the_ring_lies_around_the_lesion() -> None:
    mask = square(100, 400)
    ring = find_ring(mask)
    rows = np.flatnonzero(ring[:, 200])
    # 1.5 % of 400 is 6 pixels, 6 % is 24: rows 150 - 24 to 150 - 7, and below the same.
    assert rows.tolist() == [*range(126, 144), *range(256, 274)]
    assert not (ring & mask).any()


def test_the_ring_is_cut_by_the_frame() -> None:
    mask = np.zeros((100, 100), bool)
    mask[:, :50] = True
    ring = find_ring(mask)
    assert ring[:, :52].sum() == ring[:, 56:].sum() == 0
    assert ring[:, 52:56].all()
    assert not find_ring(np.ones((100, 100), bool)).any()
    assert find_ring(np.zeros((100, 100), bool)).all()


def test_contrast_and_tone_worked_by_hand() -> None:
    mask = square(20)
    grey = paint((119, 119, 119), (255, 255, 255), mask)
    contrast, _ = measure(grey, mask)
    assert contrast == pytest.approx(49.97, abs=0.05)
    # L 74.2, a 8.8, b 15.2 by the formulas: atan(24.2 / 15.2) = 57.8 degrees.
    skin = np.uint8([208, 174, 155])
    light, _, yellow = to_lab(skin)
    _, angle = measure(paint(tuple(skin), (90, 60, 40), mask), mask)
    assert angle == pytest.approx(np.degrees(np.arctan((light - 50) / yellow)))
    assert 50 < angle < 65


def test_pictures_without_lesion_or_skin() -> None:
    picture = paint((200, 160, 140), (90, 60, 40), square(20))
    contrast, angle = measure(picture, np.zeros((SIZE, SIZE), bool))
    assert np.isnan(contrast)
    assert np.isfinite(angle)
    assert np.isnan(measure(picture, np.ones((SIZE, SIZE), bool))).all()


def test_drawn_tones_come_in_their_order() -> None:
    angles = []
    for tone in SKIN_TONES:
        drawn = draw_lesion(7, skin_tone=tone, frame=False, hair=False)
        angles.append(measure(drawn.image_rgb, drawn.mask)[1])
    assert (np.diff(angles) < -5).all()
    assert angles[0] > 41
    assert angles[-1] < -30


def counts_of(*tp_fp_fn: tuple[int, int, int], pixels: int = 10_000) -> Confusion:
    tp, fp, fn = np.array(tp_fp_fn).T
    return Confusion(tp=tp, fp=fp, fn=fn, tn=pixels - tp - fp - fn)


def tabulated(by: str, counts: Confusion, **known):
    ids = [str(index) for index in range(counts.images)]
    given = {"measures": np.zeros((counts.images, 2)), "dataset": "drawn", "columns": {}}
    return tabulate(by, counts, ids, **{**given, **known})


def test_sizes_worked_by_hand() -> None:
    counts = counts_of(
        (99, 0, 0),  # .99 % of the frame
        (50, 0, 50),  # 1 %: Dice 2/3
        (100, 0, 300),  # 4 %: Dice .4
        (1500, 0, 0),  # 15 %
        (4001, 0, 0),  # 40.01 %
        (0, 5, 0),  # no lesion
        (0, 0, 399),  # 3.99 %: Dice 0
    )
    table = tabulated("size", counts)
    assert [(row.name, row.images) for row in table.rows] == [
        ("no lesion", 1), ("< 1 %", 1), ("1–4 %", 2), ("4–15 %", 1), ("15–40 %", 1), ("> 40 %", 1),
    ]  # fmt: skip
    small = table.rows[2]
    assert small.pooled_dice == pytest.approx(100 / (100 + 50 + 399))
    assert small.mean_dice == pytest.approx(1 / 3)
    assert small.failed == 0.5
    assert [row.failed for row in table.rows] == [1, 0, 0.5, 1, 0, 0]
    assert "| 1–4 % | 2 | 0.1821 | 0.3333 | 50.0% |" in table.markdown()
    assert table.to_dict()["rows"][2]["images"] == 2


def test_a_dice_of_a_half_is_no_failure() -> None:
    (row,) = tabulated("size", counts_of((100, 100, 100), (100, 101, 100))).rows
    assert row.failed == 0.5


def test_contrast_comes_in_fifths() -> None:
    counts = counts_of(*[(10, 0, 0)] * 11)
    measures = np.stack([[*range(10, 0, -1), np.nan], np.zeros(11)], axis=1)
    table = tabulated("contrast", counts, measures=measures)
    assert [row.images for row in table.rows] == [2, 2, 2, 2, 2, 1]
    assert table.rows[0].name == "1.0–2.8"
    assert table.rows[-1].name == "no lesion"
    assert "ΔE" in table.markdown()


def test_tones_by_angle() -> None:
    angles = [60, 55, 41, 28, 10, -30, -170, np.nan]
    counts = counts_of(*[(10, 0, 0)] * len(angles))
    measures = np.stack([np.zeros(len(angles)), angles], axis=1)
    table = tabulated("tone", counts, measures=measures)
    assert [(row.name, row.images) for row in table.rows] == [
        ("very light", 1), ("light", 1), ("intermediate", 1), ("tan", 1), ("brown", 1),
        ("dark", 2), ("not stated", 1),
    ]  # fmt: skip
    assert "under a colour cast it is not reliable" in table.markdown()


def test_columns_of_the_table_and_sources() -> None:
    counts = counts_of((10, 0, 0), (0, 0, 10), (10, 0, 0), (10, 0, 0))
    columns = {"0": {"diagnosis": "nv"}, "1": {"diagnosis": "mel"}, "2": {"diagnosis": "nv"}}
    rows = tabulated("diagnosis", counts, columns=columns).rows
    found = [(row.name, row.images, row.mean_dice) for row in rows]
    assert found == [("nv", 2, 1.0), ("mel", 1, 0.0), ("not stated", 1, 1.0)]
    assert [row.name for row in tabulated("source", counts).rows] == ["drawn"]
    with pytest.raises(InputError, match="size, contrast, tone, source, diagnosis"):
        tabulated("diagnoses", counts, columns=columns)


class Drawn:
    """Two pictures that a model of one square scores differently."""

    name = "drawn"
    classes = ()
    masks = np.stack([square(30), square(4)]).astype(np.uint8) * 255
    images = np.stack([paint((200, 160, 140), (90, 60, 40), mask >= 128) for mask in masks])

    def indices(self, ids):
        return np.array([int(id_) for id_ in ids])


def find_square(images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(square(30).astype(np.float32), (len(images), 1, SIZE, SIZE))


def test_an_evaluation_has_a_table_for_each_property(tmp_path) -> None:
    by = ["size", "contrast", "tone", "diagnosis"]
    columns = {"0": {"diagnosis": "nv"}, "1": {"diagnosis": "mel"}}
    scored = evaluate(find_square, Drawn(), ["0", "1"], boundary=False, by=by, columns=columns)
    assert [table.by for table in scored.strata] == by
    size = scored.strata[0].rows
    assert [(row.name, row.mean_dice) for row in size] == [
        ("< 1 %", pytest.approx(2 * 16 / (900 + 16))),
        ("15–40 %", 1.0),
    ]
    truth = confusion(square(30), square(4))
    assert size[0].pooled_dice == pytest.approx(2 * truth.tp[0] / (900 + 16))
    assert len(scored.to_dict()["strata"]) == 4
    plain = evaluate(find_square, Drawn(), ["0", "1"], boundary=False)
    assert "strata" not in plain.to_dict()
    with pytest.raises(InputError, match="Did you mean 'tone'"):
        evaluate(find_square, Drawn(), ["0"], boundary=False, by=["tones"])


def test_a_table_of_other_pictures_is_refused() -> None:
    rows = {"A_1.jpg": {"id": "A_1.jpg", "tone": "dark", "site": "arm"}}
    check_name("tone", rows, ["A_1", "A_2"])  # measured
    with pytest.raises(InputError, match=r"has A_1\.jpg\. An id is a file's name .* as A_1\."):
        check_name("site", rows, ["A_1", "A_2"])
    check_name("site", {**rows, "A_2": {"id": "A_2"}}, ["A_1", "A_2"])
