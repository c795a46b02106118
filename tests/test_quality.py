"""ulvm.quality: its measures by hand, its warnings, and that it ranks what the model does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from PIL import Image

from ulvm import quality, synthetic
from ulvm.cli import main
from ulvm.image import paint_caption, write_png
from ulvm.quality import SENTENCES, assess, is_one_colour, measure, to_lab
from ulvm.segmenter import load

SIZE = 256
SKIN, SPOT = (220, 180, 160), (110, 70, 60)


def scene(
    box: tuple[int, int, int, int] = (96, 96, 160, 160), spot: tuple[int, int, int] = SPOT
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A box of lesion, (top, left, bottom, right), on skin: picture, probability, mask."""
    top, left, bottom, right = box
    picture = np.full((SIZE, SIZE, 3), SKIN, np.uint8)
    picture[top:bottom, left:right] = spot
    picture[0, 0] = 255 - picture[0, 0]  # never one colour
    probability = np.full((SIZE, SIZE), 0.01, np.float32)
    probability[top:bottom, left:right] = 0.98
    return picture, probability, probability >= 0.5


def codes(*given: object) -> list[str]:
    return [doubt.code for doubt in assess(*given, 0.5).warnings]  # type: ignore[arg-type]


def test_measures_of_a_box_worked_by_hand() -> None:
    picture, probability, mask = scene()
    found = measure(picture, probability, mask, 0.5)
    inside, outside = 64 * 64, SIZE * SIZE - 64 * 64
    assert found["inside"] == pytest.approx(0.98)
    assert found["overlap"] == pytest.approx(
        2 * 0.98 * inside / (0.98 * inside + 0.01 * outside + inside), rel=1e-6
    )
    doubt = (0.98 * 0.02 * inside + 0.01 * 0.99 * outside) / inside
    assert found["doubt"] == pytest.approx(np.log(doubt), rel=1e-5)
    assert found["size"] == pytest.approx(np.log(1 / 16))
    assert found["shape"] == pytest.approx(4 * 64 / 64)
    assert found["touch"] == found["dropped"] == 0
    assert found["aside"] == pytest.approx(0, abs=1e-12)
    one, other = to_lab(np.array([SPOT, SKIN], np.uint8))
    assert np.expm1(found["contrast"]) == pytest.approx(np.linalg.norm(one - other))
    assert found["weakest"] == pytest.approx(found["contrast"])  # skin of one colour all around
    assert found["red"] == pytest.approx(other[1])
    assert found["yellow"] == pytest.approx(other[2])


def test_the_weakest_side_is_the_one_most_like_the_spot() -> None:
    picture, probability, mask = scene()
    picture[96:160, 160:] = SPOT  # the spot goes on to the right, the mask does not
    found = measure(picture, probability, mask, 0.5)
    assert found["weakest"] == pytest.approx(0, abs=1e-9)
    assert np.expm1(found["contrast"]) > 10


def test_lab_of_known_colours() -> None:
    lab = to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8))
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab, expected, atol=0.02)


def test_a_clear_spot_has_no_warning() -> None:
    picture, probability, mask = scene()
    found = assess(picture, probability, mask, 0.5)
    assert found.warnings == ()
    assert 0.8 < found.quality <= 1


def test_each_reason_is_said() -> None:
    assert "small" in codes(*scene((120, 120, 130, 130)))
    assert "over-half" in codes(*scene((10, 10, 240, 240)))
    assert "touches-frame" in codes(*scene((0, 0, 128, 128)))
    assert "low-contrast" in codes(*scene(spot=(219, 179, 160)))
    picture, probability, mask = scene()
    probability[10:40, 10:40] = 0.9  # below a quarter: the clean-up took it away
    assert "fragments" in codes(picture, probability, mask)
    picture, probability, mask = scene()
    assert codes(picture, probability, np.zeros_like(mask)) == ["nothing-found"]
    assert codes(np.full_like(picture, 9), probability, mask) == ["one-colour"]
    probability[mask] = 0.55
    probability[~mask] = 0.4
    assert "unlike-lesion" in codes(picture, probability, mask)


def test_quality_falls_with_doubt() -> None:
    values = []
    for inside in (0.98, 0.9, 0.8, 0.7, 0.6):
        picture, probability, mask = scene()
        probability[mask] = inside
        probability[~mask] = (1 - inside) / 2
        values.append(assess(picture, probability, mask, 0.5).quality)
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 0.3


def test_an_unlikely_lesion_takes_its_share_of_the_quality() -> None:
    constants = json.loads(quality.CONSTANTS.read_text())
    bound = constants["bound"]["unlike-lesion"]
    score = constants["curve"]["score"][-1]
    best = quality.rate(constants, score, 1.0)
    assert quality.rate(constants, score, bound) == best == constants["curve"]["dice"][-1]
    assert quality.rate(constants, score, bound / 2) == pytest.approx(best / 2)


def test_both_formulas_worked_by_hand() -> None:
    constants = {
        "mean": {"inside": 0.5, "size": -2.0},
        "spread": {"inside": 0.1, "size": 1.0},
        "outline": {"bias": 1.0, "weight": {"inside": 2.0, "size": -1.0}},
        "lesion": {
            "bias": 0.5,
            "weight": {"inside": 0.0, "size": 1.0},
            "products": [[0.25, -1.0], [0.0, 0.0]],
        },
    }
    score, chance = quality.weigh(constants, {"inside": 0.7, "size": -1.0})  # 2 and 1 spreads off
    assert score == pytest.approx(1 + 2 * 2 - 1)
    assert chance == pytest.approx(1 / (1 + np.exp(-(0.5 + 1 + 0.25 * 4 - 2 * 1))))
    far, _ = quality.weigh(constants, {"inside": 9.0, "size": -2.0})
    assert far == pytest.approx(1 + 2 * quality.FURTHEST)


def test_a_mask_that_fills_the_frame_and_one_of_a_pixel_are_measured() -> None:
    for box in ((0, 0, SIZE, SIZE), (7, 9, 8, 10)):
        found = assess(*scene(box), 0.5)
        assert 0 <= found.quality <= 1
        assert found.warnings


def test_one_colour_is_a_bound_on_each_channel() -> None:
    picture = np.full((8, 8, 3), 100, np.uint8)
    picture[0, 0, 1] += quality.ONE_COLOUR
    assert is_one_colour(picture)
    picture[0, 0, 1] += 1
    assert not is_one_colour(picture)


def test_constants_name_the_measures_and_every_bound() -> None:
    constants = json.loads(quality.CONSTANTS.read_text())
    names = constants["mean"].keys()
    assert names == measure(*scene(), 0.5).keys() - {"touch", "dropped"}  # those only warn
    assert constants["spread"].keys() == names
    for formula in ("outline", "lesion"):
        assert constants[formula]["weight"].keys() == names
    assert np.shape(constants["lesion"]["products"]) == (len(names), len(names))
    for key in ("score", "dice"):
        assert constants["curve"][key] == sorted(constants["curve"][key])
    assert constants["bound"].keys() == SENTENCES.keys() - {"one-colour", "nothing-found"}


def test_caption_is_drawn_below_and_nothing_without_words() -> None:
    picture = scene()[0]
    drawn = Image.fromarray(picture)
    paint_caption(drawn, "")
    np.testing.assert_array_equal(np.asarray(drawn), picture)
    paint_caption(drawn, "unsure: " + "; ".join(SENTENCES.values()))
    changed = (np.asarray(drawn) != picture).any(axis=(1, 2))
    assert changed[-1]
    assert not changed[0]
    paint_caption(Image.new("RGB", (5, 3)), "unsure")  # too small for words, and no error


def test_predict_says_and_counts_what_is_doubtful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_png("clear.png", synthetic.draw_lesion(3, (300, 400)).image_rgb)
    write_png("grey.png", np.full((100, 120, 3), 128, np.uint8))
    ran = CliRunner().invoke(main, ["predict", "clear.png", "grey.png"])
    assert ran.exit_code == 0
    assert "unsure: the picture has one colour" in ran.output
    doubtful = sum(", unsure: " in line for line in ran.output.splitlines())
    assert f"{doubtful} of them unsure: look at" in ran.output
    ran = CliRunner().invoke(main, ["predict", "grey.png", "--json"])
    said = json.loads(ran.stdout)
    assert said["quality"] == 0
    assert said["warnings"] == [{"code": "one-colour", "text": SENTENCES["one-colour"]}]
    ran = CliRunner().invoke(main, ["predict", "grey.png", "--json", "--raw"])
    assert json.loads(ran.stdout)["warnings"][0]["code"] == "one-colour"


def test_black_one_colour_and_noise_are_warned_by_the_bundled_model() -> None:
    segmenter = load()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for picture in (np.zeros((300, 300, 3), np.uint8), np.full((50, 80, 3), 77, np.uint8), noise):
        assert segmenter(picture).warnings
