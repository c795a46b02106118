"""Confusion counts per image, then every score from the counts under a named reduction.

Two reductions, never under one name. *Pooled* adds the pixels of all images into one confusion
matrix and scores that (the paper's protocol: large lesions weigh more). *Per image* scores each
image and averages (the ISIC challenge's protocol: every image weighs the same).

Where a score divides by zero:

- prediction and truth both empty: Dice and IoU are 1 (nothing to find, nothing found);
- empty truth: sensitivity is nan; empty prediction: precision is nan; no background: specificity
  is nan. A per-image mean leaves nan images out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ulvm.errors import InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LEVEL = 0.95
RESAMPLES = 2000
BOOTSTRAP_SEED = 0
_DRAWS_PER_BLOCK = 2**18  # image draws of the bootstrap held in memory at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion:
    """Pixel counts per image: true and false positives, false and true negatives.

    Args:
        tp: Lesion pixels predicted as lesion, (images,).
        fp: Background pixels predicted as lesion, (images,).
        fn: Lesion pixels predicted as background, (images,).
        tn: Background pixels predicted as background, (images,).

    Axes before the last are allowed everywhere: `select` with indices (resamples, images) gives
    (resamples, images), and every score keeps the leading axes.
    """

    tp: IntArray
    fp: IntArray
    fn: IntArray
    tn: IntArray

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self.tp.shape[-1])

    def pooled(self) -> "Confusion":
        """One confusion matrix over the pixels of all images, as a single image (1,)."""
        return self._map(lambda count: count.sum(axis=-1, keepdims=True))

    def select(self, indices: npt.NDArray[np.integer]) -> "Confusion":
        """The counts of the images at these positions, in the order and shape of `indices`."""
        return self._map(lambda count: count[..., indices])

    def __add__(self, other: "Confusion") -> "Confusion":
        """The images of both, one after the other."""
        return self._map(lambda *counts: np.concatenate(counts, axis=-1), other)

    def _map(self, change: Callable[..., IntArray], *others: "Confusion") -> "Confusion":
        every = [vars(counts) for counts in (self, *others)]
        return Confusion(**{name: change(*(each[name] for each in every)) for name in vars(self)})


def confusion(mask: BoolArray, truth: BoolArray) -> Confusion:
    """Confusion counts of predicted masks against true ones.

    Args:
        mask: Predicted lesion, bool, (images, height, width) or one image (height, width).
        truth: True lesion, bool, the same shape.

    Returns:
        Counts (images,); one image gives (1,).

    Raises:
        InputError: A dtype is not bool, the shapes differ, or there are no pixels.
    """
    for name, value in (("mask", mask), ("truth", truth)):
        if value.dtype != np.bool_:
            raise InputError(
                f"{name} has dtype {value.dtype}", "confusion counts bool arrays", "threshold first"
            )
    if mask.shape != truth.shape or mask.ndim not in (2, 3) or mask.size == 0:
        raise InputError(
            f"mask has shape {mask.shape} and truth {truth.shape}",
            "both are (images, height, width) or (height, width), equal and not empty",
            "bring both to one size",
        )
    pixels = mask.shape[-2] * mask.shape[-1]
    mask, truth = mask.reshape(-1, pixels), truth.reshape(-1, pixels)  # (images, pixels)
    tp = np.count_nonzero(mask & truth, axis=1).astype(np.int64)  # (images,)
    fp = np.count_nonzero(mask, axis=1) - tp
    fn = np.count_nonzero(truth, axis=1) - tp
    return Confusion(tp=tp, fp=fp, fn=fn, tn=pixels - tp - fp - fn)


def _ratio(part: npt.ArrayLike, whole: IntArray, if_empty: float) -> FloatArray:
    out: FloatArray = np.full(whole.shape, if_empty)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def dice(counts: Confusion) -> FloatArray:
    """Dice coefficient (F1), 2·TP / (2·TP + FP + FN), per image; 1 if both masks are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, 1.0)


def iou(counts: Confusion) -> FloatArray:
    """Intersection over union (Jaccard), per image; 1 if both masks are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn, 1.0)


def accuracy(counts: Confusion) -> FloatArray:
    """Fraction of pixels predicted correctly, per image."""
    return _ratio(counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, np.nan)


def sensitivity(counts: Confusion) -> FloatArray:
    """Fraction of lesion pixels found (recall), per image; nan if the truth is empty."""
    return _ratio(counts.tp, counts.tp + counts.fn, np.nan)


def specificity(counts: Confusion) -> FloatArray:
    """Fraction of background pixels left out, per image; nan if there is no background."""
    return _ratio(counts.tn, counts.tn + counts.fp, np.nan)


def precision(counts: Confusion) -> FloatArray:
    """Fraction of predicted pixels that are lesion, per image; nan if the prediction is empty."""
    return _ratio(counts.tp, counts.tp + counts.fp, np.nan)


def thresholded_jaccard(counts: Confusion, threshold: float = 0.65) -> FloatArray:
    """IoU per image, with every image below `threshold` counted as 0.

    Source: ISIC 2018 challenge, task 1 (arXiv 1902.03368), which ranks by the mean at .65.
    """
    overlap = iou(counts)
    return np.where(overlap < threshold, 0.0, overlap)


Metric = Callable[[Confusion], FloatArray]  # (…, images) → (…, images)
Statistic = Callable[[Confusion], FloatArray]  # (…, images) → (…)

POOLED_METRICS: dict[str, Metric] = {
    "dsc": dice,
    "iou": iou,
    "se": sensitivity,
    "sp": specificity,
    "acc": accuracy,
}
PER_IMAGE_METRICS: dict[str, Metric] = {
    **POOLED_METRICS,
    "thresholded_jaccard": thresholded_jaccard,
}


# Named and ordered as the challenge's own scoring prints them.
CHALLENGE_METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "jaccard": iou,
    "threshold_jaccard": thresholded_jaccard,
    "dice": dice,
}


def challenge_scores(counts: Confusion) -> dict[str, float]:
    """Means over images as the ISIC challenge takes them: 1 where a score divides by zero.

    2017 ranked by ``jaccard``, 2018 by ``threshold_jaccard``, of masks at the pictures' own sizes.

    Source: what the challenge scores with, ``isic-challenge-scoring`` 5.6.

    Raises:
        InputError: There are no images.
    """
    _require_images(counts.images)
    return {
        name: float(np.nan_to_num(metric(counts), nan=1.0).mean())
        for name, metric in CHALLENGE_METRICS.items()
    }


def pooled(metric: Metric) -> Statistic:
    """The statistic "`metric` of one confusion matrix over the pixels of all images"."""
    return lambda counts: metric(counts.pooled())[..., 0]


def per_image_mean(metric: Metric) -> Statistic:
    """The statistic "mean over images of `metric`", nan images left out."""
    return lambda counts: _mean(metric(counts))


def _mean(values: FloatArray) -> FloatArray:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1), np.nan)


class ClassScores:
    """Dice of each class of masks that have several, counted batch after batch.

    Args:
        names: Of the classes, background first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._counts = np.zeros((3, len(names)), np.int64)  # predicted, true, both

    def add(self, predicted: npt.NDArray[np.int64], true: npt.NDArray[np.uint8]) -> None:
        """Count pictures: the numbers of classes, both (batch, height, width)."""
        for number in range(len(self.names)):
            ours, theirs = predicted == number, true == number
            self._counts[:, number] += ours.sum(), theirs.sum(), (ours & theirs).sum()

    def dice(self) -> dict[str, float]:
        """Dice of each class over all pixels; nan of one that is nowhere."""
        predicted, true, both = self._counts
        return {
            name: float(2 * both[index] / total) if total else np.nan
            for index, (name, total) in enumerate(zip(self.names, predicted + true, strict=True))
        }


@dataclass(frozen=True, kw_only=True)
class PooledScores:
    """Scores of one confusion matrix over all pixels, each 0..1."""

    dsc: float
    iou: float
    se: float
    sp: float
    acc: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over images; sd is nan for a single image."""

    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True)
class PerImageScores:
    """Scores per image, then mean and sd over images; `se` and `sp` leave nan images out."""

    dsc: Spread
    iou: Spread
    se: Spread
    sp: Spread
    acc: Spread
    thresholded_jaccard: Spread


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores of a set of images under both reductions."""

    images: int
    pooled: PooledScores
    per_image: PerImageScores


def scores(counts: Confusion) -> Scores:
    """Pooled and per-image Dice, IoU, sensitivity, specificity and accuracy.

    Args:
        counts: Counts (images,) of at least one image.

    Returns:
        `scores.pooled.dsc`, `scores.per_image.dsc.mean`, `scores.per_image.dsc.sd`, and so on.

    Raises:
        InputError: There are no images.
    """
    _require_images(counts.images)
    return Scores(
        images=counts.images,
        pooled=PooledScores(
            **{name: float(pooled(metric)(counts)) for name, metric in POOLED_METRICS.items()}
        ),
        per_image=PerImageScores(
            **{name: _spread(metric(counts)) for name, metric in PER_IMAGE_METRICS.items()}
        ),
    )


def _spread(values: FloatArray) -> Spread:
    known = values[~np.isnan(values)]
    return Spread(
        mean=float(_mean(values)), sd=float(known.std(ddof=1)) if known.size > 1 else float("nan")
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval, low ≤ high; nan where no resample has a value."""

    low: float
    high: float


Sample = TypeVar("Sample", Confusion, FloatArray)
Seed = int | Sequence[int]


def bootstrap_interval(
    sample: Sample,
    statistic: Callable[[Sample], FloatArray],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = BOOTSTRAP_SEED,
) -> Interval:
    """Percentile bootstrap interval of a statistic, drawing images with replacement.

    It covers the choice of test images, not the choice of training seed.

    Args:
        sample: Counts (images,), or one value per image (images,).
        statistic: What to estimate, (resamples, images) → (resamples,), such as `pooled(dice)` or
            `per_image_mean(iou)`.
        resamples: How many times to draw the set of images anew.
        level: Confidence, between 0 and 1.
        seed: Of the draws; one seed draws the same images for every statistic.

    Returns:
        The interval; resamples in which the statistic is nan are left out. nan of one image, which
        every resample repeats.

    Raises:
        InputError: There are no images, no resamples, or the level is not between 0 and 1.
    """
    images = sample.images if isinstance(sample, Confusion) else sample.shape[-1]
    select = sample.select if isinstance(sample, Confusion) else sample.__getitem__
    estimates = [statistic(select(draw)) for draw in _draws(images, resamples, seed)]
    known = np.concatenate(estimates)
    return percentile_interval(known if images > 1 else known[:0], level)


def image_weights(
    images: int, *, resamples: int = RESAMPLES, seed: Seed = BOOTSTRAP_SEED
) -> FloatArray:
    """How often each image is in each resample, float64 (resamples, images).

    A sum over a resample is then a product with these, for several seeds or models at once.

    Args:
        images: How many there are.
        resamples: As for `bootstrap_interval`.
        seed: As for `bootstrap_interval`, or several numbers.
    """
    counts = [
        np.bincount((draw + images * np.arange(len(draw))[:, None]).ravel(), minlength=draw.size)
        for draw in _draws(images, resamples, seed)
    ]
    return np.concatenate(counts).reshape(resamples, images).astype(np.float64)


def _draws(images: int, resamples: int, seed: Seed) -> Iterator[IntArray]:
    """Positions drawn with replacement, (rows, images) a block, `resamples` rows in all."""
    _require_images(images)
    if resamples < 1:
        raise InputError(
            f"resamples is {resamples}",
            "at least 1 is needed",
            "use 2000, as is usual for a 95 % interval",
        )
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_PER_BLOCK // images)
    for start in range(0, resamples, block):
        yield generator.integers(images, size=(min(block, resamples - start), images))


def percentile_interval(estimates: FloatArray, level: float) -> Interval:
    """The middle part of what resamples gave, (resamples,); nan ones are left out.

    Raises:
        InputError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}", "it must lie between 0 and 1", "use 0.95 for 95 %")
    estimates = estimates[~np.isnan(estimates)]
    if not estimates.size:
        return Interval(low=float("nan"), high=float("nan"))
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def _require_images(images: int) -> None:
    if images == 0:
        raise InputError("no images were counted", "a score needs at least one", "check the ids")
