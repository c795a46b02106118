"""Scores the networks of five folds, each on the pictures that it has not seen, as one.

    python bench/folds.py WEIGHTS_DIR RECIPE pad-ufes DIR --by size,contrast,diagnosis --out DIR

WEIGHTS_DIR holds what ``bench/models.py`` brings back: RECIPE-1.safetensors to RECIPE-5.safetensors
and their splits, RECIPE-1.pad-ufes.json and so on. Writes ``DIR/scores.json`` and what else
``ulvm eval`` writes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ulvm import datasets, load
from ulvm.evaluate import evaluate
from ulvm.groups import find_table
from ulvm.splits import load_split

FOLDS = range(1, 6)


def main() -> None:
    """Score and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights_dir", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("dataset")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--by", default="size,contrast,tone")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    stems = [given.weights_dir / f"{given.recipe}-{fold}" for fold in FOLDS]
    splits = [load_split(given.dataset, f"{stem}.{given.dataset}.json") for stem in stems]
    models = [load(f"{stem}.safetensors") for stem in stems]
    # `evaluate` asks for the pictures in the order of the ids.
    turns: Iterator[Any] = itertools.chain.from_iterable(
        [model] * len(split.ids("test")) for model, split in zip(models, splits, strict=True)
    )
    evaluation = evaluate(
        lambda images: np.concatenate([next(turns).probability(each[None]) for each in images]),
        datasets.decode(given.dataset, given.data_dir, size=256),
        [id_ for split in splits for id_ in split.ids("test")],
        threshold=0.5,
        model=given.recipe,
        split="five folds",
        split_hash=" ".join(split.hash for split in splits),
        part="test",
        by=given.by.split(","),
        columns=find_table(given.data_dir, given.dataset),
    )
    print(evaluation.table())
    for table in evaluation.strata:
        print(f"\n{table.markdown()}")
    evaluation.save(given.out)


if __name__ == "__main__":
    main()
