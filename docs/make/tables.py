"""Writes the tables of the documents from result files, or with ``--check`` says which are old.

A table stands between ``<!-- table:NAME -->`` and ``<!-- end:table -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import areas
import claims
import speed
import trust
from documents import FIGURES, RESULTS, ROOT, RUNS, read, table
from ulvm.reproduce.experiments import EXPERIMENTS, published_scores
from ulvm.reproduce.report import render

DOCUMENTS = (
    "README.md",
    "REPRODUCE.md",
    "docs/quality.md",
    "docs/use/server.md",
    "docs/use/ray.md",
    "src/ulvm/weights/skin.md",
)
BUNDLED_SCORES = RESULTS / "bundled"


def bundled() -> str:
    """Scores of the bundled model, and of its twin trained on the sorted split."""
    head = ["trained on", "scored on", "n", "pooled DSC", "IoU", "SE", "SP", "ACC", "DSC per image"]
    head += ["IoU, < .65 as 0", "HD95, median px"]
    rows = []
    for name in ("paper-permutation", "paper-permutation-ph2", "sorted", "sorted-ph2"):
        scores = read(BUNDLED_SCORES / f"{name}.json")
        pooled, per_image, split = scores["pooled"], scores["per_image"], scores["split"]
        rows.append(
            [
                f"ISIC 2017 `{name.removesuffix('-ph2')}`",
                f"{scores['dataset']} `{split['name']}` {split['part']} ({split['hash']})",
                str(scores["images"]),
                f"{pooled['dsc']:.4f} {interval(scores, 'pooled.dsc')}",
                *(f"{pooled[key]:.4f}" for key in ("iou", "se", "sp", "acc")),
                f"{per_image['dsc']['mean']:.4f} ± {per_image['dsc']['sd']:.4f} "
                f"{interval(scores, 'per_image.dsc')}",
                f"{per_image['thresholded_jaccard']['mean']:.4f}",
                f"{scores['boundary']['hd95_median_px']:.1f}",
            ]
        )
    return table(head, rows)


def bundled_beside_published() -> str:
    """The paper's figure for each score beside ours."""
    head = ["claim (pooled DSC)", "published", "ours, one seed", "inside our interval"]
    rows = []
    for claim, scored_on, name in (
        ("ISIC 2017, split of the paper's sizes, permuted", "isic2017", "paper-permutation"),
        ("the same, ids in order", "isic2017", "sorted"),
        ("PH2, trained on ISIC 2017", "ph2", "paper-permutation-ph2"),
    ):
        scores = read(BUNDLED_SCORES / f"{name}.json")
        figure = published_scores("paper", "isic2017", scored_on)["dsc"]
        limits = scores["intervals"]["pooled.dsc"]
        inside = "yes" if limits["low"] <= figure <= limits["high"] else "no"
        ours = f"{scores['pooled']['dsc']:.4f} {interval(scores, 'pooled.dsc')}"
        rows.append([claim, f"{figure:.4f}", ours, inside])
    return table(head, rows)


def interval(scores: dict[str, Any], name: str) -> str:
    """A bootstrap interval as text."""
    limits = scores["intervals"][name]
    return f"[{limits['low']:.4f}, {limits['high']:.4f}]"


def figure(name: str, folder: Path = FIGURES) -> str:
    """A figure with the description that is inside its file, once it has been drawn."""
    path = folder / f"{name}.png"
    if not path.exists():
        return "Not drawn yet, for lack of results; `make docs` says of which."
    with Image.open(path) as image:
        return f"![{image.info['Description']}](docs/figures/{path.name})"


TABLES: dict[str, Callable[[], str]] = {
    "bundled": bundled,
    "claims": partial(claims.render, RUNS),
    "published": bundled_beside_published,
    "cpu": speed.cpu,
    "predict": speed.predict,
    "gpu": speed.gpu,
    "train-cpu": speed.train_cpu,
    "browser": speed.browser,
    "targets": speed.targets,
    "trust": trust.lesions,
    "trust-free": trust.free,
    "trust-figure": lambda: figure("risk-coverage").replace("(docs/", "("),
    "api": speed.api,
    "many-pictures": speed.many_pictures,
    "areas": areas.split_table,
    "quintiles": areas.quintile_table,
    **{
        f"figure:{name}": partial(figure, name)
        for name in ("dice-parameters", "dice-milliseconds", "areas", "drawn-pictures")
    },
    **{f"reproduce:{name}": partial(render, name, RUNS) for name in EXPERIMENTS},
}


def fill(text: str) -> str:
    """The text with every table in it made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table:{name} -->\n{TABLES[name]()}\n<!-- end:table -->"

    table = r"<!-- table:(?P<name>[\w:-]+) -->\n.*?<!-- end:table -->"
    return re.sub(table, replace, text, flags=re.S)


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
