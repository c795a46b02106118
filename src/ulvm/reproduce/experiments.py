"""The rows of each table of ``ulvm reproduce TABLE``, and the figures that papers print."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from importlib import resources
from typing import Any

from ulvm.errors import unknown_name
from ulvm.presets import find_preset
from ulvm.spec import DatasetName, RunSpec

ONE = (42,)  # the released code's
THREE = (42, 43, 44)
FIVE = (42, 43, 44, 45, 46)
PERMUTATION = "paper-permutation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One preset on one split, trained from several seeds.

    Args:
        preset: A key of ``presets.PRESETS``.
        dataset: What it is trained on.
        split: A committed split of it.
        seeds: One run each.
    """

    preset: str
    dataset: DatasetName = "isic2017"
    split: str = PERMUTATION
    seeds: tuple[int, ...] = THREE

    def runs(self) -> list[RunSpec]:
        """The resolved run of each seed."""
        run = find_preset(self.preset).run
        data = dataclasses.replace(run.data, dataset=self.dataset, split=self.split)
        return [
            dataclasses.replace(run, data=data, train=dataclasses.replace(run.train, seed=seed))
            for seed in self.seeds
        ]

    def names(self) -> list[str]:
        """Of each run, where its folder and its result file are: ``dataset/split/preset-seed``."""
        return [f"{self.dataset}/{self.split}/{self.preset}-{seed}" for seed in self.seeds]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Rows that answer one question, as one table.

    Args:
        question: What a reader learns from it.
        rows: What is run; experiments with the same runs share them.
    """

    question: str
    rows: tuple[Row, ...]


PAPER = Row(preset="paper", seeds=FIVE)  # what other rows are compared with


def _rows(*presets: str, seeds: tuple[int, ...] = THREE) -> tuple[Row, ...]:
    """A row for each preset; ``paper``, in every table, with all its seeds."""
    return tuple(
        PAPER if preset == PAPER.preset else Row(preset=preset, seeds=seeds) for preset in presets
    )


EXPERIMENTS: dict[str, Experiment] = {
    "main": Experiment(
        question="Does the model reach the published scores?",
        rows=(
            PAPER,
            Row(preset="paper", split="sorted"),
            Row(preset="paper", dataset="isic2018"),
            Row(preset="paper", dataset="isic2018", split="sorted"),
        ),
    ),
    "branches": Experiment(
        question="Do more branches score higher?",
        rows=_rows("branches-1", "branches-2", "paper", "branches-8"),
    ),
    "bridges": Experiment(
        question="What do the two attentions of the bridge add?",
        rows=_rows("bridge-none", "bridge-channel", "bridge-spatial", "paper"),
    ),
    "stages": Experiment(
        question="PVM layers or convolutions?",
        rows=_rows("conv-both", "conv-encoder", "conv-decoder", "paper"),
    ),
    "mamba": Experiment(
        question="How large should the Mamba be?",
        rows=(
            *_rows("d-state-4", "d-state-8", "paper", "d-state-32", "d-state-64", seeds=ONE),
            *_rows("d-conv-2", "d-conv-3", seeds=ONE),
            *_rows("expand-1", "expand-3", "expand-4", seeds=ONE),
        ),
    ),
    "widths": Experiment(
        question="How narrow can the network be?",
        rows=_rows("widths-quarter", "widths-half", "paper"),
    ),
    "mixers": Experiment(
        question="Does another direction of scanning help?",
        rows=_rows("paper", "mixer-bidirectional", "mixer-ss2d"),
    ),
    "peers": Experiment(
        question="How do other networks score in the same harness?",
        rows=(
            *_rows("paper", "unet", "ege-unet", "malunet"),
            *_rows("aulunet", "ultralbm-unet", "ultralbm-unet-student"),
            *_rows("lightm-unet", "vm-unet", seeds=ONE),
        ),
    ),
    "plug": Experiment(
        question="Does a PVM layer serve other networks?",
        rows=(*_rows("unet"), *_rows("unet-pvm", "unext", "unext-pvm", seeds=ONE)),
    ),
    "leaks": Experiment(
        question="What do ids shared between the years do to a score?",
        rows=(Row(preset="paper", dataset="isic2018"),),
    ),
}


def find_experiment(name: str) -> Experiment:
    """The experiment whose table has this name.

    Raises:
        InputError: There is none; the message names the nearest.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    raise unknown_name(f"no table {name!r}", name, EXPERIMENTS)


@cache
def published() -> dict[str, Any]:
    """``published.json``: scores, parameters and shares of them saved, each with its source."""
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def published_scores(preset: str, trained_on: str, scored_on: str) -> dict[str, float]:
    """Printed pooled scores, 0..1, by metric: ``dsc`` first; empty if no paper prints any."""
    for row in published()["scores"]:
        if (row["preset"], row["trained_on"], row["scored_on"]) == (preset, trained_on, scored_on):
            return {name: row[name] for name in ("dsc", "se", "sp", "acc") if name in row}
    return {}


def published_parameters(preset: str) -> float | None:
    """The printed number of a network's parameters, often rounded to thousands; None if none is."""
    counts = {row["preset"]: row["count"] for row in published()["parameters"]}
    return counts.get(preset)
