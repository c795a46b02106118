"""Writes the tables of the documents from result files, or with ``--check`` says which are old.

A table stands between ``<!-- table:NAME -->`` and ``<!-- end:table -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "REPRODUCE.md", "src/ulvm/weights/MODEL_CARD.md")


def read_result(path: str) -> dict[str, Any]:
    """A result file below ``results/``."""
    result: dict[str, Any] = json.loads((ROOT / "results" / path).read_text())
    return result


def bundled() -> str:
    """Scores of the bundled model, and of its twin trained on the sorted split."""
    rows = [
        "| trained on | scored on | n | pooled DSC | IoU | SE | SP | ACC | DSC per image "
        "| IoU, < .65 as 0 | HD95, median px |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("paper-permutation", "paper-permutation-ph2", "sorted", "sorted-ph2"):
        scores = read_result(f"bundled/{name}.json")
        pooled, per_image = scores["pooled"], scores["per_image"]
        trained = name.removesuffix("-ph2")
        split = scores["split"]
        cells = [
            f"ISIC 2017 `{trained}`",
            f"{scores['dataset']} `{split['name']}` {split['part']} ({split['hash']})",
            str(scores["images"]),
            f"{pooled['dsc']:.4f} {interval(scores, 'pooled.dsc')}",
            *(f"{pooled[key]:.4f}" for key in ("iou", "se", "sp", "acc")),
            f"{per_image['dsc']['mean']:.4f} ± {per_image['dsc']['sd']:.4f} "
            f"{interval(scores, 'per_image.dsc')}",
            f"{per_image['thresholded_jaccard']['mean']:.4f}",
            f"{scores['boundary']['hd95_median_px']:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def published() -> str:
    """The paper's figure for each score beside ours."""
    rows = [
        "| claim (pooled DSC) | published | ours, one seed | inside our interval |",
        "|---|---|---|---|",
    ]
    for claim, figure, name in (
        ("ISIC 2017, split of the paper's sizes, permuted", 0.9091, "paper-permutation"),
        ("the same, ids in order", 0.9091, "sorted"),
        ("PH2, trained on ISIC 2017", 0.9265, "paper-permutation-ph2"),
    ):
        scores = read_result(f"bundled/{name}.json")
        limits = scores["intervals"]["pooled.dsc"]
        inside = "yes" if limits["low"] <= figure <= limits["high"] else "no"
        ours = f"{scores['pooled']['dsc']:.4f} {interval(scores, 'pooled.dsc')}"
        rows.append(f"| {claim} | {figure:.4f} | {ours} | {inside} |")
    return "\n".join(rows)


def interval(scores: dict[str, Any], name: str) -> str:
    """A bootstrap interval as text."""
    limits = scores["intervals"][name]
    return f"[{limits['low']:.4f}, {limits['high']:.4f}]"


TABLES: dict[str, Callable[[], str]] = {"bundled": bundled, "published": published}


def fill(text: str) -> str:
    """The text with every table in it made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table:{name} -->\n{TABLES[name]()}\n<!-- end:table -->"

    return re.sub(r"<!-- table:(?P<name>\w+) -->\n.*?<!-- end:table -->", replace, text, flags=re.S)


def main() -> None:
    """Write the documents, or check them."""
    old = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        if fill(text) != text:
            old.append(name)
            if "--check" not in sys.argv:
                (ROOT / name).write_text(fill(text))
    print("out of date: " + ", ".join(old) if old else "all tables are up to date")
    if old and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
