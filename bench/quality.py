"""Fit the constants of ``ulvm.quality`` to pictures that the networks had not seen, and score them.

    python bench/quality.py --folds 'FOLDER/m-drawn-{}' --data isic2017=DIR \\
        --data pad-ufes=DIR --data ham10000=DIR --things NAME=DIR --other-things NAME=DIR \\
        --work DIR

``FOLDS`` with 1 to 5 in place of the braces is a network, ``….safetensors``, and its splits,
``….isic2017.json`` and ``….pad-ufes.json``, whose test parts it had not seen. ``--things`` are any
photos that show no skin, to fit with; ``--other-things`` are others, to look at; both may be given
again under another name. HAM10000 is looked at only: every third picture, one network each. What
was measured is kept in WORK.

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
from ulvm.image import read_image, resize
from ulvm.segmenter import clean, load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "quality"
SIZE = 256
FOLDS = 5
FITTED = ("isic2017", "pad-ufes")
DRAWN = "lesions drawn to fit"
LESIONS = (*FITTED, "ham10000", "dark drawn")
THRESHOLD = 0.5
FAILED = 0.5  # a mask of a lower Dice has failed
UNSURE = 0.11  # share of lesion pictures that quality alone calls unsure
UNLIKE = 0.02  # share of well outlined lesions that look unlike one
KNOTS = 8
RIDGE, RIDGE_PRODUCTS = 1.0, 20.0
UNCERTAIN = (0.07, 0.93)  # probabilities whose calibration is counted
WEIGHED = (
    "inside", "overlap", "doubt", "size", "shape", "contrast",
    "weakest", "clarity", "aside", "colours", "red", "yellow",
)  # fmt: skip
PRODUCTS = np.triu_indices(len(WEIGHED))


def photos(folder: str, seed: int) -> tuple[Any, Any]:
    """Each photo whole and four squares of it, (n, SIZE, SIZE, 3), and the number of its photo."""
    rng = np.random.default_rng(seed)
    kinds = (".jpg", ".jpeg", ".png", ".webp")
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in kinds)
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
    dark_images, dark_masks = draw_lesions(range(9000, 9060), ("V", "VI"))
    lesion_images, lesion_masks = draw_lesions(
        range(8000, 8240), ("I", "II", "III", "IV", "V", "VI")
    )
    things = {name: photos(where, 1) for name, where in given.things.items()}
    things |= {name: photos(where, 2) for name, where in given.other_things.items()}
    for fold in range(1, FOLDS + 1):
        share = slice(fold - 1, None, FOLDS)
        kinds: dict[str, tuple[Any, Any]] = {}  # pictures and masks; None for none
        for name, data in decoded.items():
            if name in FITTED:
                parts = json.loads(Path(given.folds.format(fold) + f".{name}.json").read_text())
                ids = parts["parts"]["test"]
            else:
                ids = data.ids[::3][share]
            rows = data.indices(ids)
            images, soft = np.asarray(data.images[rows]), np.asarray(data.masks[rows])
            kinds[name] = images, soft >= 128
            kinds[f"skin of {name}"] = lesion_free.crop_beside(images, soft, 5), None
        for name, (images, numbers) in things.items():
            kinds[name] = images[numbers % FOLDS == fold - 1], None
        kinds["drawn, to fit"] = fitted[share], None
        kinds["drawn skin"] = drawn[::2][share], None
        kinds["no skin"] = drawn[1::2][share], None
        kinds[DRAWN] = lesion_images[share], lesion_masks[share]
        kinds["dark drawn"] = dark_images, dark_masks
        network = load(given.folds.format(fold) + ".safetensors")
        for kind, (images, truth) in kinds.items():
            found.setdefault(kind, []).extend(describe_all(network, images, truth, fold))
        print(f"fold {fold} predicted", flush=True)
    return found


def draw_lesions(seeds: range, tones: tuple[str, ...], size: int = SIZE) -> tuple[Any, Any]:
    """Drawn pictures (n, size, size, 3) and their masks, skin tones in turn."""
    drawn = [
        synthetic.draw_lesion(seed, (size, size), skin_tone=tones[seed % len(tones)])
        for seed in seeds
    ]
    return np.stack([one.image_rgb for one in drawn]), np.stack([one.mask for one in drawn])


def describe_all(network: Any, images: Any, truth: Any, fold: int = 0) -> list[dict[str, Any]]:
    """What is kept of pictures; without masks they have no lesion."""
    truth = np.zeros(images.shape[:3], bool) if truth is None else truth
    return [
        describe(image, p.astype(np.float32), true, fold)
        for image, p, true in zip(images, predict(network, images), truth, strict=True)
    ]


def describe(image: Any, p: Any, truth: Any, fold: int) -> dict[str, Any]:
    """What is kept of a picture."""
    mask = clean(image, p, THRESHOLD) >= THRESHOLD
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


def fit_logistic(x: Any, target: Any, ridge: float) -> Any:
    """Weights, bias last, of the logistic formula that is nearest to a target in 0..1."""
    x = np.column_stack([x, np.ones(len(x))])
    weights = np.zeros(x.shape[1])
    pull = np.diag([ridge] * (x.shape[1] - 1) + [0])
    for _ in range(30):
        expected = 1 / (1 + np.exp(-np.clip(x @ weights, -50, 50)))
        slope = x.T @ (target - expected) - pull @ weights
        curvature = (x * (expected * (1 - expected))[:, None]).T @ x + pull
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
    """Both formulas: the outline's by lesions, the lesion's by all.

    Args:
        records: With a mask, ``kind`` in each. Drawn lesions teach the second formula alone: that
            dark skin bears lesions, but not how well real ones are outlined.
    """
    x = table(records)
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x = np.clip((x - mean) / spread, -quality.FURTHEST, quality.FURTHEST)
    dice = np.array([one["dice"] for one in records])
    photo, lesion = (
        np.array([one["kind"] in kinds for one in records]) for kinds in (FITTED, (*FITTED, DRAWN))
    )
    outline = fit_logistic(x[photo], dice[photo], RIDGE)
    sure = ~lesion | (dice >= FAILED)  # a mask that missed its lesion is neither
    products = x[:, PRODUCTS[0]] * x[:, PRODUCTS[1]]
    both = fit_logistic(np.hstack([x, products])[sure], lesion[sure].astype(float), RIDGE_PRODUCTS)
    square = np.zeros((len(WEIGHED), len(WEIGHED)))
    square[PRODUCTS] = both[len(WEIGHED) : -1]

    def named(values: Any) -> dict[str, float]:
        return dict(zip(WEIGHED, np.round(values, 6).tolist(), strict=True))

    return {
        "mean": named(mean),
        "spread": named(spread),
        "outline": {"bias": round(float(outline[-1]), 6), "weight": named(outline[:-1])},
        "lesion": {
            "bias": round(float(both[-1]), 6),
            "weight": named(both[: len(WEIGHED)]),
            "products": np.round(square, 6).tolist(),
        },
    }


def weigh(constants: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Give each record with a mask its score and the chance of a lesion."""
    for one in records:
        if not one["empty"]:
            one["score"], one["chance"] = quality.weigh(constants, one["measures"])


def rate(constants: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Give each record its quality."""
    for one in records:
        one["quality"] = (
            0.0 if one["empty"] else quality.rate(constants, one["score"], one["chance"])
        )


def set_qualities(found: dict[str, list[dict[str, Any]]], free: list[str]) -> dict[str, Any]:
    """Fit, and give each record a quality by constants that its fold had no part in.

    Args:
        found: Records of each kind of pictures.
        free: Kinds without a lesion to fit with.
    """
    for kind, records in found.items():
        for one in records:
            one["kind"] = kind
    everything = list(itertools.chain.from_iterable(found.values()))
    pool = [one for kind in (*FITTED, DRAWN, *free) for one in found[kind] if not one["empty"]]
    for fold in range(1, FOLDS + 1):
        constants = fit([one for one in pool if one["fold"] != fold])
        weigh(constants, [one for one in everything if one["fold"] == fold])
    lesions = [one for kind in FITTED for one in found[kind]]
    marked = [one for one in lesions if not one["empty"]]
    score, dice = (np.array([one[key] for one in marked]) for key in ("score", "dice"))
    at, value = isotonic(score, dice)
    constants = fit(pool)
    constants["curve"] = {"score": np.round(at, 4).tolist(), "dice": np.round(value, 4).tolist()}
    chance = np.array([one["chance"] for one in marked])[dice >= FAILED]
    contrast = np.array([one["measures"]["contrast"] for one in marked])
    constants["bound"] = {
        "unlike-lesion": round(float(np.quantile(chance, UNLIKE)), 4),
        "low-contrast": round(float(np.expm1(np.quantile(contrast, 0.03))), 3),
        "small": 0.005,
        "over-half": 0.5,
        "touches-frame": 0.1,
        "fragments": 0.1,
    }
    rate(constants, everything)
    unsure = float(np.quantile([one["quality"] for one in lesions], UNSURE))
    constants["bound"]["unsure"] = round(unsure, 4)
    return constants


def warned(constants: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """Codes of a record's warnings."""
    if one["one_colour"]:
        return ["one-colour"]
    if one["empty"]:
        return ["nothing-found"]
    return quality.doubts(constants["bound"], one["quality"], one["chance"], one["measures"])


def auc(value: Any, failed: Any) -> float:
    """Chance that a failure has a lower value than another picture."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(failed, -value)) if 0 < failed.sum() < len(failed) else float("nan")


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
        records = describe_all(network, images, soft >= 128)
        weigh(constants, records)
        rate(constants, records)
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
    parser.add_argument("--things", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--other-things", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--test", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--model")
    given = parser.parse_args()
    for name in ("data", "things", "other_things", "test"):
        setattr(given, name, pairs(getattr(given, name)))
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
    free = [*(f"skin of {name}" for name in FITTED), *given.things, "drawn, to fit"]
    constants = set_qualities(found, free)
    constants["temperature"] = fit_temperature([one for kind in FITTED for one in found[kind]])
    result = {
        "folds": Path(given.folds).name,
        "temperature": constants["temperature"],
        "bound": constants["bound"],
        "lesions": {kind: judge(constants, found[kind]) for kind in LESIONS},
        "fitted together": judge(constants, [one for kind in FITTED for one in found[kind]]),
        "lesion-free": {
            kind: judge_free(constants, found[kind])
            for kind in found
            if kind not in (*LESIONS, DRAWN)
        },
    }
    quality.CONSTANTS.write_text(json.dumps(constants, indent=1) + "\n")
    (RESULTS / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    for kind, one in {**result["lesions"], "fitted together": result["fitted together"]}.items():
        print(kind, json.dumps({key: value for key, value in one.items() if "cover" not in key}))
    for kind, one in result["lesion-free"].items():
        print(kind, one)


if __name__ == "__main__":
    main()
