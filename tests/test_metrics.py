"""Scores against a worked example, scikit-learn and scipy."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from ulvm import metrics
from ulvm.errors import InputError
from ulvm.metrics import Confusion, confusion, pooled, scores

# One image, 2×2 pixels. Predicted: the top row. True: the left column.
MASK = np.array([[True, True], [False, False]])
TRUTH = np.array([[True, False], [True, False]])


def counts_of(*images: tuple[int, int, int, int]) -> Confusion:
    """Confusion from (tp, fp, fn, tn) rows."""
    tp, fp, fn, tn = np.array(images, dtype=np.int64).T
    return Confusion(tp=tp, fp=fp, fn=fn, tn=tn)


def rows_of(counts: Confusion) -> list[tuple[int, int, int, int]]:
    return list(
        zip(
            counts.tp.tolist(),
            counts.fp.tolist(),
            counts.fn.tolist(),
            counts.tn.tolist(),
            strict=True,
        )
    )


def drawn_masks(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random truths of varying size and predictions that are mostly right."""
    generator = np.random.default_rng(seed)
    lesion_share = generator.uniform(0.05, 0.8, size=(images, 1, 1))
    truth = generator.random((images, 12, 10)) < lesion_share
    return truth ^ (generator.random(truth.shape) < 0.2), truth


def test_worked_2x2_example() -> None:
    counts = confusion(MASK, TRUTH)
    assert rows_of(counts) == [(1, 1, 1, 1)]
    assert metrics.dice(counts) == pytest.approx([2 / 4])
    assert metrics.iou(counts) == pytest.approx([1 / 3])
    assert metrics.accuracy(counts) == pytest.approx([2 / 4])
    assert metrics.sensitivity(counts) == pytest.approx([1 / 2])
    assert metrics.specificity(counts) == pytest.approx([1 / 2])
    assert metrics.precision(counts) == pytest.approx([1 / 2])
    assert metrics.thresholded_jaccard(counts) == pytest.approx([0])


def test_every_2x2_pair_agrees_with_sklearn() -> None:
    every = np.array(list(itertools.product([False, True], repeat=4))).reshape(-1, 2, 2)
    pairs = [(a, b) for a in every for b in every]
    counts = confusion(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
    for row, (mask, truth) in zip(rows_of(counts), pairs, strict=True):
        (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(
            truth.ravel(), mask.ravel(), labels=[False, True]
        )
        assert row == (tp, fp, fn, tn)


@pytest.mark.parametrize(
    ("metric", "oracle"),
    [
        (metrics.dice, sklearn.metrics.f1_score),
        (metrics.iou, sklearn.metrics.jaccard_score),
        (metrics.accuracy, sklearn.metrics.accuracy_score),
        (metrics.sensitivity, sklearn.metrics.recall_score),
        (metrics.precision, sklearn.metrics.precision_score),
        (metrics.specificity, lambda t, p: sklearn.metrics.recall_score(t, p, pos_label=False)),
    ],
)
def test_scores_agree_with_sklearn(metric: metrics.Metric, oracle: Callable[..., float]) -> None:
    mask, truth = drawn_masks(images=20, seed=1)
    counts = confusion(mask, truth)
    per_image = [oracle(t.ravel(), m.ravel()) for m, t in zip(mask, truth, strict=True)]
    assert metric(counts) == pytest.approx(per_image, abs=1e-12)
    assert pooled(metric)(counts) == pytest.approx(oracle(truth.ravel(), mask.ravel()))
    assert metrics.per_image_mean(metric)(counts) == pytest.approx(np.mean(per_image))


@pytest.mark.parametrize(
    ("row", "expected"),
    [  # dice, iou, accuracy, sensitivity, specificity, precision
        ((0, 0, 0, 4), (1, 1, 1, np.nan, 1, np.nan)),
        ((0, 4, 0, 0), (0, 0, 0, np.nan, 0, 0)),
        ((0, 0, 4, 0), (0, 0, 0, 0, np.nan, np.nan)),
        ((4, 0, 0, 0), (1, 1, 1, 1, np.nan, 1)),
    ],
)
def test_empty_and_full_masks(row: tuple[int, int, int, int], expected: tuple[float, ...]) -> None:
    counts = counts_of(row)
    measured = [
        metric(counts)[0]
        for metric in (
            metrics.dice,
            metrics.iou,
            metrics.accuracy,
            metrics.sensitivity,
            metrics.specificity,
            metrics.precision,
        )
    ]
    assert measured == pytest.approx(expected, nan_ok=True)


def test_pooled_and_per_image_differ_as_worked_by_hand() -> None:
    # A large lesion found in full, a small one missed, and an image without a lesion.
    both = scores(counts_of((90, 0, 0, 10), (0, 0, 10, 90), (0, 0, 0, 100)))
    assert both.images == 3
    assert both.pooled.dsc == pytest.approx(180 / 190)
    assert both.pooled.iou == pytest.approx(90 / 100)
    assert both.pooled.se == pytest.approx(90 / 100)
    assert both.pooled.acc == pytest.approx(290 / 300)
    assert both.per_image.dsc.mean == pytest.approx(2 / 3)
    assert both.per_image.dsc.sd == pytest.approx(np.std([1, 0, 1], ddof=1))
    # The image without a lesion has no sensitivity and is left out.
    assert both.per_image.se.mean == pytest.approx(1 / 2)


def test_score_that_no_image_has_is_nan() -> None:
    empty = scores(counts_of((0, 0, 0, 4), (0, 1, 0, 3)))
    assert np.isnan([empty.pooled.se, empty.per_image.se.mean, empty.per_image.se.sd]).all()
    assert np.isnan(scores(counts_of((1, 0, 0, 3))).per_image.dsc.sd)


def test_challenge_scores_worked_by_hand() -> None:
    # Half found; nothing there, nothing found; all of a picture that is all lesion.
    scored = metrics.challenge_scores(counts_of((4, 2, 2, 8), (0, 0, 0, 16), (16, 0, 0, 0)))
    assert scored == pytest.approx(
        {
            "accuracy": (12 / 16 + 1 + 1) / 3,
            "sensitivity": (4 / 6 + 1 + 1) / 3,
            "specificity": (8 / 10 + 1 + 1) / 3,
            "jaccard": (4 / 8 + 1 + 1) / 3,
            "threshold_jaccard": (0 + 1 + 1) / 3,
            "dice": (8 / 12 + 1 + 1) / 3,
        }
    )
    with pytest.raises(InputError, match="No images"):
        metrics.challenge_scores(counts_of((1, 1, 1, 1)).select(np.array([], dtype=int)))


@pytest.mark.filterwarnings("default")  # the package's own
def test_challenge_scores_are_those_of_the_challenge_s_own_package() -> None:
    segmentation = pytest.importorskip(
        "isic_challenge_scoring.segmentation", reason="isic-challenge-scoring is not installed"
    )
    masks, truths = drawn_masks(20, seed=4)
    for number, (mask, truth) in enumerate(itertools.product([False, True], repeat=2)):
        masks[number], truths[number] = mask, truth
    for number in range(4, 12):
        masks[number] = truths[number]
        masks[number, : number - 4] ^= True  # Jaccard from 1 to below .65
    pairs = [
        SimpleNamespace(
            image_id=f"ISIC_{number:07}",
            truth_image=np.uint8(255) * truth,
            prediction_image=np.uint8(255) * mask,
        )
        for number, (mask, truth) in enumerate(zip(masks, truths, strict=True))
    ]
    expected = segmentation.SegmentationScore(pairs).macro_average
    assert metrics.challenge_scores(confusion(masks, truths)) == pytest.approx(expected.to_dict())


def test_thresholded_jaccard_keeps_the_threshold_itself() -> None:
    counts = counts_of((65, 35, 0, 0), (64, 36, 0, 0), (100, 0, 0, 0))
    assert metrics.thresholded_jaccard(counts) == pytest.approx([0.65, 0, 1])
    assert metrics.thresholded_jaccard(counts, 0.7) == pytest.approx([0, 0, 1])


def test_adding_concatenates_and_selecting_picks() -> None:
    mask, truth = drawn_masks(images=5, seed=2)
    whole = confusion(mask, truth)
    joined = confusion(mask[:2], truth[:2]) + confusion(mask[2:], truth[2:])
    assert rows_of(joined) == rows_of(whole)
    assert rows_of(whole.select(np.array([4, 0, 4]))) == [rows_of(whole)[i] for i in (4, 0, 4)]
    assert rows_of(whole.pooled()) == rows_of(
        confusion(mask.reshape(1, 5, -1), truth.reshape(1, 5, -1))
    )


@pytest.mark.parametrize(
    ("mask", "truth", "message"),
    [
        (MASK.astype(np.float32), TRUTH, "mask has dtype float32"),
        (MASK, TRUTH.astype(np.uint8), "truth has dtype uint8"),
        (MASK, TRUTH[:1], r"shape \(2, 2\) and truth \(1, 2\)"),
        (MASK[0], TRUTH[0], "height, width"),
        (MASK[:0], TRUTH[:0], "not empty"),
    ],
)
def test_unusable_masks_are_refused(mask: Any, truth: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confusion(mask, truth)


def test_no_images_are_refused() -> None:
    nothing = counts_of((1, 1, 1, 1)).select(np.array([], dtype=np.int64))
    with pytest.raises(InputError, match="No images"):
        scores(nothing)
    with pytest.raises(InputError, match="No images"):
        metrics.bootstrap_interval(nothing, pooled(metrics.dice))


@pytest.mark.parametrize("reduction", [pooled, metrics.per_image_mean])
@pytest.mark.parametrize("metric", [metrics.dice, metrics.iou])
def test_bootstrap_interval_agrees_with_scipy(
    reduction: Callable[[metrics.Metric], metrics.Statistic], metric: metrics.Metric
) -> None:
    counts = confusion(*drawn_masks(images=60, seed=3))
    statistic = reduction(metric)

    def of_arrays(tp: Any, fp: Any, fn: Any, tn: Any, axis: int) -> Any:
        assert axis == -1
        return statistic(Confusion(tp=tp, fp=fp, fn=fn, tn=tn))

    oracle = scipy.stats.bootstrap(
        (counts.tp, counts.fp, counts.fn, counts.tn),
        of_arrays,
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(9),
    ).confidence_interval
    ours = metrics.bootstrap_interval(counts, statistic, resamples=4000)
    # Both are Monte Carlo: the ends agree within a small part of the width.
    assert ours.low == pytest.approx(oracle.low, abs=0.04 * (oracle.high - oracle.low))
    assert ours.high == pytest.approx(oracle.high, abs=0.04 * (oracle.high - oracle.low))


def test_bootstrap_interval_of_values_agrees_with_scipy() -> None:
    values = np.random.default_rng(4).gamma(2.0, 5.0, size=80)

    def median(sample: metrics.FloatArray) -> metrics.FloatArray:
        return np.asarray(np.median(sample, axis=-1))

    oracle = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=4000, rng=np.random.default_rng(9)
    ).confidence_interval
    ours = metrics.bootstrap_interval(values, median, resamples=4000)
    assert ours.low == pytest.approx(oracle.low, abs=0.5)
    assert ours.high == pytest.approx(oracle.high, abs=0.5)


def test_bootstrap_draws_every_image() -> None:
    # Means of two draws from 0 and 1 are 0, ½ and 1 with probability ¼, ½ and ¼.
    values = np.array([0.0, 1.0])
    whole = metrics.bootstrap_interval(values, lambda sample: sample.mean(axis=-1))
    assert whole == metrics.Interval(low=0.0, high=1.0)
    middle = metrics.bootstrap_interval(values, lambda sample: sample.mean(axis=-1), level=0.4)
    assert middle == metrics.Interval(low=0.5, high=0.5)
    one = metrics.bootstrap_interval(values[:1], lambda sample: sample.mean(axis=-1))
    assert np.isnan([one.low, one.high]).all()  # it says nothing of others


def test_bootstrap_depends_on_the_seed_and_not_on_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = confusion(*drawn_masks(images=30, seed=5))
    statistic = pooled(metrics.dice)
    one = metrics.bootstrap_interval(counts, statistic, seed=1)
    assert one == metrics.bootstrap_interval(counts, statistic, seed=1)
    assert one != metrics.bootstrap_interval(counts, statistic, seed=2)
    monkeypatch.setattr(metrics, "_DRAWS_PER_BLOCK", 100)
    assert one == metrics.bootstrap_interval(counts, statistic, seed=1)


def test_wider_level_gives_a_wider_interval_and_bad_settings_are_refused() -> None:
    counts = confusion(*drawn_masks(images=30, seed=5))
    statistic = pooled(metrics.dice)
    usual = metrics.bootstrap_interval(counts, statistic)
    wide = metrics.bootstrap_interval(counts, statistic, level=0.99)
    assert wide.low < usual.low < float(statistic(counts)) < usual.high < wide.high
    with pytest.raises(InputError, match="level is 95"):
        metrics.bootstrap_interval(counts, statistic, level=95)
    with pytest.raises(InputError, match="resamples is 0"):
        metrics.bootstrap_interval(counts, statistic, resamples=0)


def test_resamples_without_a_value_are_left_out() -> None:
    # About a quarter of the resamples hold no lesion and have no sensitivity.
    counts = counts_of((3, 0, 1, 0), (0, 0, 0, 4))
    interval = metrics.bootstrap_interval(counts, pooled(metrics.sensitivity))
    assert interval == metrics.Interval(low=0.75, high=0.75)
    lesionless = metrics.bootstrap_interval(counts_of((0, 0, 0, 4)), pooled(metrics.sensitivity))
    assert np.isnan([lesionless.low, lesionless.high]).all()


@pytest.mark.parametrize("block", [1, 7, 2**18])
def test_weights_and_draws_are_one_bootstrap(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    values = np.random.default_rng(4).gamma(2.0, 5.0, size=30)
    drawn = metrics.bootstrap_interval(values, lambda sample: sample.mean(axis=-1), resamples=50)
    monkeypatch.setattr(metrics, "_DRAWS_PER_BLOCK", block)
    weights = metrics.image_weights(30, resamples=50)
    assert weights.shape == (50, 30)
    assert (weights.sum(axis=1) == 30).all()
    weighted = metrics.percentile_interval(weights @ values / 30, metrics.LEVEL)
    assert (weighted.low, weighted.high) == pytest.approx((drawn.low, drawn.high))
