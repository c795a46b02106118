"""Measures the lesion areas of ISIC 2017 and 2018 in id order and in the parts of every split.

Writes ``results/areas.json``, statistics only; ``bench/figures.py`` draws it and the tables of
REPRODUCE.md quote it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ulvm import datasets, splits
from ulvm.files import write_atomically
from ulvm.spec import DataSpec

RESULT = Path(__file__).resolve().parents[1] / "results" / "areas.json"
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
                part: describe(areas[dataset.indices(ids)])
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


def describe(areas: npt.NDArray[np.float64]) -> dict[str, float | int]:
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
    write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
