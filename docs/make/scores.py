"""How the shipped models score, as tables of README.md and of the models' cards.

The files of ``results/models/scores/`` are the ``scores.json`` that ``ulvm eval --out`` writes;
``results/models/bare.json`` holds of each kind of picture without a lesion how many there are and
the share of which more than 1 % was marked: ``{kind: {"pictures": n, "marked": share}}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from documents import RESULTS, read, table
from ulvm.reproduce.report import NOTHING
from ulvm.strata import StrataTable, Stratum

SCORES = RESULTS / "models" / "scores"
BARE = RESULTS / "models" / "bare.json"

# File, model, pictures.
SCORED = (
    ("skin-isic2017", "skin", "dermoscopy: ISIC 2017 test"),
    ("skin-folds-isic2017", "skin", "dermoscopy: ISIC 2017, five folds"),
    ("skin-ph2", "skin", "dermoscopy: PH2"),
    ("skin-folds-pad-ufes", "skin", "phone photos: PAD-UFES-20, five folds"),
    ("isic2017-isic2017", "isic2017", "dermoscopy: ISIC 2017 test"),
    ("isic2017-ph2", "isic2017", "dermoscopy: PH2"),
)
IN_SHORT = ("skin-isic2017", "skin-ph2", "skin-folds-pad-ufes", "isic2017-isic2017")
FOLDS = "Five folds: each picture is scored by a network that has not seen it, nor its patient."
BY_KIND = (
    ("skin-folds-pad-ufes", "Phone photos (PAD-UFES-20, five folds)"),
    ("skin-isic2017", "Dermoscopy (ISIC 2017 test)"),
)


def models(folder: Path = SCORES) -> str:
    """Each model on each set of pictures: Dice with its interval, and how often it fails."""
    head = ["model", "pictures", "n", "Dice per image", "Dice, pooled", "below .5"]
    rows = []
    for name, model, pictures in SCORED:
        scores = read(folder / f"{name}.json")
        mean = f"{scores['per_image']['dsc']['mean']:.4f} {interval(scores, 'per_image.dsc')}"
        pooled = f"{scores['pooled']['dsc']:.4f} {interval(scores, 'pooled.dsc')}"
        cells = [f"`{model}`", pictures, f"{scores['images']:,}", mean, pooled, failed(scores)]
        rows.append(cells)
    return table(head, rows, f"In brackets 95 % bootstrap intervals over images. {FOLDS}")


def in_short(folder: Path = SCORES, bare_path: Path = BARE) -> str:
    """For README.md: one row a model and kind of picture, and a line on pictures without lesion."""
    rows = []
    for name, model, pictures in SCORED:
        if name in IN_SHORT:
            scores = read(folder / f"{name}.json")
            dice = f"{scores['per_image']['dsc']['mean']:.3f}"
            rows.append([f"`{model}`", pictures, f"{scores['images']:,}", dice, failed(scores)])
    kinds = read(bare_path).items()
    marked = [row["marked"] for name, row in kinds if name.startswith(("dermoscopy", "phone"))]
    shares = f"{min(marked):.0%} to {max(marked):.0%}"
    said = f"`skin` also marks something in {shares} of pictures of bare skin, by their source."
    return table(["model", "pictures", "n", "mean Dice", "below .5"], rows, said)


def strata(folder: Path = SCORES) -> str:
    """How the default model does on kinds of pictures: small, faint, dark ones, by diagnosis."""
    parts = []
    for name, title in BY_KIND:
        for each in read(folder / f"{name}.json")["strata"]:
            rows = tuple(Stratum(**row) for row in each["rows"])
            parts.append(f"{title}:\n\n{StrataTable(by=each['by'], rows=rows).markdown()}")
    return "\n\n".join(parts)


def bare(path: Path = BARE) -> str:
    """How often something is marked in pictures without a lesion."""
    head = ["without a lesion", "pictures", "more than 1 % marked"]
    kinds = read(path).items()
    return table(
        head, ([name, f"{row['pictures']:,}", f"{row['marked']:.1%}"] for name, row in kinds)
    )


def failed(scores: dict[str, Any]) -> str:
    """The share of pictures with a Dice below .5, which a table of strata knows."""
    for kinds in scores.get("strata", []):
        rows = kinds["rows"]
        share = sum(row["images"] * row["failed"] for row in rows) / scores["images"]
        return f"{share:.1%}"
    return NOTHING


def interval(scores: dict[str, Any], name: str) -> str:
    """A bootstrap interval as text."""
    limits = scores["intervals"][name]
    return f"[{limits['low']:.4f}, {limits['high']:.4f}]"
