"""Scores over seeds against brute force and cases worked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from made_up_results import PIXELS, make_score, write_run
from ulvm import metrics
from ulvm.errors import InputError
from ulvm.metrics import Confusion, Interval
from ulvm.reproduce.experiments import EXPERIMENTS, PERMUTATION
from ulvm.reproduce.results import compare, estimate, place, read_runs


def make_counts(tp: Any, fp: Any, fn: Any) -> Confusion:
    tp, fp, fn = (np.array(each, dtype=np.int64) for each in (tp, fp, fn))
    return Confusion(tp=tp, fp=fp, fn=fn, tn=PIXELS - tp - fp - fn)


def draw_counts(seeds: int, images: int, *, stream: int, missed: float = 0.2) -> Confusion:
    """Runs on the same true masks, whose area is the same for every stream."""
    area = np.random.default_rng(99).integers(500, 30_000, images)
    random = np.random.default_rng(stream)
    fraction = np.clip(random.normal(missed, 0.1, (seeds, images)), 0, 1)
    fn = (area * fraction).astype(np.int64)
    fp = (area * random.uniform(0, 0.2, (seeds, images))).astype(np.int64)
    return make_counts(area - fn, fp, fn)


def pooled_dice(counts: Confusion, seed: int, images: Any) -> float:
    tp, fp, fn = (int(each[seed, images].sum()) for each in (counts.tp, counts.fp, counts.fn))
    return 2 * tp / (2 * tp + fp + fn)


def brute_force(*rows: Confusion, resamples: int = 2000) -> np.ndarray[Any, Any]:
    """Mean pooled Dice of each row in each resample, one at a time, (resamples, rows)."""
    random = np.random.default_rng(12345)
    found = []
    for _ in range(resamples):
        images = random.integers(rows[0].images, size=rows[0].images)
        found.append(
            [
                np.mean(
                    [
                        pooled_dice(counts, seed, images)
                        for seed in random.integers(len(counts.tp), size=len(counts.tp))
                    ]
                )
                for counts in rows
            ]
        )
    return np.array(found)


def test_two_seeds_and_two_images_worked_by_hand() -> None:
    # Dice by seed and image: (1, 0) and (.5, .5); every mask has 8 pixels.
    counts = make_counts([[8, 0], [4, 4]], [[0, 8], [4, 4]], [[0, 8], [4, 4]])
    found = estimate(counts)["pooled.dsc"]
    assert found.mean == 0.5  # both seeds pool to .5
    assert found.sd == 0
    # The worst of 16 equally likely draws takes the first seed and the second image twice.
    assert found.interval == Interval(low=0.0, high=1.0)


def test_spread_is_over_seeds_and_every_score_is_that_of_metrics() -> None:
    counts = draw_counts(3, 50, stream=1)
    singles = [
        metrics.scores(make_counts(counts.tp[seed], counts.fp[seed], counts.fn[seed]))
        for seed in range(3)
    ]
    found = estimate(counts)
    for name in metrics.POOLED_METRICS:
        of_seeds = [getattr(single.pooled, name) for single in singles]
        assert found[f"pooled.{name}"].mean == pytest.approx(np.mean(of_seeds), abs=1e-12)
        assert found[f"pooled.{name}"].sd == pytest.approx(np.std(of_seeds, ddof=1), abs=1e-12)
    of_seeds = [single.per_image.dsc.mean for single in singles]
    assert found["per_image.dsc"].mean == pytest.approx(np.mean(of_seeds), abs=1e-12)


def test_the_interval_is_that_of_brute_force() -> None:
    counts = draw_counts(3, 40, stream=2)
    counts.fn[0] += 900  # one seed is worse, so that the seeds matter
    low, high = np.quantile(brute_force(counts)[:, 0], [0.025, 0.975])
    found = estimate(counts)["pooled.dsc"].interval
    width = high - low
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.05 * width)
    images_alone = estimate(make_counts(counts.tp[:1], counts.fp[:1], counts.fn[:1]))
    interval = images_alone["pooled.dsc"].interval
    assert interval.high - interval.low < width


def test_with_one_seed_the_interval_is_over_images_alone() -> None:
    counts = draw_counts(1, 60, stream=3)
    found = estimate(counts)
    single = make_counts(counts.tp[0], counts.fp[0], counts.fn[0])
    for name, statistic in (
        ("pooled.dsc", metrics.pooled(metrics.dice)),
        ("per_image.dsc", metrics.per_image_mean(metrics.dice)),
    ):
        oracle = metrics.bootstrap_interval(single, statistic)
        assert found[name].interval.low == pytest.approx(oracle.low, abs=0.002)
        assert found[name].interval.high == pytest.approx(oracle.high, abs=0.002)
    assert np.isnan(found["pooled.dsc"].sd)
    assert "±" not in str(found["pooled.dsc"])


def test_a_comparison_is_that_of_brute_force() -> None:
    a, b = draw_counts(3, 40, stream=4), draw_counts(2, 40, stream=5, missed=0.21)
    resampled = brute_force(a, b)
    differences = resampled[:, 0] - resampled[:, 1]
    low, high = np.quantile(differences, [0.025, 0.975])
    found = compare(a, b)
    means = [
        np.mean([pooled_dice(row, seed, slice(None)) for seed in range(len(row.tp))])
        for row in (a, b)
    ]
    assert found.difference == pytest.approx(means[0] - means[1], abs=1e-12)
    assert found.interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.interval.high == pytest.approx(high, abs=0.05 * (high - low))
    p_value = 2 * min((differences <= 0).mean(), (differences >= 0).mean())
    assert found.p_value == pytest.approx(p_value, abs=0.04)


def test_pairs_see_a_difference_that_is_smaller_than_either_interval() -> None:
    a = draw_counts(1, 60, stream=6)
    b = make_counts(a.tp - 20, a.fp, a.fn + 20)
    found = compare(a, b)
    interval = estimate(a)["pooled.dsc"].interval
    assert 0 < found.difference < (interval.high - interval.low) / 10
    assert found.verdict == "real (one seed)"
    assert found.p_value == pytest.approx(2 / 2001)
    assert compare(b, a).interval.high < 0


def test_equal_runs_differ_by_noise_alone() -> None:
    a = draw_counts(1, 60, stream=7)
    found = compare(a, a)
    assert (found.difference, found.p_value, found.verdict) == (0, 1, "within noise (one seed)")


def test_the_seeds_of_two_rows_are_drawn_apart() -> None:
    one = draw_counts(1, 60, stream=8)
    wrong = np.array([[0], [200], [400]]) + one.fp
    a = make_counts(one.tp.repeat(3, axis=0), wrong, one.fn.repeat(3, axis=0))
    interval = compare(a, a).interval
    assert interval.low < 0 < interval.high  # with the same seeds for both it would be 0


def test_different_true_masks_are_no_pairs() -> None:
    a = draw_counts(2, 40, stream=9)
    shifted = make_counts(a.tp + 1, a.fp, a.fn)
    with pytest.raises(InputError, match="different true masks"):
        compare(a, shifted)
    with pytest.raises(InputError, match="different true masks"):
        compare(a, draw_counts(2, 41, stream=9))


def test_a_published_number_lies_inside_above_or_below() -> None:
    interval = Interval(low=0.88, high=0.91)
    assert [place(figure, interval) for figure in (0.87, 0.88, 0.9091, 0.92)] == [
        *("below", "inside", "inside", "above")
    ]


def test_files_that_do_not_fit_their_name_are_refused(tmp_path: Path) -> None:
    row = EXPERIMENTS["main"].rows[0]
    other = dataclasses.replace(row, preset="branches-1").runs()[0]
    for bad in (other, row.runs()[1]):  # another network, another seed
        path = write_run(tmp_path, row, 0, 1000, run=bad.to_dict())
        with pytest.raises(InputError, match=r"paper-42\.json is of another run"):
            read_runs(row, tmp_path)
    path.write_text('{"preset": "paper"}')
    with pytest.raises(InputError, match=r"paper-42\.json is no result file \(KeyError\('run'\)\)"):
        read_runs(row, tmp_path)
    path.write_text('{"preset": "pa')
    with pytest.raises(InputError, match="is no result file"):
        read_runs(row, tmp_path)


def test_scores_on_another_list_of_pictures_are_refused(tmp_path: Path) -> None:
    row = EXPERIMENTS["main"].rows[0]
    score = make_score("isic2017", PERMUTATION, 1000)
    short = score | {name: score[name][1:] for name in ("tp", "fp", "fn")}
    renamed = score | {"split": score["split"] | {"hash": "0" * 12}}
    for bad, said in ((short, "has 599 pictures"), (renamed, "hash 000000000000")):
        write_run(tmp_path, row, 0, 1000, scores=[bad])
        with pytest.raises(InputError, match=said):
            read_runs(row, tmp_path)
