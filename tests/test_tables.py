"""The rows of ``ulvm reproduce``: presets, splits and names that exist."""

import dataclasses

import pytest

from ulvm.errors import InputError
from ulvm.presets import PRESETS
from ulvm.splits import available_splits
from ulvm.tables import TABLES, Row, find_table


@pytest.mark.parametrize("name", TABLES)
def test_rows_name_presets_and_splits_that_exist(name: str) -> None:
    for row in find_table(name).rows:
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


def test_tables_share_runs_of_one_name() -> None:
    runs = {}
    for table in TABLES.values():
        for row in table.rows:
            for name, run in zip(row.names(), row.runs(), strict=True):
                assert runs.setdefault(name, run) == run


def test_a_preset_on_one_split_has_the_same_seeds_in_every_table() -> None:
    seeds = {}
    for row in (row for table in TABLES.values() for row in table.rows):
        assert seeds.setdefault((row.preset, row.dataset, row.split), row.seeds) == row.seeds


def test_unknown_tables_are_met_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'branches'"):
        find_table("branchs")
