"""The rows of ``ulvm reproduce``: presets, splits and names that exist."""

import ast
import dataclasses
from pathlib import Path

import pytest

from ulvm.errors import InputError
from ulvm.presets import PRESETS
from ulvm.reproduce.experiments import (
    EXPERIMENTS,
    Row,
    find_experiment,
    published,
    published_parameters,
    published_scores,
)
from ulvm.splits import available_splits


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_name_presets_and_splits_that_exist(name: str) -> None:
    for row in find_experiment(name).rows:
        assert row.preset in PRESETS
        assert row.split in available_splits(row.dataset)
        assert len(set(row.names())) == len(row.seeds)


def test_a_run_is_its_preset_with_the_row_s_data_and_seed() -> None:
    row = Row(preset="branches-2", dataset="isic2018", split="sorted", seeds=(7, 8))
    assert row.names() == ["isic2018/sorted/branches-2-7", "isic2018/sorted/branches-2-8"]
    run, preset = row.runs()[1], PRESETS["branches-2"].run
    assert (run.data.dataset, run.data.split, run.train.seed) == ("isic2018", "sorted", 8)
    assert run.model == preset.model
    assert dataclasses.replace(run.train, seed=preset.train.seed) == preset.train


def test_experiments_share_runs_of_one_name() -> None:
    runs = {}
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            for name, run in zip(row.names(), row.runs(), strict=True):
                assert runs.setdefault(name, run) == run


def test_a_preset_on_one_split_has_the_same_seeds_in_every_table() -> None:
    seeds = {}
    for row in (row for each in EXPERIMENTS.values() for row in each.rows):
        assert seeds.setdefault((row.preset, row.dataset, row.split), row.seeds) == row.seeds


def test_unknown_tables_are_met_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'branches'"):
        find_experiment("branchs")


def test_published_scores_are_those_that_the_paper_prints() -> None:
    """Read from arXiv 2403.20035 again, not from the file."""
    dice = {
        name: scores["dsc"]
        for name in PRESETS
        if (scores := published_scores(name, "isic2017", "isic2017"))
    }
    assert dice == {
        **{"paper": 0.9091, "branches-1": 0.9069, "branches-2": 0.9073, "bridge-none": 0.9029},
        **{"vm-unet": 0.9070, "ege-unet": 0.9073, "unet": 0.8989},
        "aulunet": 0.9208,  # its own paper's
    }
    assert [*published_scores("paper", "isic2017", "ph2")] == ["dsc", "se", "sp", "acc"]
    assert published_scores("paper", "isic2018", "ph2") == {}
    assert published_parameters("malunet") == 175e3
    assert published_parameters("plus") is None


def test_every_published_figure_has_a_source_and_a_preset_and_stands_once() -> None:
    for kind, rows in published().items():
        assert all(row["source"] and row["preset"] in PRESETS for row in rows), kind
        keys = [tuple(value for value in row.values() if isinstance(value, str)) for row in rows]
        assert len({*keys}) == len(keys), kind


def numbers(source: str) -> set[float]:
    """The numbers that stand in code."""
    constants = (
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)
    )
    return {value for value in constants if isinstance(value, int | float)}


def test_no_published_figure_stands_anywhere_else_in_code() -> None:
    values = {value for rows in published().values() for row in rows for value in row.values()}
    exact = {preset.parameters for preset in PRESETS.values()}  # a count of ours may be theirs too
    printed = {value for value in values if not isinstance(value, str)} - exact
    assert numbers("rows = ['a', 0.909_1, -27.427e6]") == {0.9091, 27_427_000}
    assert printed >= {0.9091, 0.9982, 27_427_000}
    root = Path(__file__).resolve().parents[2]
    files = [path for folder in ("src", "bench", "docs") for path in (root / folder).rglob("*.py")]
    found = {path.name: numbers(path.read_text()) & printed for path in files}
    assert {name: figures for name, figures in found.items() if figures} == {}
