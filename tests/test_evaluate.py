"""The evaluation path on drawn pictures whose prediction is known."""

import csv
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made_up_predictions import SIZE, DrawnDataset, dataset_of, from_red, random_dataset, square
from ulvm import metrics
from ulvm.errors import InputError
from ulvm.evaluate import Evaluation, evaluate


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    dataset = random_dataset(20)
    return evaluate(
        from_red,
        dataset,
        dataset.ids,
        model="discs",
        split="paper-permutation",
        split_hash="0123abcd",
        part="test",
    )


def test_perfect_prediction_scores_one_everywhere() -> None:
    truths = [square(4, 4, 10), square(0, 0, 5), square(20, 3, 8), square(0, 0, 0)]
    dataset = dataset_of(truths, truths)
    perfect = evaluate(from_red, dataset, dataset.ids)
    assert set(asdict(perfect.scores.pooled).values()) == {1.0}
    for spread in asdict(perfect.scores.per_image).values():
        assert spread == {"mean": 1.0, "sd": 0.0}
    assert all((case.boundary_f1, case.hd95_px) == (1.0, 0.0) for case in perfect.cases)
    assert perfect.calibration.expected_error == 0
    assert perfect.intervals["pooled.dsc"] == metrics.Interval(low=1.0, high=1.0)


def test_shifted_square_worked_by_hand() -> None:
    # A 10×10 square predicted 2 columns to the right: 80 pixels shared, 20 on either side.
    dataset = dataset_of([square(8, 10, 10)], [square(8, 8, 10)])
    shifted = evaluate(from_red, dataset, dataset.ids)
    (case,) = shifted.cases
    assert (case.tp, case.fp, case.fn, case.tn) == (80, 20, 20, SIZE * SIZE - 120)
    assert case.dice == pytest.approx(0.8)
    assert case.iou == pytest.approx(80 / 120)
    assert case.sensitivity == pytest.approx(0.8)
    assert case.specificity == pytest.approx(904 / 924)
    assert case.accuracy == pytest.approx(984 / 1024)
    assert case.true_area == case.predicted_area == pytest.approx(100 / 1024)
    # Left and right sides, 20 of either boundary's 36 pixels, lie up to 2 px from the other's.
    assert case.hd95_px == pytest.approx(2)
    assert shifted.boundary is not None
    assert shifted.boundary.hd95_median_px == pytest.approx(2)
    # The tolerance is 2 px of 256, so a quarter pixel here: only coinciding pixels match, which
    # are 8 of the top row's and 8 of the bottom row's 10.
    assert shifted.boundary.tolerance_px == 0.25
    assert case.boundary_f1 == pytest.approx(16 / 36)


def test_pooled_and_per_image_scores_stay_apart() -> None:
    # A large lesion found, a small one missed.
    dataset = dataset_of([square(0, 0, 30), square(0, 0, 0)], [square(0, 0, 30), square(9, 9, 3)])
    both = evaluate(from_red, dataset, dataset.ids, boundary=False)
    assert both.scores.pooled.dsc == pytest.approx(1800 / 1809)
    assert both.scores.per_image.dsc.mean == pytest.approx(0.5)
    table = both.table()
    assert "pooled over all pixels" in table
    assert "per image" in table
    (row,) = [line for line in table.splitlines() if line.startswith("DSC")]
    assert "0.9950 [" in row
    assert "0.5000 ± 0.7071 [" in row


def test_batch_size_does_not_matter() -> None:
    dataset = random_dataset(23, seed=3)
    one, many = (
        evaluate(from_red, dataset, dataset.ids, batch_size=batch_size) for batch_size in (1, 7)
    )
    assert one.cases == many.cases
    assert one.scores == many.scores
    assert one.intervals == many.intervals
    assert [e.id for e in one.examples] == [e.id for e in many.examples]
    assert one.calibration.expected_error == pytest.approx(many.calibration.expected_error)
    assert one.contact_sheet().tobytes() == many.contact_sheet().tobytes()


def test_ids_choose_the_rows_and_their_order() -> None:
    dataset = random_dataset(6)
    whole = {case.id: case for case in evaluate(from_red, dataset, dataset.ids).cases}
    chosen = evaluate(from_red, dataset, ["case-004", "case-001"], batch_size=1)
    assert chosen.cases == (whole["case-004"], whole["case-001"])


def test_threshold_and_truth_include_their_limit() -> None:
    dataset = DrawnDataset(
        name="drawn",
        ids=["a"],
        images=np.array([[[[51] * 3, [50] * 3]]], dtype=np.uint8),  # 51 / 255 = .2
        masks=np.array([[[128, 127]]], dtype=np.uint8),
    )
    (case,) = evaluate(from_red, dataset, ["a"], threshold=float(np.float32(0.2))).cases
    assert (case.tp, case.tn) == (1, 1)


def test_several_classes_are_scored_as_foreground() -> None:
    dataset = random_dataset(4)

    def lesion(images: np.ndarray) -> np.ndarray:
        return from_red(images) * np.float32(0.97)  # keeps n / 255 off the edges of the 15 bins

    def three_classes(images: np.ndarray) -> np.ndarray:
        p = lesion(images)
        return np.concatenate([1 - p, p * 0.3, p * 0.7], axis=1)

    several = evaluate(three_classes, dataset, dataset.ids, threshold=0.99)
    probability = lesion(dataset.images)[:, 0]
    expected = metrics.confusion(0.7 * probability > 1 - probability, dataset.masks >= 128)
    assert np.array_equal(several.counts.tp, expected.tp)
    assert np.array_equal(several.counts.fp, expected.fp)
    assert several.threshold is None
    assert "argmax" in several.table()
    one_class = evaluate(lesion, dataset, dataset.ids)
    assert several.calibration.expected_error == pytest.approx(
        one_class.calibration.expected_error, abs=1e-6
    )


def test_calibration_worked_by_hand() -> None:
    # Half the pixels say .2 and a quarter of them are lesion; half say .8 and all are lesion.
    prediction, truth = np.full((4, 4), 0.2), np.zeros((4, 4), dtype=bool)
    prediction[2:], truth[2:], truth[0, :2] = 0.8, True, True
    dataset = dataset_of([prediction], [truth])
    calibration = evaluate(from_red, dataset, dataset.ids, boundary=False).calibration
    assert calibration.expected_error == pytest.approx((0.05 + 0.2) / 2)
    assert calibration.pixels.tolist() == [0] * 3 + [8] + [0] * 8 + [8] + [0] * 2
    assert calibration.probability[[3, 12]] == pytest.approx([0.2, 0.8])
    assert calibration.frequency[[3, 12]] == pytest.approx([0.25, 1])


def test_intervals_are_those_of_the_counts(evaluation: Evaluation) -> None:
    pooled_dice, mean_iou = metrics.pooled(metrics.dice), metrics.per_image_mean(metrics.iou)
    assert evaluation.intervals["pooled.dsc"] == metrics.bootstrap_interval(
        evaluation.counts, pooled_dice
    )
    assert evaluation.intervals["per_image.iou"] == metrics.bootstrap_interval(
        evaluation.counts, mean_iou
    )
    assert {"per_image.dsc", "per_image.thresholded_jaccard", "boundary.hd95_median_px"} < set(
        evaluation.intervals
    )


def test_table_says_what_was_scored(evaluation: Evaluation) -> None:
    table = evaluation.table()
    for words in (
        "model discs",
        "dataset drawn, split paper-permutation (hash 0123abcd), part test, n = 20 images",
        "lesion = probability 0.5 or more, compared at 32x32 px",
        f"{evaluation.scores.pooled.dsc:.4f} [",
        "HD95, median over images",
        "95% bootstrap intervals over images, 2000 resamples, seed 0",
    ):
        assert words in table


def test_challenge_compares_masks_at_the_pictures_own_sizes() -> None:
    dataset = dataset_of([square(4, 4, 12), square(0, 0, 0)], [square(4, 4, 12), square(9, 9, 3)])
    truths = {name: np.zeros((96, 64), dtype=bool) for name in dataset.ids}
    # The square of 12 is 36 high and 24 wide here, rows 12 to 47; three more of them are lesion.
    truths["case-000"][12:51, 8:32] = True
    assert evaluate(from_red, dataset, dataset.ids, boundary=False).challenge is None
    both = evaluate(from_red, dataset, dataset.ids, boundary=False, full_truth=truths.__getitem__)
    assert both.challenge is not None
    assert both.challenge["jaccard"] == pytest.approx((36 / 39 + 1) / 2)  # nothing in the other
    assert both.challenge["dice"] == pytest.approx((72 / 75 + 1) / 2)
    assert "dice               0.9800" in both.table()
    assert both.to_dict()["challenge"] == both.challenge

    def two_classes(images: np.ndarray) -> np.ndarray:
        return np.concatenate([1 - from_red(images), from_red(images)], axis=1)

    with pytest.raises(InputError, match="one mask of the lesion"):
        evaluate(two_classes, dataset, dataset.ids, full_truth=truths.__getitem__)


def test_saved_files_read_back(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = evaluation.save(tmp_path / "new" / "results")
    names = ["scores.json", "cases.json", "cases.csv", "contact_sheet.png"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(names)
    scores, cases = (json.loads(path.read_text(encoding="utf-8")) for path in paths[:2])
    assert scores == evaluation.to_dict()
    assert scores["split"] == {"name": "paper-permutation", "hash": "0123abcd", "part": "test"}
    assert scores["pooled"]["dsc"] == evaluation.scores.pooled.dsc
    assert scores["per_image"]["dsc"]["mean"] == evaluation.scores.per_image.dsc.mean
    assert cases == [asdict(case) for case in evaluation.cases]
    with paths[2].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [case.id for case in evaluation.cases]
    assert [float(row["hd95_px"]) for row in rows] == [case.hd95_px for case in evaluation.cases]
    with Image.open(paths[3]) as sheet:
        assert sheet.size == evaluation.contact_sheet().size


def test_values_that_do_not_exist_are_saved_as_null(tmp_path: Path) -> None:
    dataset = dataset_of([square(3, 3, 3)], [square(0, 0, 0)])
    one = evaluate(from_red, dataset, dataset.ids, boundary=False)
    assert math.isnan(one.cases[0].sensitivity)
    scores_path, cases_path, table_path, _ = one.save(tmp_path)
    scores = json.loads(scores_path.read_text(), parse_constant=pytest.fail)
    assert scores["pooled"]["se"] is None
    assert scores["per_image"]["dsc"] == {"mean": 0.0, "sd": None}
    assert scores["boundary"] is None
    (case,) = json.loads(cases_path.read_text(), parse_constant=pytest.fail)
    assert (case["sensitivity"], case["hd95_px"]) == (None, None)
    (row,) = csv.DictReader(table_path.read_text().splitlines())
    assert (row["sensitivity"], row["hd95_px"]) == ("", "")


def test_saving_replaces_older_results_and_refuses_a_file_as_folder(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    (tmp_path / "scores.json").write_text("old")
    scores_path, *_ = evaluation.save(tmp_path)
    assert json.loads(scores_path.read_text()) == evaluation.to_dict()
    with pytest.raises(InputError, match="Choose a folder that you may write to"):
        evaluation.save(scores_path)


def test_examples_are_the_worst_and_the_best() -> None:
    dataset = random_dataset(40, seed=4)
    evaluation = evaluate(from_red, dataset, dataset.ids, batch_size=3, boundary=False)
    ranked = sorted(evaluation.cases, key=lambda case: case.dice)
    assert [e.id for e in evaluation.examples] == [c.id for c in ranked[:8] + ranked[-8:]]
    worst = evaluation.examples[0]
    row = dataset.ids.index(worst.id)
    assert np.array_equal(worst.image_rgb, dataset.images[row])
    assert np.array_equal(worst.truth, dataset.masks[row] >= 128)
    assert np.array_equal(worst.mask, from_red(dataset.images)[row, 0] >= 0.5)


def test_progress_reaches_the_end() -> None:
    dataset = random_dataset(5)
    seen: list[tuple[int, int]] = []
    evaluate(
        from_red,
        dataset,
        dataset.ids,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "0 ids"),
        ({"ids": ["case-000", "case-000"]}, "2 ids were given, 1 of them different"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": 50}, "threshold is 50"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"probability_of": lambda images: from_red(images)[:, 0]}, r"shape \(3, 32, 32\)"),
        ({"probability_of": lambda images: from_red(images)[:, :, ::2, ::2]}, "16, 16"),
        ({"probability_of": lambda images: from_red(images)[:2]}, r"shape \(2, 1, 32, 32\)"),
        ({"probability_of": lambda images: from_red(images) * 8 - 4}, "neither logits nor nan"),
        ({"probability_of": lambda images: from_red(images) * np.float32("nan")}, "case-000"),
    ],
)
def test_unusable_input_is_refused(change: dict[str, Any], message: str) -> None:
    dataset = random_dataset(3)
    call: dict[str, Any] = {"probability_of": from_red, "ids": dataset.ids}
    with pytest.raises(InputError, match=message):
        evaluate(dataset=dataset, **{**call, **change})


def test_missing_scipy_is_named_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = random_dataset(2)
    real: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "scipy" else real(name, *rest),
    )
    with pytest.raises(InputError, match=r"\.\[eval\]"):
        evaluate(from_red, dataset, dataset.ids)
    evaluate(from_red, dataset, dataset.ids, boundary=False)
