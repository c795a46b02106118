"""Result files of ``ulvm reproduce`` with made-up counts, for tests of what is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ulvm.reproduce.experiments import PERMUTATION, Row
from ulvm.splits import load_split

PIXELS = 256 * 256
AREA = 10_000  # of every lesion


def make_score(dataset: str, split_name: str, missed: Any, area: Any = AREA) -> dict[str, Any]:
    split = load_split(dataset, split_name)
    images = len(split.ids("test"))
    missed = np.broadcast_to(missed, images)
    return {
        "dataset": dataset,
        "split": {"name": split.name, "hash": split.hash, "part": "test"},
        "images": images,
        "pixels": PIXELS,
        "tp": (area - missed).tolist(),
        "fp": [0] * images,
        "fn": missed.tolist(),
    }


def write_run(
    folder: Path,
    row: Row,
    position: int,
    missed: Any,
    *,
    area: Any = AREA,
    audit: Any = None,
    **more: Any,
) -> Path:
    """A result file of one seed that misses so many of ``area`` pixels in each picture."""
    run = row.runs()[position]
    scores = [make_score(row.dataset, row.split, missed, area), make_score("ph2", "all", 1000)]
    if audit is not None:
        scores.append(make_score("isic2017", PERMUTATION, audit))
    result = {
        "preset": row.preset,
        "run": run.to_dict(),
        "versions": {"ulvm": "0.1.0", "torch": "2.11.0"},
        "machine": {"gpu": "Some GPU", "processor": "Some CPU"},
        "git_commit": "0123456789abcdef",
        "date": "2030-01-02",
        "scores": scores,
        **more,
    }
    path = folder / f"{row.names()[position]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path
