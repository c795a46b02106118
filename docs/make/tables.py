"""Writes the tables of the documents from result files, or with ``--check`` says which are old.

A table stands between ``<!-- table:NAME -->`` and ``<!-- end:table -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

import areas
import claims
import scores
import speed
import trust
from documents import FIGURES, RESULTS, ROOT, RUNS
from ulvm.reproduce.experiments import EXPERIMENTS
from ulvm.reproduce.report import render

DOCUMENTS = (
    "README.md",
    "BENCHMARKS.md",
    "REPRODUCE.md",
    "docs/quality.md",
    "docs/use/finetune.md",
    "docs/use/server.md",
    "docs/use/ray.md",
    "src/ulvm/weights/skin.md",
)
FIGURE_NAMES = ("dice-parameters", "dice-milliseconds", "areas", "drawn-pictures", "outlines")


def experiment(name: str, folder: Path = RUNS) -> str:
    """A table of ``ulvm reproduce`` with its verdict; the rest unfolds on a click."""
    verdict, rows, *said = render(name, folder).split("\n\n")
    details = "\n\n".join(said)
    return (
        f"{verdict}\n\n{rows}\n\n<details><summary>Runs, intervals</summary>\n\n"
        f"{details}\n\n</details>"
    )


def figure(name: str, folder: Path = FIGURES) -> str:
    """A figure with the description that is inside its file."""
    path = folder / f"{name}.png"
    with Image.open(path) as image:
        return f"![{image.info['Description']}](docs/figures/{path.name})"


TABLES: dict[str, Callable[[], str]] = {
    "models": scores.models,
    "models-in-short": scores.in_short,
    "strata": scores.strata,
    "bare": scores.bare,
    "claims": partial(claims.render, RUNS),
    "reproduction": partial(claims.in_short, RUNS),
    "cpu": speed.cpu,
    "predict": speed.predict,
    "gpu": speed.gpu,
    "two-gpus": speed.two_gpus,
    "train-cpu": speed.train_cpu,
    "browser": speed.browser,
    "targets": speed.targets,
    "trust": trust.lesions,
    "trust-free": trust.free,
    "trust-figure": lambda: figure("risk-coverage").replace("(docs/", "("),
    "api": speed.api,
    "finetune": speed.finetune,
    "many-pictures": speed.many_pictures,
    "peers-best": partial(experiment, "peers", RESULTS / "runs-best"),
    "areas": areas.split_table,
    "quintiles": areas.quintile_table,
    **{f"figure:{name}": partial(figure, name) for name in FIGURE_NAMES},
    **{f"reproduce:{name}": partial(experiment, name) for name in EXPERIMENTS},
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
