"""The lesion areas of ISIC 2017 and 2018 in id order and in the parts of every split.

As a script, measures them and writes ``results/areas.json``, statistics only. The tables here and
``figures.py`` read it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from documents import AREAS, RUNS, read, table
from ulvm import datasets, splits
from ulvm.files import write_atomically
from ulvm.metrics import Confusion, dice
from ulvm.reproduce.experiments import EXPERIMENTS, PERMUTATION
from ulvm.reproduce.report import NOTHING
from ulvm.reproduce.results import TITLES, Runs, compare, read_runs
from ulvm.spec import DataSpec

BIN = 50  # ids


def measure(dataset: datasets.DecodedDataset) -> dict[str, Any]:
    """Mean area of consecutive ids, and mean and sd of each part of each split.

    Areas are shares of the frame, 0..1. A part that is not in the data is left out.
    """
    areas, there = dataset.lesion_areas, {*dataset.ids}
    described = {}
    for name in splits.available_splits(dataset.name):
        split = splits.load_split(dataset.name, name)
        parts = split.resolve(dataset.pairs).parts
        described[name] = {
            "hash": split.hash,
            "parts": {
                part: summarise(areas[dataset.indices(ids)])
                for part, ids in parts.items()
                if ids and there.issuperset(ids)
            },
        }
    in_order = sorted(
        id_ for ids in splits.load_split(dataset.name, "sorted").parts.values() for id_ in ids
    )
    return {
        "bin": BIN,
        "bins": average(areas[dataset.indices(in_order)], BIN),
        "splits": described,
    }


def summarise(areas: npt.NDArray[np.float64]) -> dict[str, float | int]:
    """Number, mean and sample standard deviation."""
    return {
        "n": len(areas),
        "mean": round(float(areas.mean()), 6),
        "sd": round(float(areas.std(ddof=1)), 6),
    }


def average(areas: npt.NDArray[np.float64], bin_size: int) -> list[float]:
    """Means of so many consecutive areas; the last bin may have fewer."""
    starts = np.arange(0, len(areas), bin_size)
    sizes = np.diff([*starts, len(areas)])
    return [round(float(mean), 6) for mean in np.add.reduceat(areas, starts) / sizes]


def split_table(path: Path = AREAS) -> str:
    """Lesion area in the parts of every split, and how it changes in id order."""
    head = ["mean lesion area ± sd, % of the frame (pictures)", "train", "validation", "test"]
    rows, said = [], []
    for dataset, measured in read(path).items():
        for name, split in measured["splits"].items():
            cells = [f"{TITLES[dataset]} `{name}` ({split['hash']})"]
            for part in ("train", "validation", "test"):
                found = split["parts"].get(part)
                cells.append(
                    f"{100 * found['mean']:.1f} ± {100 * found['sd']:.1f} ({found['n']:,})"
                    if found
                    else NOTHING
                )
            rows.append(cells)
        bins = [100 * mean for mean in measured["bins"]]
        means = {
            name: [f"{100 * found['mean']:.1f}" for found in split["parts"].values()]
            for name, split in measured["splits"].items()
        }
        train, validation, test = means["sorted"]
        said.append(
            f"- {TITLES[dataset]}: lesions of {measured['bin']} pictures next to each other in id "
            f"order cover {min(bins):.1f} to {max(bins):.1f} % on average. `sorted` trains on "
            f"{train} %, chooses the epoch on {validation} % and tests on {test} %; "
            f"`{PERMUTATION}` on {' / '.join(means[PERMUTATION])} %."
        )
    return table(head, rows, *said)


def quintile_table(results_dir: Path = RUNS) -> str:
    """How much of the gap between the two splits' scores is due to the area of lesions."""
    head = ["trained and tested on", "lesion area, % of the frame"]
    for name in (PERMUTATION, "sorted"):
        head += [f"n `{name}`", "DSC", "DSC per image"]
    rows, said = [], []
    for dataset in ("isic2017", "isic2018"):
        permuted, in_order = (
            read_runs(row, results_dir)
            for name in (PERMUTATION, "sorted")
            for row in EXPERIMENTS["main"].rows
            if (row.dataset, row.split) == (dataset, name)
        )
        if not (permuted.files and in_order.files):
            said.append(f"- {TITLES[dataset]}: not run on both splits.")
            continue
        counts = [runs.counts[dataset] for runs in (permuted, in_order)]
        bounds = np.quantile(lesion_area(counts[0]), [0.2, 0.4, 0.6, 0.8])
        groups = [np.digitize(lesion_area(each), bounds) for each in counts]
        edges = ["0", *(f"{100 * bound:.1f}" for bound in bounds), "100"]
        for group in range(5):
            cells = [TITLES[dataset], f"{edges[group]}–{edges[group + 1]}"]
            for each, of in zip(counts, groups, strict=True):
                chosen = np.flatnonzero(of == group)
                scores = mean_scores(each.select(chosen), np.ones(len(chosen)))
                cells += [str(len(chosen)), *(f"{score:.4f}" for score in scores)]
            rows.append(cells)
        sizes = [np.bincount(of, minlength=5) for of in groups]
        mix = (sizes[1] / sizes[0])[groups[0]]
        ours, theirs = (mean_scores(each, np.ones(each.images)) for each in counts)
        reweighted = mean_scores(counts[0], mix)
        said += [
            f"- {TITLES[dataset]}, {name}: `sorted` has {b:.4f} (seeds: {in_order.seeds}), "
            f"`{PERMUTATION}` {a:.4f} (seeds: {permuted.seeds}), a gap of "
            f"{b - a:+z.4f}. With its quintiles in the mix of `sorted`, `{PERMUTATION}` would have "
            f"{c:.4f}: the area of lesions explains {c - a:+z.4f}, and {b - c:+z.4f} remains."
            for name, a, b, c in zip(
                ("pooled DSC", "DSC per image"), ours, theirs, reweighted, strict=True
            )
        ]
        said.append(same_pictures(permuted, in_order))
    caption = f"`paper`, mean over seeds; bounds are the quintiles of `{PERMUTATION}`'s test part."
    return table(head, rows, caption, "", *said)


def lesion_area(counts: Confusion) -> npt.NDArray[Any]:
    """Share of each picture that its true mask covers, (images,)."""
    pixels = counts.tp[0] + counts.fn[0] + counts.fp[0] + counts.tn[0]
    return (counts.tp[0] + counts.fn[0]) / pixels


def mean_scores(counts: Confusion, weights: npt.NDArray[Any]) -> tuple[float, float]:
    """Pooled Dice and Dice per image of weighted pictures, mean over seeds."""
    tp, fp, fn = (count @ weights for count in (counts.tp, counts.fp, counts.fn))
    pooled = 2 * tp / (2 * tp + fp + fn)
    return float(pooled.mean()), float((dice(counts) @ weights / weights.sum()).mean())


def same_pictures(permuted: Runs, in_order: Runs) -> str:
    """A sentence on the pictures that both test parts hold, so that only the training differs."""
    dataset = permuted.row.dataset
    tests = [
        splits.load_split(dataset, runs.row.split).ids("test") for runs in (permuted, in_order)
    ]
    shared = sorted({*tests[0]} & {*tests[1]})
    places = [np.array([test.index(id_) for id_ in shared]) for test in tests]
    found = compare(
        in_order.counts[dataset].select(places[1]), permuted.counts[dataset].select(places[0])
    )
    meaning = (
        "what a split trains and chooses on makes a difference too"
        if found.is_real
        else "a difference due to what a split trains and chooses on is not shown"
    )
    return (
        f"- {TITLES[dataset]}, the {len(shared)} pictures in both test parts: the runs of `sorted` "
        f"against those of `{PERMUTATION}` {found.in_words}; {meaning}."
    )


def main() -> None:
    """Decode, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="holds isic2017 and isic2018 as downloaded"
    )
    data_dir = parser.parse_args().data
    size = DataSpec().image_size
    result = {
        name: measure(datasets.decode(name, data_dir / name, size=size))
        for name in ("isic2017", "isic2018")
    }
    write_atomically(AREAS, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
