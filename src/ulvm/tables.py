"""The paper's tables as rows: what ``ulvm reproduce TABLE`` trains and scores."""

from __future__ import annotations

import dataclasses

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
class Table:
    """Rows that answer one question.

    Args:
        question: What a reader learns from it.
        rows: What is run; rows of several tables with the same runs share them.
    """

    question: str
    rows: tuple[Row, ...]


PAPER = Row(preset="paper", seeds=FIVE)  # what the rows of other tables are compared with


def _rows(*presets: str, seeds: tuple[int, ...] = THREE) -> tuple[Row, ...]:
    """A row for each preset; ``paper``, in every table, with all its seeds."""
    return tuple(
        PAPER if preset == PAPER.preset else Row(preset=preset, seeds=seeds) for preset in presets
    )


TABLES: dict[str, Table] = {
    "main": Table(
        question="Does the model reach the published scores?",
        rows=(
            PAPER,
            Row(preset="paper", split="sorted"),
            Row(preset="paper", dataset="isic2018"),
            Row(preset="paper", dataset="isic2018", split="sorted"),
        ),
    ),
    "branches": Table(
        question="Do more branches score higher?",
        rows=_rows("branches-1", "branches-2", "paper", "branches-8"),
    ),
    "bridges": Table(
        question="What do the two attentions of the bridge add?",
        rows=_rows("bridge-none", "bridge-channel", "bridge-spatial", "paper"),
    ),
    "stages": Table(
        question="PVM layers or convolutions?",
        rows=_rows("conv-both", "conv-encoder", "conv-decoder", "paper"),
    ),
    "mamba": Table(
        question="How large should the Mamba be?",
        rows=(
            *_rows("d-state-4", "d-state-8", "paper", "d-state-32", "d-state-64", seeds=ONE),
            *_rows("d-conv-2", "d-conv-3", seeds=ONE),
            *_rows("expand-1", "expand-3", "expand-4", seeds=ONE),
        ),
    ),
    "widths": Table(
        question="How narrow can the network be?",
        rows=_rows("widths-quarter", "widths-half", "paper"),
    ),
    "mixers": Table(
        question="Does another direction of scanning help?",
        rows=_rows("paper", "mixer-bidirectional", "mixer-ss2d"),
    ),
    "peers": Table(
        question="How do other networks score in the same harness?",
        rows=(
            *_rows("paper", "unet", "ege-unet", "malunet"),
            *_rows("aulunet", "ultralbm-unet", "ultralbm-unet-student"),
            *_rows("lightm-unet", "vm-unet", seeds=ONE),
        ),
    ),
    "plug": Table(
        question="Does a PVM layer serve other networks?",
        rows=(*_rows("unet"), *_rows("unet-pvm", "unext", "unext-pvm", seeds=ONE)),
    ),
    "leaks": Table(
        question="What do ids shared between the years do to a score?",
        rows=(Row(preset="paper", dataset="isic2018"),),
    ),
}


def find_table(name: str) -> Table:
    """The table of this name.

    Raises:
        InputError: There is none; the message names the nearest.
    """
    if name in TABLES:
        return TABLES[name]
    raise unknown_name(f"no table {name!r}", name, TABLES)
