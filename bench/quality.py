"""Fit the constants of ``ulvm.quality`` to pictures that the networks had not seen, and score them.

    python bench/quality.py --folds 'FOLDER/m-drawn-{}' --data isic2017=DIR \\
        --data pad-ufes=DIR --data ham10000=DIR --things DIR --other-things DIR --work DIR

``FOLDS`` with 1 to 5 in place of the braces is a network, ``….safetensors``, and its splits,
``….isic2017.json`` and ``….pad-ufes.json``, whose test parts it had not seen. ``--things`` are any
photos that show no skin, to fit with; ``--other-things`` are others, to look at. HAM10000 is
looked at only: every third picture, one network each. Predictions are kept in WORK.

Writes ``src/ulvm/weights/quality.json`` and ``results/quality/quality.json``. With ``--test
NAME=DIR --model FILE`` it does neither: it scores that model and the constants there are on a
test part, into ``results/quality/test.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ulvm import datasets, lesion_free, quality, synthetic
from ulvm.engine import clean_probability
from ulvm.image import read_image, resize
from ulvm.segmenter import load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "quality"
SIZE = 256
FOLDS = 5
FITTED = ("isic2017", "pad-ufes")
FREE_FITTED = ("skin of isic2017", "skin of pad-ufes", "things", "drawn, to fit")
THRESHOLD = 0.5
FAILED = 0.5  # a mask of a lower Dice has failed
UNSURE = 0.1  # share of lesion pictures that quality alone calls unsure
KNOTS = 8
RIDGE = 1.0
UNCERTAIN = (0.07, 0.93)  # probabilities whose calibration is counted
WEIGHED = (
    "inside", "overlap", "doubt", "size", "shape", "touch",
    "dropped", "contrast", "clarity", "aside", "colours", "foreign",
)  # fmt: skip


def photos(folder: Path, seed: int) -> tuple[Any, Any]:
    """Each photo whole and four squares of it, (n, SIZE, SIZE, 3), and the number of its photo."""
    rng = np.random.default_rng(seed)
    kinds = (".jpg", ".jpeg", ".png", ".webp")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds)
    images, numbers = [], []
    for number, path in enumerate(paths):
        image = read_image(path)
        parts = [image]
        for _ in range(4):
            side = max(1, int(min(image.shape[:2]) * rng.uniform(0.15, 0.9)))
            top, left = (int(rng.integers(0, full - side + 1)) for full in image.shape[:2])
            parts.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
        images += [resize(part, (SIZE, SIZE)) for part in parts]
        numbers += [number] * len(parts)
    return np.stack(images), np.array(numbers)


def predict(network: Any, images: Any) -> Any:
    """Probability (n, SIZE, SIZE), float16."""
    parts = [network.probability(images[at : at + 32])[:, 0] for at in range(0, len(images), 32)]
    return np.concatenate(parts or [np.zeros((0, SIZE, SIZE))]).astype(np.float16)


def gather(given: Any) -> dict[str, list[dict[str, Any]]]:
    """Of each kind of pictures: the measures, Dice and fold of each, and pixels to calibrate by."""
    decoded = {name: datasets.decode(name, where, size=SIZE) for name, where in given.data.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    drawn = lesion_free.draw_pictures(200, 77, SIZE)
    fitted = lesion_free.draw_pictures(800, 177, SIZE)
    dark = [
        synthetic.draw_lesion(9000 + seed, (SIZE, SIZE), skin_tone=("V", "VI")[seed % 2])
        for seed in range(60)
    ]
    dark_images, dark_masks = (
        np.stack(part) for part in zip(*((d.image_rgb, d.mask) for d in dark), strict=True)
    )
    things, numbers = photos(given.things, 1)
    others, other_numbers = photos(given.other_things, 2)
    for fold in range(1, FOLDS + 1):
        network = load(given.folds.format(fold) + ".safetensors")

        def add(
            kind: str, images: Any, truth: Any = None, fold: int = fold, network: Any = network
        ) -> None:
            truths = np.zeros(images.shape[:3], bool) if truth is None else truth
            for image, p, true in zip(images, predict(network, images), truths, strict=True):
                found.setdefault(kind, []).append(describe(image, p.astype(np.float32), true, fold))

        for name, data in decoded.items():
            if name in FITTED:
                parts = json.loads(Path(given.folds.format(fold) + f".{name}.json").read_text())
                ids = parts["parts"]["test"]
            else:
                ids = data.ids[::3][fold - 1 :: FOLDS]
            rows = data.indices(ids)
            images, soft = np.asarray(data.images[rows]), np.asarray(data.masks[rows])
            add(name, images, soft >= 128)
            add(f"skin of {name}", lesion_free.crop_beside(images, soft, 5))
        add("things", things[numbers % FOLDS == fold - 1])
        add("other things", others[other_numbers % FOLDS == fold - 1])
        add("drawn, to fit", fitted[fold - 1 :: FOLDS])
        add("drawn skin", drawn[::2][fold - 1 :: FOLDS])
        add("no skin", drawn[1::2][fold - 1 :: FOLDS])
        add("dark drawn", dark_images, dark_masks)
        print(f"fold {fold} predicted", flush=True)
    return found


def describe(image: Any, p: Any, truth: Any, fold: int) -> dict[str, Any]:
    """What is kept of a picture."""
    mask = clean_probability(p, THRESHOLD) >= THRESHOLD
    both, either = int((mask & truth).sum()), int(mask.sum() + truth.sum())
    kept: dict[str, Any] = {
        "fold": fold,
        "dice": 2 * both / either if either else 1.0,
        "empty": not mask.any(),
        "one_colour": quality.is_one_colour(image),
        "marked": float(mask.mean()),
        "bins": pixel_bins(p, truth),
    }
    if mask.any():
        kept["measures"] = quality.measure(image, p, mask, THRESHOLD)
    return kept


BINS = 200


def pixel_bins(p: Any, truth: Any) -> Any:
    """Pixels and lesion pixels by probability, (2, BINS)."""
    which = np.minimum((p.ravel() * BINS).astype(int), BINS - 1)
    pair = [np.bincount(which, weights, BINS) for weights in (None, truth.ravel())]
    return np.stack(pair).astype(np.int32)


def fit_logistic(x: Any, target: Any) -> Any:
    """Weights, bias last, of the logistic formula that is nearest to a target in 0..1."""
    x = np.column_stack([x, np.ones(len(x))])
    weights = np.zeros(x.shape[1])
    ridge = np.diag([RIDGE] * (x.shape[1] - 1) + [0])
    for _ in range(30):
        expected = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (target - expected) - ridge @ weights
        curvature = (x * (expected * (1 - expected))[:, None]).T @ x + ridge
        weights += np.linalg.solve(curvature, slope)
    return weights


def isotonic(score: Any, target: Any) -> tuple[list[float], list[float]]:
    """A rising curve of a few knots from score to target: pooled neighbours, then means by knot."""
    order = np.argsort(score)
    score, target = score[order], target[order]
    ends = np.round(np.linspace(0, 1, KNOTS + 1) ** 1.6 * len(score)).astype(int)  # finer below
    at = [float(score[a:b].mean()) for a, b in itertools.pairwise(ends)]
    value = [float(target[a:b].mean()) for a, b in itertools.pairwise(ends)]
    value = np.maximum.accumulate(value).tolist()
    first, last = float(score[0]) - 1, float(score[-1]) + 1
    return [first, *at, last], [0.0, *value, min(1.0, value[-1] + 0.03)]


def table(records: list[dict[str, Any]]) -> Any:
    """Measures (n, WEIGHED) of records that have some."""
    return np.array([[one["measures"][name] for name in WEIGHED] for one in records])


def fit(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread, weights and bias for records with a mask."""
    x = table(records)
    mean, spread = x.mean(0), x.std(0) + 1e-9
    weights = fit_logistic((x - mean) / spread, np.array([one["dice"] for one in records]))
    named = {
        key: dict(zip(WEIGHED, np.round(values, 6).tolist(), strict=True))
        for key, values in (("mean", mean), ("spread", spread), ("weight", weights[:-1]))
    }
    return {**named, "bias": round(float(weights[-1]), 6)}


def scores(constants: dict[str, Any], records: list[dict[str, Any]]) -> Any:
    """The formula's score of each record with a mask."""
    mean, spread, weight = (
        np.array([constants[key][name] for name in WEIGHED]) for key in ("mean", "spread", "weight")
    )
    return constants["bias"] + ((table(records) - mean) / spread) @ weight


def curve(constants: dict[str, Any], score: Any) -> Any:
    """Quality of a score."""
    return np.interp(score, constants["curve"]["score"], constants["curve"]["dice"])


def set_qualities(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Fit, and give each record a quality by constants that its fold had no part in."""
    pool = [one for kind in (*FITTED, *FREE_FITTED) for one in found[kind] if not one["empty"]]
    for fold in range(1, FOLDS + 1):
        constants = fit([one for one in pool if one["fold"] != fold])
        for records in found.values():
            mine = [one for one in records if one["fold"] == fold and not one["empty"]]
            for one, score in zip(mine, scores(constants, mine) if mine else (), strict=True):
                one["score"] = float(score)
    constants = fit(pool)
    lesions = [one for kind in FITTED for one in found[kind]]
    good = np.array([one["score"] for one in pool])
    at, value = isotonic(good, np.array([one["dice"] for one in pool]))
    constants["curve"] = {"score": np.round(at, 4).tolist(), "dice": np.round(value, 4).tolist()}
    for records in found.values():
        for one in records:
            one["quality"] = 0.0 if one["empty"] else float(curve(constants, one["score"]))
    marked = [one for one in lesions if not one["empty"]]

    def quantile(name: str, share: float) -> float:
        return float(np.quantile([one["measures"][name] for one in marked], share))

    free = [one["quality"] for kind in FREE_FITTED for one in found[kind] if not one["empty"]]
    constants["bound"] = {
        "unsure": round(float(np.quantile([one["quality"] for one in lesions], UNSURE)), 4),
        "unlike-lesion": round(
            float(np.quantile([one["quality"] for one in lesions], UNSURE / 3)), 4
        ),
        "low-contrast": round(float(np.expm1(quantile("contrast", 0.03))), 3),
        "small": 0.005,
        "over-half": 0.5,
        "touches-frame": 0.1,
        "fragments": 0.1,
    }
    print(
        "lesion-free marked above unsure", np.mean(np.array(free) >= constants["bound"]["unsure"])
    )
    return constants


def warned(constants: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """Codes of a record's warnings."""
    if one["one_colour"]:
        return ["one-colour"]
    if one["empty"]:
        return ["nothing-found"]
    return quality.doubts(constants["bound"], one["quality"], one["measures"])


def auc(value: Any, failed: Any) -> float:
    """Chance that a failure has a lower value than another picture."""
    from scipy.stats import rankdata

    ranks = rankdata(value)
    bad = int(failed.sum())
    if bad in (0, len(failed)):
        return float("nan")
    return float(1 - (ranks[failed].sum() - bad * (bad + 1) / 2) / (bad * (len(failed) - bad)))


def judge(constants: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """How well quality tells good masks from failures on pictures of lesions."""
    from scipy.stats import spearmanr

    value = np.array([one["quality"] for one in records])
    dice = np.array([one["dice"] for one in records])
    failed = dice < FAILED
    order = np.argsort(value, kind="stable")
    count = len(order)

    def caught(share: float) -> float:
        return float(failed[order[: round(share * count)]].sum() / max(1, failed.sum()))

    codes = [warned(constants, one) for one in records]
    is_warned = np.array([bool(one) for one in codes])
    return {
        "pictures": count,
        "dice": round(float(dice.mean()), 4),
        "failures": int(failed.sum()),
        "spearman": round(float(spearmanr(value, dice)[0]), 3),
        "auc": round(auc(value, failed), 3),
        "worst_tenth": round(caught(0.1), 3),
        "worst_fifth": round(caught(0.2), 3),
        "mean_error": round(float(np.abs(value - dice).mean()), 3),
        "mean_quality": round(float(value.mean()), 3),
        "warned": round(float(is_warned.mean()), 3),
        "failures_warned": round(float(is_warned[failed].mean()), 3) if failed.any() else None,
        "dice_unwarned": round(float(dice[~is_warned].mean()), 4),
        "failures_unwarned": int((failed & ~is_warned).sum()),
        "codes": {code: sum(code in one for one in codes) for code in quality.SENTENCES},
        # Mean Dice of the share of pictures with the highest quality.
        "coverage": [round(part, 2) for part in np.linspace(0.1, 1, 19)],
        "dice_covered": [
            round(float(dice[order[count - max(1, round(part * count)) :]].mean()), 4)
            for part in np.linspace(0.1, 1, 19)
        ],
        "pixels": calibration(records, constants.get("temperature", 1.0)),
    }


def calibrated(temperature: float) -> Any:
    """Probability of each pixel bin's middle after the temperature."""
    middle = (np.arange(BINS) + 0.5) / BINS
    return 1 / (1 + (1 / middle - 1) ** (1 / temperature))


def fit_temperature(records: list[dict[str, Any]]) -> float:
    """The temperature of least cross-entropy over the pixels, each picture counting the same."""
    pixels, lesion = np.sum([one["bins"] for one in records], axis=0)
    tried = np.exp(np.linspace(-1, 1.2, 221))
    losses = []
    for temperature in tried:
        q = np.clip(calibrated(float(temperature)), 1e-6, 1 - 1e-6)
        losses.append(-(lesion * np.log(q) + (pixels - lesion) * np.log(1 - q)).sum())
    return round(float(tried[int(np.argmin(losses))]), 3)


def calibration(records: list[dict[str, Any]], temperature: float) -> dict[str, float]:
    """Mean |probability - frequency| over ten bins of uncertain pixels; raw, and by temperature."""

    def error(bins: Any, q: Any) -> float:
        kept = (q >= UNCERTAIN[0]) & (q <= UNCERTAIN[1])
        group = np.minimum(((q - UNCERTAIN[0]) / (UNCERTAIN[1] - UNCERTAIN[0]) * 10).astype(int), 9)
        total, gap = 0.0, 0.0
        for each in range(10):
            here = kept & (group == each)
            pixels = bins[0][here].sum()
            total += pixels
            gap += abs((bins[0][here] * q[here]).sum() - bins[1][here].sum())
        return gap / total if total else float("nan")

    together = np.sum([one["bins"] for one in records], axis=0)
    found = {}
    for name, q in (("raw", calibrated(1.0)), ("by_temperature", calibrated(temperature))):
        found[name] = round(error(together, q), 4)
        each = np.array([error(one["bins"], q) for one in records])
        found[f"{name}_per_picture"] = round(float(np.nanmean(each)), 4)
    return found


def judge_free(constants: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """How often pictures without a lesion are marked, and how often a warning says so."""
    codes = [warned(constants, one) for one in records]
    marked = [bool(one["marked"] > 0.01) for one in records]
    silent = [m and not c for m, c in zip(marked, codes, strict=True)]
    return {
        "pictures": len(records),
        "marked": round(float(np.mean(marked)), 3),
        "warned": round(float(np.mean([bool(one) for one in codes])), 3),
        "marked_unwarned": round(float(np.mean(silent)), 3),
    }


def score_test(given: Any) -> None:
    """Score the constants and a model on a test part."""
    constants = json.loads(quality.CONSTANTS.read_text())
    network = load(given.model)
    result = {}
    for name, where in given.test.items():
        data = datasets.decode(name, where, size=SIZE)
        images, soft = np.asarray(data.images), np.asarray(data.masks)
        records = [
            describe(image, p.astype(np.float32), true, 0)
            for image, p, true in zip(images, predict(network, images), soft >= 128, strict=True)
        ]
        for one in records:
            one["quality"] = (
                0.0 if one["empty"] else float(curve(constants, scores(constants, [one])[0]))
            )
        result[name] = judge(constants, records)
        print(name, json.dumps({k: v for k, v in result[name].items() if "cover" not in k}))
    path = RESULTS / "test.json"
    path.write_text(json.dumps({"model": Path(given.model).name, **result}, indent=1) + "\n")


def pairs(texts: list[str]) -> dict[str, str]:
    """NAME=DIR words."""
    return dict(text.split("=", 1) for text in texts)


def main() -> None:
    """Fit and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--things", type=Path)
    parser.add_argument("--other-things", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--test", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--model")
    given = parser.parse_args()
    given.data, given.test = pairs(given.data), pairs(given.test)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if given.test:
        score_test(given)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    kept = given.work / "found.npy"
    if kept.exists():
        found = np.load(kept, allow_pickle=True).item()
    else:
        found = gather(given)
        np.save(kept, np.array(found, dtype=object), allow_pickle=True)
    constants = set_qualities(found)
    constants["temperature"] = fit_temperature([one for kind in FITTED for one in found[kind]])
    result = {
        "folds": Path(given.folds).name,
        "temperature": constants["temperature"],
        "bound": constants["bound"],
        "lesions": {
            kind: judge(constants, found[kind]) for kind in (*FITTED, "ham10000", "dark drawn")
        },
        "fitted together": judge(constants, [one for kind in FITTED for one in found[kind]]),
        "lesion-free": {
            kind: judge_free(constants, found[kind])
            for kind in found
            if kind not in (*FITTED, "ham10000", "dark drawn")
        },
    }
    quality.CONSTANTS.write_text(json.dumps(constants, indent=1) + "\n")
    (RESULTS / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    for kind, one in {**result["lesions"], "fitted together": result["fitted together"]}.items():
        print(kind, json.dumps({key: value for key, value in one.items() if "cover" not in key}))
    for kind, one in result["lesion-free"].items():
        print(kind, one)
    print(json.dumps(constants))


if __name__ == "__main__":
    main()
