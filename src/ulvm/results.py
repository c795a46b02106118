"""What the result files of ``ulvm reproduce`` say: scores over seeds and differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ulvm.errors import InputError
from ulvm.evaluate import BOOTSTRAP_SEED, LEVEL, RESAMPLES
from ulvm.metrics import (
    POOLED_METRICS,
    Confusion,
    FloatArray,
    IntArray,
    Interval,
    dice,
    percentile_interval,
)
from ulvm.presets import find_preset
from ulvm.spec import ModelSpec, RunSpec
from ulvm.splits import load_split
from ulvm.tables import Row

# Pooled scores that the paper prints: (preset, trained on, scored on). Of its own ablations on ISIC
# 2017 the presets hold the Dice. Source: arXiv 2403.20035; peers as it prints or copies them.
PUBLISHED: dict[tuple[str, str, str], dict[str, float]] = {
    ("paper", "isic2017", "isic2017"): {"dsc": 0.9091, "se": 0.9053, "sp": 0.9790, "acc": 0.9646},
    ("paper", "isic2018", "isic2018"): {"dsc": 0.8940, "se": 0.8680, "sp": 0.9781, "acc": 0.9558},
    ("paper", "isic2017", "ph2"): {"dsc": 0.9265, "se": 0.9345, "sp": 0.9606, "acc": 0.9521},
    ("vm-unet", "isic2017", "isic2017"): {"dsc": 0.9070},
    ("ege-unet", "isic2017", "isic2017"): {"dsc": 0.9073},
    ("unet", "isic2017", "isic2017"): {"dsc": 0.8989},
    ("aulunet", "isic2017", "isic2017"): {"dsc": 0.9208},  # its own paper, BMVC 2025
    ("aulunet", "isic2018", "isic2018"): {"dsc": 0.9037},
}
TITLES = {"isic2017": "ISIC 2017", "isic2018": "ISIC 2018", "ph2": "PH2"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """The runs of a row that have a result file.

    Args:
        row: What was asked for.
        files: Content of the files, in the order of the row's seeds.
        counts: For each data set that all were scored on, counts (seeds, images) in the order of
            the split's ids.
    """

    row: Row
    files: tuple[dict[str, Any], ...]
    counts: dict[str, Confusion]

    @property
    def seeds(self) -> str:
        """How many seeds there are, and of how many if some are missing."""
        there, all_ = len(self.files), len(self.row.seeds)
        return str(all_) if there == all_ else f"{there} of {all_}"


def read_runs(row: Row, results_dir: Path) -> Runs:
    """The result files of a row; runs without one are left out.

    Args:
        row: A row of ``tables.TABLES``.
        results_dir: Holds ``dataset/split/preset-seed.json``.

    Raises:
        InputError: A file is not a result of this row's run on the committed splits.
    """
    found = {
        results_dir / f"{name}.json": run
        for name, run in zip(row.names(), row.runs(), strict=True)
        if (results_dir / f"{name}.json").exists()
    }
    files = {path: _read_file(path, run) for path, run in found.items()}
    by_run = [
        {score["dataset"]: _read_counts(path, score) for score in content["scores"]}
        for path, content in files.items()
    ]
    names = by_run[0] if by_run else ()
    return Runs(
        row=row,
        files=tuple(files.values()),
        counts={name: _stack([run[name] for run in by_run]) for name in names},
    )


def _read_file(path: Path, run: RunSpec) -> dict[str, Any]:
    accepted, remedy = "accepted is a file that ulvm reproduce wrote", "move it away and run again"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = RunSpec.from_dict(content["run"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file ({error!r})", accepted, remedy) from error
    # The recipe may differ, for trying; the table's last line tells it.
    if _identify(found) != _identify(run):
        raise InputError(f"{path} is of another run than its name says", accepted, remedy)
    return content


def _identify(run: RunSpec) -> tuple[ModelSpec, str, str, int]:
    return run.model, run.data.dataset, run.data.split, run.train.seed


def _read_counts(path: Path, score: Mapping[str, Any]) -> Confusion:
    split = load_split(score["dataset"], score["split"]["name"])
    images = len(split.ids(score["split"]["part"]))
    if score["split"]["hash"] != split.hash or len(score["tp"]) != images:
        raise InputError(
            f"{path} has {len(score['tp'])} pictures of {split.dataset}, split '{split.name}', "
            f"hash {score['split']['hash']}",
            f"the committed list has {images} and hash {split.hash}",
            "score the run again",
        )
    tp, fp, fn = (np.array(score[name], dtype=np.int64) for name in ("tp", "fp", "fn"))
    return Confusion(tp=tp, fp=fp, fn=fn, tn=score["pixels"] - tp - fp - fn)


def _stack(runs: Sequence[Confusion]) -> Confusion:
    """Counts (seeds, images)."""
    return Confusion(
        tp=np.stack([run.tp for run in runs]),
        fp=np.stack([run.fp for run in runs]),
        fn=np.stack([run.fn for run in runs]),
        tn=np.stack([run.tn for run in runs]),
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score over seeds.

    Args:
        mean: Over seeds.
        sd: Sample standard deviation over seeds (n - 1); nan for a single seed.
        interval: 95 % bootstrap interval of the mean, over seeds and images; over images alone
            for a single seed.
        seeds: The score of each.
    """

    mean: float
    sd: float
    interval: Interval
    seeds: tuple[float, ...]

    def reached(self, published: float) -> str:
        """How many seeds score at least as much as a published number, and of how many."""
        return f"{sum(seed >= published for seed in self.seeds)} of {len(self.seeds)}"

    def __str__(self) -> str:
        return f"{self.spread} [{self.interval.low:.4f}, {self.interval.high:.4f}]"

    @property
    def spread(self) -> str:
        """Mean and standard deviation as text."""
        return f"{self.mean:.4f}" + ("" if np.isnan(self.sd) else f" ± {self.sd:.4f}")


def estimate(counts: Confusion) -> dict[str, Estimate]:
    """Every score over seeds with its interval.

    The bootstrap draws seeds and images together, both with replacement, the same images for
    every seed; of a resample, the mean over its seeds is taken. With few seeds the part of the
    interval that is due to them is too narrow, by a factor of (n - 1) / n in variance.

    Args:
        counts: Counts (seeds, images).

    Returns:
        ``pooled.dsc``, ``pooled.iou``, ``pooled.se``, ``pooled.sp``, ``pooled.acc`` and
        ``per_image.dsc``.
    """
    observed = _scores(counts, np.ones((1, counts.images)))
    resampled = _scores(counts, _image_weights(counts.images))
    seeds = len(counts.tp)
    return {
        name: Estimate(
            mean=float(values.mean()),
            sd=float(values.std(ddof=1)) if seeds > 1 else float("nan"),
            interval=percentile_interval(_mean_over_seeds(resampled[name], stream=1), LEVEL),
            seeds=tuple(values[:, 0].tolist()),
        )
        for name, values in observed.items()
    }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two rows' mean pooled Dice on the same images.

    Args:
        difference: First less second.
        interval: 95 % bootstrap interval of it.
        p_value: Two-sided, from the same resamples.
        seeds: Of the row that has fewer.
    """

    difference: float
    interval: Interval
    p_value: float
    seeds: int

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval.low <= 0 <= self.interval.high

    @property
    def verdict(self) -> str:
        """``real`` or ``within noise``, and whether one seed alone says so."""
        return ("real" if self.is_real else "within noise") + " (one seed)" * (self.seeds == 1)

    @property
    def in_words(self) -> str:
        """Difference, interval, p and verdict."""
        return f"{self}, p = {self.p_value:.3f}, {self.verdict}"

    def __str__(self) -> str:
        limits = f"[{self.interval.low:+z.4f}, {self.interval.high:+z.4f}]"
        return f"{self.difference:+z.4f} {limits}"


def compare(counts_a: Confusion, counts_b: Confusion) -> Comparison:
    """Difference of mean pooled Dice, paired by image.

    A resample has the same images for both rows; the seeds of each are drawn independently.

    Args:
        counts_a: Counts (seeds, images) of the first row.
        counts_b: Counts (seeds, images) of the second row, on the same images in the same order.

    Raises:
        InputError: The true masks differ, so these are not pairs.
    """
    truths = [counts.tp + counts.fn for counts in (counts_a, counts_b)]
    if counts_a.images != counts_b.images or (np.concatenate(truths) != truths[0][0]).any():
        raise InputError(
            "the runs were counted against different true masks",
            "accepted are the same images at the same size in the same order",
            "score all of them on one download of the data",
        )
    weights = _image_weights(counts_a.images)
    drawn = [
        _mean_over_seeds(_scores(counts, weights)["pooled.dsc"], stream=stream)
        for stream, counts in enumerate((counts_a, counts_b), 1)
    ]
    differences = np.round(drawn[0] - drawn[1], 12)  # rounding errors of equal means are no sign
    tail = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    means = [dice(counts.pooled()).mean() for counts in (counts_a, counts_b)]
    return Comparison(
        difference=float(means[0] - means[1]),
        interval=percentile_interval(differences, LEVEL),
        p_value=min(1.0, 2 * (int(tail) + 1) / (RESAMPLES + 1)),
        seeds=min(len(counts_a.tp), len(counts_b.tp)),
    )


def place(published: float, interval: Interval) -> Literal["inside", "above", "below"]:
    """Where a published number lies: inside, above or below our interval."""
    if published > interval.high:
        return "above"
    return "below" if published < interval.low else "inside"


def _scores(counts: Confusion, weights: FloatArray) -> dict[str, FloatArray]:
    """Scores (seeds, resamples) of counts (seeds, images) weighted by (resamples, images)."""

    def add(count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (count @ weights.T).astype(np.int64)  # float64 is exact below 2**53

    sums = Confusion(tp=add(counts.tp), fp=add(counts.fp), fn=add(counts.fn), tn=add(counts.tn))
    return {
        **{f"pooled.{name}": metric(sums) for name, metric in POOLED_METRICS.items()},
        "per_image.dsc": dice(counts) @ weights.T / counts.images,
    }


@lru_cache
def _image_weights(images: int) -> FloatArray:
    """How often each image is in each resample, (resamples, images); always the same draws."""
    draws = np.random.default_rng([BOOTSTRAP_SEED, 0]).integers(images, size=(RESAMPLES, images))
    positions = draws + images * np.arange(RESAMPLES)[:, None]
    weights = np.bincount(positions.ravel(), minlength=draws.size)
    return weights.reshape(draws.shape).astype(np.float64)


def _mean_over_seeds(values: FloatArray, *, stream: int) -> FloatArray:
    """Mean over seeds drawn with replacement, (seeds, resamples) → (resamples,)."""
    draw = np.random.default_rng([BOOTSTRAP_SEED, stream]).integers(len(values), size=values.shape)
    mean: FloatArray = np.take_along_axis(values, draw, axis=0).mean(axis=0)
    return mean


def compare_runs(
    runs: Runs, reference: Runs, scored_on: str, chosen: IntArray | None = None
) -> Comparison | None:
    """The difference on all or the chosen images; None if either has not been run."""
    if not (runs.files and reference.files):
        return None
    pair = (each.counts[scored_on] for each in (runs, reference))
    return compare(*(counts if chosen is None else counts.select(chosen) for counts in pair))


def published_scores(row: Row, scored_on: str) -> dict[str, float]:
    """Printed pooled scores of a preset by metric; none if the paper prints none."""
    figures = PUBLISHED.get((row.preset, row.dataset, scored_on), {})
    ablation = find_preset(row.preset).published_dsc
    if figures or ablation is None or (row.dataset, scored_on) != ("isic2017", "isic2017"):
        return figures
    return {"dsc": ablation}
