"""One evaluation path for any function that turns pictures into probabilities.

Torch, ONNX Runtime or a lookup table: `evaluate` sees only `probability_of`, so every model is
scored by the same lines. Scores are taken at the network's size, against masks resized to it.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ulvm import metrics
from ulvm.boundary import (
    TOLERANCE,
    BoundarySummary,
    boundary_scores,
    require_scipy,
    summarise,
)
from ulvm.contact_sheet import draw_contact_sheet
from ulvm.datasets.cache import DecodedDataset
from ulvm.engine import resize_mask
from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.image import Uint8Array
from ulvm.metrics import (
    BOOTSTRAP_SEED,
    LEVEL,
    RESAMPLES,
    BoolArray,
    ClassScores,
    Confusion,
    FloatArray,
    Interval,
    Scores,
)
from ulvm.splits import name_some
from ulvm.strata import StrataTable, check_name, measure, tabulate

# uint8 (batch, size, size, 3) → float32 (batch, classes, size, size), 0..1
ProbabilityOf = Callable[[Uint8Array], npt.NDArray[np.float32]]

TRUTH_THRESHOLD = 128  # of the soft uint8 masks: 128 / 255 is the first value ≥ .5
CALIBRATION_BINS = 15
SHEET_CASES_PER_SIDE = 8
_NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Counts and scores of one image, in pixels of the network's size.

    Args:
        id: Id of the image.
        tp: True positive pixels; `fp`, `fn` and `tn` likewise.
        dice: Dice coefficient, 1 if both masks are empty.
        iou: Intersection over union, 1 if both masks are empty.
        sensitivity: nan if the truth is empty.
        specificity: nan if the truth fills the picture.
        accuracy: Fraction of pixels predicted correctly.
        true_area: True lesion as a fraction of the picture.
        predicted_area: Predicted lesion as a fraction of the picture.
        boundary_f1: See `boundary_scores`; None if boundaries were not scored.
        hd95_px: See `boundary_scores`; None if boundaries were not scored.
    """

    id: str
    tp: int
    fp: int
    fn: int
    tn: int
    dice: float
    iou: float
    sensitivity: float
    specificity: float
    accuracy: float
    true_area: float
    predicted_area: float
    boundary_f1: float | None
    hd95_px: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """How the predicted lesion probability of pixels compares with how often they are lesion.

    Args:
        pixels: Pixels per bin of predicted probability, (bins,), equal widths over 0..1.
        probability: Mean predicted probability per bin, (bins,); nan in an empty bin.
        frequency: Fraction of true lesion pixels per bin, (bins,); nan in an empty bin.
    """

    pixels: npt.NDArray[np.int64]
    probability: FloatArray
    frequency: FloatArray

    @property
    def expected_error(self) -> float:
        """Mean over pixels of |probability - frequency| of their bin (ECE), 0..1."""
        filled = self.pixels > 0
        gap = np.abs(self.probability[filled] - self.frequency[filled])
        return float(np.average(gap, weights=self.pixels[filled]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One evaluated picture with its masks, kept for the contact sheet."""

    id: str
    dice: float
    image_rgb: Uint8Array
    mask: BoolArray
    truth: BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Everything measured of one model on one list of images.

    Args:
        dataset: Name of the data set.
        model: What was evaluated, for the reader.
        split: Name of the split.
        split_hash: Hash of its id lists.
        part: Which of its lists, such as "test".
        threshold: Probability from which a pixel is lesion; None for several classes (argmax).
        size_hw: Height and width at which the masks were compared.
        counts: Confusion counts, (images,), in the order of `cases`.
        cases: One entry per image, in the order of the ids.
        scores: Pooled and per-image scores.
        intervals: 95 % bootstrap intervals over images, named as the scores are: "pooled.dsc",
            "per_image.dsc", …, and "boundary.hd95_median_px".
        boundary: Boundary scores; None if they were not asked for.
        calibration: Of the foreground probability of every pixel.
        challenge: Scores as the ISIC challenge counts them; None if they were not asked for.
        examples: The images of lowest and highest Dice, from worst to best.
        strata: Scores of each kind of picture, a table for each property that was asked for.
        classes: Pooled Dice of each class by its name, of masks and a model of the same several.
        copies: Ids of images that look like one that the model was trained or chosen with.
    """

    dataset: str
    model: str
    split: str
    split_hash: str
    part: str
    threshold: float | None
    size_hw: tuple[int, int]
    counts: Confusion
    cases: tuple[Case, ...]
    scores: Scores
    intervals: dict[str, Interval]
    boundary: BoundarySummary | None
    calibration: Calibration
    challenge: dict[str, float] | None
    examples: tuple[Example, ...] = field(repr=False)
    strata: tuple[StrataTable, ...] = ()
    classes: Mapping[str, float] = field(default_factory=dict)
    copies: tuple[str, ...] = ()

    def table(self) -> str:
        """The scores as text that also says what was scored, where and how."""
        rows = [("", "pooled over all pixels", "per image, mean ± sd")]
        for name in metrics.PER_IMAGE_METRICS:
            pooled = getattr(self.scores.pooled, name, None)
            spread = getattr(self.scores.per_image, name)
            rows.append(
                (
                    _ROW_TITLES[name],
                    "" if pooled is None else f"{pooled:.4f} {self._range(f'pooled.{name}')}",
                    f"{spread.mean:.4f} ± {spread.sd:.4f} {self._range(f'per_image.{name}')}",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [*self._heading(), ""]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.append("")
        if self.boundary is not None:
            lines += [
                f"HD95, median over images: {self.boundary.hd95_median_px:.2f} px"
                f" {self._range('boundary.hd95_median_px', 2)}",
                f"Boundary F1, mean over images: {self.boundary.f1_mean:.4f}"
                f" (within {self.boundary.tolerance_px:g} px)",
            ]
        lines += [
            f"Expected calibration error of pixels, {CALIBRATION_BINS} bins:"
            f" {self.calibration.expected_error:.4f}",
            f"[low, high]: {LEVEL:.0%} bootstrap intervals over images, {RESAMPLES} resamples,"
            f" seed {BOOTSTRAP_SEED}",
        ]
        for title, scores in (
            ("DSC of each class, pooled over all pixels:", self.classes),
            ("As the ISIC challenge counts, per image at its own size:", self.challenge),
        ):
            if scores:
                width = max(map(len, scores))
                lines += ["", title]
                lines += [f"{name:{width}}  {value:.4f}" for name, value in scores.items()]
        if self.copies:
            lines += [
                "",
                f"{len(self.copies)} images look like ones that the model was trained or chosen"
                f" with, {name_some(self.copies)}: these scores may be too high."
                " --exclude-seen leaves them out.",
            ]
        return "\n".join(lines)

    def _heading(self) -> list[str]:
        height, width = self.size_hw
        decision = (
            "lesion = any class above 0 by argmax"
            if self.threshold is None
            else f"lesion = probability {self.threshold:g} or more"
        )
        return [
            f"model {self.model}",
            f"dataset {self.dataset}, split {self.split} (hash {self.split_hash}),"
            f" part {self.part}, n = {self.scores.images} images",
            f"{decision}, compared at {height}x{width} px",
        ]

    def _range(self, name: str, digits: int = 4) -> str:
        interval = self.intervals[name]
        return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the cases and pictures, ready for JSON; nan becomes None."""
        result: dict[str, Any] = {
            "dataset": self.dataset,
            "model": self.model,
            "split": {"name": self.split, "hash": self.split_hash, "part": self.part},
            "images": self.scores.images,
            "size_hw": list(self.size_hw),
            "threshold": self.threshold,
            "pooled": asdict(self.scores.pooled),
            "per_image": asdict(self.scores.per_image),
            "boundary": None if self.boundary is None else asdict(self.boundary),
            "intervals": {name: asdict(limits) for name, limits in self.intervals.items()},
            "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": BOOTSTRAP_SEED},
            "challenge": self.challenge,
            "calibration": {
                "expected_error": self.calibration.expected_error,
                **{name: each.tolist() for name, each in vars(self.calibration).items()},
            },
        }
        if self.copies:
            result["look_like_seen"] = list(self.copies)
        if self.classes:
            result["classes"] = dict(self.classes)
        if self.strata:
            result["strata"] = [table.to_dict() for table in self.strata]
        return _without_nan(result)  # type: ignore[no-any-return]

    def contact_sheet(self) -> Image.Image:
        """The worst and best images with both outlines; see `draw_contact_sheet`."""
        return draw_contact_sheet(
            np.stack([example.image_rgb for example in self.examples]),
            np.stack([example.mask for example in self.examples]),
            np.stack([example.truth for example in self.examples]),
            [f"Dice {example.dice:.3f}  {example.id}" for example in self.examples],
            heading=self._heading(),
        )

    def save(self, out_dir: Path | str) -> list[Path]:
        """Writes `scores.json`, `cases.json`, `cases.csv` and `contact_sheet.png`.

        Args:
            out_dir: Folder to write into; it is made if needed, and older results are replaced.

        Returns:
            The four paths.

        Raises:
            InputError: The folder cannot be made or written to.
        """
        out_dir = Path(out_dir)
        cases = _without_nan([asdict(case) for case in self.cases])
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(cases[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cases)
        sheet = io.BytesIO()
        self.contact_sheet().save(sheet, format="PNG")
        contents = {
            "scores.json": _json(self.to_dict()),
            "cases.json": _json(cases),
            "cases.csv": table.getvalue().encode(),
            "contact_sheet.png": sheet.getvalue(),
        }
        for name, content in contents.items():
            write_atomically(out_dir / name, content)
        return [out_dir / name for name in contents]


_ROW_TITLES = {
    "dsc": "DSC",
    "iou": "IoU",
    "se": "SE",
    "sp": "SP",
    "acc": "ACC",
    "thresholded_jaccard": "IoU, < .65 as 0",
}


def evaluate(
    probability_of: ProbabilityOf,
    dataset: DecodedDataset,
    ids: Sequence[str],
    *,
    threshold: float = 0.5,
    batch_size: int = 32,
    boundary: bool = True,
    full_truth: Callable[[str], BoolArray] | None = None,
    model: str = _NOT_STATED,
    split: str = _NOT_STATED,
    split_hash: str = _NOT_STATED,
    part: str = _NOT_STATED,
    by: Sequence[str] = (),
    columns: Mapping[str, Mapping[str, str]] | None = None,
    copies: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores of a model on a list of images: counts, overlap, boundary distance, calibration.

    Pictures pass in batches; only counts and the few pictures of the contact sheet are kept.
    With several classes the lesion is every class above 0 by argmax, its probability is one minus
    that of class 0, and `threshold` plays no part; the truth is always the foreground mask. Where
    masks and model have the same several classes, each is scored as well.

    Args:
        probability_of: Pictures uint8 (batch, size, size, 3) → probability float32
            (batch, classes, size, size), 0..1, such as `Segmenter.probability`.
        dataset: Pictures and soft masks; a mask pixel of 128 or more (≥ .5) is lesion.
        ids: The images to score, each once.
        threshold: Probability from which a pixel is lesion, between 0 and 1.
        batch_size: Pictures per call of `probability_of`.
        boundary: Whether to score boundaries, which needs scipy.
        full_truth: Id → true mask of any size, bool (height, width). With it the predicted masks
            are also made at these sizes, as `Segmenter` makes raw ones, and scored as the ISIC
            challenge scores them; for models of one class.
        model: What is evaluated, for tables and files.
        split: Name of the split, for tables and files.
        split_hash: Hash of its id lists, for tables and files.
        part: Which of its lists `ids` is, such as "test".
        by: Properties of pictures to score by; see `strata.tabulate`.
        columns: What is known of each picture by its id; see `groups.read_table`.
        copies: Which of `ids` look like what the model has seen, for tables and files.
        progress: Called after each batch with (images done, images in all).

    Returns:
        The evaluation, cases in the order of `ids`.

    Raises:
        InputError: No ids, repeated or unknown ids, a threshold or batch size out of range, an
            unknown property, an answer of `probability_of` with another shape or outside 0..1,
            several classes with `full_truth`, or scipy missing.
    """
    if not ids or len(set(ids)) != len(ids):
        raise InputError(
            f"{len(ids)} ids were given, {len(set(ids))} of them different",
            "an evaluation needs at least one image and counts each once",
            "pass every id of the split's part once",
        )
    if not 0 < threshold < 1:
        raise InputError(
            f"threshold is {threshold}",
            "it must be a probability between 0 and 1",
            "use 0.5, as is usual",
        )
    if batch_size < 1:
        raise InputError(
            f"batch_size is {batch_size}", "at least 1 is needed", "use 32, as is usual"
        )
    if boundary:
        require_scipy()
    columns = columns or {}
    for name in by:
        check_name(name, columns, ids)

    rows = dataset.indices(ids)
    height, width = dataset.masks.shape[1:]
    tolerance_px = TOLERANCE * height
    count_parts: list[Confusion] = []
    full_counts: list[Confusion] = []
    boundaries: list[tuple[float, float]] = []
    measures: list[tuple[float, float]] = []
    bins = np.zeros((3, CALIBRATION_BINS))  # pixels, sum of probability, lesion pixels
    examples: list[Example] = []
    several_classes = False
    least = 1 if dataset.classes else TRUTH_THRESHOLD
    class_scores = ClassScores(dataset.classes)
    for start in range(0, len(ids), batch_size):
        batch = rows[start : start + batch_size]
        batch_ids = ids[start : start + batch_size]
        images, truths = dataset.images[batch], dataset.masks[batch] >= least
        probability = probability_of(images)  # (batch, classes, height, width)
        _check_probability(probability, (len(batch), height, width), batch_ids)
        several_classes = probability.shape[1] > 1
        each_class = several_classes and probability.shape[1] == len(dataset.classes)
        if each_class:
            class_scores.add(probability.argmax(axis=1), dataset.masks[batch])
        if several_classes:
            foreground, masks = 1 - probability[:, 0], probability.argmax(axis=1) > 0
        else:
            foreground, masks = probability[:, 0], probability[:, 0] >= threshold
        counts = metrics.confusion(masks, truths)
        count_parts.append(counts)
        bins += _calibration_sums(foreground, truths)
        if full_truth is not None:
            if several_classes:
                raise InputError(
                    "the ISIC challenge's scores were asked for of a model of several classes",
                    "the challenge scores one mask of the lesion",
                    "leave them out",
                )
            for id_, small in zip(batch_ids, foreground, strict=True):
                truth = full_truth(id_)
                mask, _ = resize_mask(small, truth.shape, threshold)
                full_counts.append(metrics.confusion(mask, truth))
        if boundary:
            boundaries += [
                boundary_scores(mask, truth, tolerance_px)
                for mask, truth in zip(masks, truths, strict=True)
            ]
        if "contrast" in by or "tone" in by:
            measures += map(measure, images, truths)
        for i, d, *pictures in zip(
            batch_ids, metrics.dice(counts), images, masks, truths, strict=True
        ):
            # Copies, as a view would keep its whole batch in memory.
            image, mask, truth = (picture.copy() for picture in pictures)
            examples.append(Example(id=i, dice=d, image_rgb=image, mask=mask, truth=truth))
        examples = _worst_and_best(examples)
        if progress is not None:
            progress(start + len(batch), len(ids))

    counts = _join(count_parts)
    return Evaluation(
        dataset=dataset.name,
        model=model,
        split=split,
        split_hash=split_hash,
        part=part,
        threshold=None if several_classes else threshold,
        size_hw=(height, width),
        counts=counts,
        cases=_cases(ids, counts, boundaries),
        scores=metrics.scores(counts),
        intervals=_intervals(counts, boundaries),
        boundary=summarise(boundaries, tolerance_px),
        calibration=_calibration(bins),
        challenge=metrics.challenge_scores(_join(full_counts)) if full_counts else None,
        examples=tuple(examples),
        strata=tuple(
            tabulate(
                name,
                counts,
                ids,
                measures=np.array(measures),
                dataset=dataset.name,
                columns=columns,
            )
            for name in by
        ),
        classes=class_scores.dice() if each_class else {},
        copies=tuple(copies),
    )


def _join(parts: Sequence[Confusion]) -> Confusion:
    return sum(parts[1:], start=parts[0])


def _check_probability(
    probability: npt.NDArray[np.float32], expected: tuple[int, int, int], ids: Sequence[str]
) -> None:
    batch, height, width = expected
    classes = probability.shape[1] if probability.ndim == 4 else 0
    if classes == 0 or probability.shape != (batch, classes, height, width):
        raise InputError(
            f"probability_of answered with shape {probability.shape}",
            f"({batch}, classes, {height}, {width}) is expected for the data at this size",
            "decode the data at the model's input size",
        )
    sound = ((probability >= 0) & (probability <= 1)).all(axis=(1, 2, 3))  # (batch,)
    if not sound.all():
        raise InputError(
            f"probability_of answered outside 0..1 for image {ids[int(sound.argmin())]}",
            "probabilities are expected, neither logits nor nan",
            "apply the sigmoid (softmax for several classes), and check the weights for nan",
        )


def _calibration_sums(probability: npt.NDArray[np.float32], truths: BoolArray) -> FloatArray:
    """Per bin: pixels, sum of probability, lesion pixels, (3, bins)."""
    flat = probability.ravel()
    bin_of = np.minimum((flat * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
    return np.stack(
        [
            np.bincount(bin_of, weights, minlength=CALIBRATION_BINS)
            for weights in (None, flat, truths.ravel())
        ]
    )


def _calibration(sums: FloatArray) -> Calibration:
    pixels, probability, lesion = sums
    means = np.full((2, CALIBRATION_BINS), np.nan)
    np.divide([probability, lesion], pixels, out=means, where=pixels > 0)
    return Calibration(pixels=pixels.astype(np.int64), probability=means[0], frequency=means[1])


def _worst_and_best(examples: list[Example]) -> list[Example]:
    """At most the contact sheet's share of either end, from worst to best."""
    examples = sorted(examples, key=lambda example: (example.dice, example.id))
    surplus = len(examples) - 2 * SHEET_CASES_PER_SIDE
    if surplus > 0:
        del examples[SHEET_CASES_PER_SIDE : SHEET_CASES_PER_SIDE + surplus]
    return examples


def _cases(
    ids: Sequence[str], counts: Confusion, boundaries: list[tuple[float, float]]
) -> tuple[Case, ...]:
    pixels = counts.tp + counts.fp + counts.fn + counts.tn
    columns: dict[str, npt.NDArray[Any]] = {
        **vars(counts),
        "dice": metrics.dice(counts),
        "iou": metrics.iou(counts),
        "sensitivity": metrics.sensitivity(counts),
        "specificity": metrics.specificity(counts),
        "accuracy": metrics.accuracy(counts),
        "true_area": (counts.tp + counts.fn) / pixels,
        "predicted_area": (counts.tp + counts.fp) / pixels,
    }
    numbers = zip(*(column.tolist() for column in columns.values()), strict=True)
    ends: Sequence[tuple[float | None, float | None]] = boundaries or [(None, None)] * len(ids)
    return tuple(
        Case(id=id_, **dict(zip(columns, row, strict=True)), boundary_f1=f1, hd95_px=hd95)
        for id_, row, (f1, hd95) in zip(ids, numbers, ends, strict=True)
    )


def _intervals(counts: Confusion, boundaries: list[tuple[float, float]]) -> dict[str, Interval]:
    intervals = {
        f"pooled.{name}": metrics.bootstrap_interval(counts, metrics.pooled(metric))
        for name, metric in metrics.POOLED_METRICS.items()
    }
    for name, metric in metrics.PER_IMAGE_METRICS.items():
        intervals[f"per_image.{name}"] = metrics.bootstrap_interval(
            counts, metrics.per_image_mean(metric)
        )
    if boundaries:
        intervals["boundary.hd95_median_px"] = metrics.bootstrap_interval(
            np.array(boundaries)[:, 1], lambda values: np.median(values, axis=-1)
        )
    return intervals


def _without_nan(value: Any) -> Any:
    """The same nested value with nan, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
