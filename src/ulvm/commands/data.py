"""``ulvm data``: check, prepare, split, draw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ulvm.commands.shared import (
    FOLDER,
    GROUPS,
    Progress,
    data_options,
    mask_options,
)


@click.group()
def data() -> None:
    """Check and decode data sets, make splits, draw pictures."""


@data.command("check")
@data_options
@mask_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def data_check(dataset: str, data_dir: Path, as_json: bool, **masks: Any) -> None:
    """Read every file and report what is there, what is wrong and what repeats."""
    from ulvm import datasets

    with Progress("checked") as progress:
        report = datasets.check(dataset, data_dir, progress=progress, **masks)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
    if report.problems:
        sys.exit(1)


@data.command("prepare")
@data_options
@mask_options
@click.option("--size", default=256, show_default=True, help="Height and width in pixels.")
def data_prepare(dataset: str, data_dir: Path, size: int, **masks: Any) -> None:
    """Decode a data set once, into a cache that training and evaluation map into memory."""
    from ulvm import datasets

    with Progress("decoded") as progress:
        decoded = datasets.decode(dataset, data_dir, size=size, progress=progress, **masks)
    click.echo(decoded.describe())


@data.command("split")
@data_options
@mask_options
@click.option("--folds", default=5, show_default=True, help="Number of splits.")
@click.option("--seed", default=42, show_default=True, help="Seed of the shuffling.")
@click.option("--by-area", is_flag=True, help="Give each fold small and large lesions alike.")
@click.option(
    "--groups",
    type=GROUPS,
    help="CSV file 'id,group': a group, such as a patient, is never divided. Else groups.csv "
    "beside the data, if it has a column group.",
)
@click.option("--out", "out_dir", type=FOLDER, required=True, help="Folder for the split files.")
def data_split(
    dataset: str,
    data_dir: Path,
    folds: int,
    seed: int,
    by_area: bool,
    groups: Path | None,
    out_dir: Path,
    **masks: Any,
) -> None:
    """Write split files of one's own, for cross-validation."""
    from ulvm import datasets, splits
    from ulvm.groups import find_table_file, read_groups, read_table

    beside = find_table_file(data_dir, dataset) if groups is None else None
    if beside and any("group" in row for row in read_table(beside).values()):
        groups = beside
        click.echo(f"groups: {groups}")
    ids = [pair.id for pair in datasets.find_pairs(dataset, data_dir)]
    areas = None
    if by_area:
        areas = datasets.decode(dataset, data_dir, size=256, **masks).lesion_areas
    made = splits.make_folds(
        ids,
        folds=folds,
        seed=seed,
        areas=areas,
        groups=read_groups(groups, ids) if groups else None,
        dataset=dataset,
    )
    for split in made:
        path = out_dir / f"{split.name}.json"
        split.save(path)
        sizes = ", ".join(f"{part} {len(ids)}" for part, ids in split.parts.items())
        click.echo(f"{path}: {sizes}, hash {split.hash}")


@data.command("draw")
@click.option("--out", "out_dir", type=FOLDER, required=True, help="Folder to draw into.")
@click.option("--count", default=50, show_default=True, help="Number of pictures.")
@click.option("--seed", default=0, show_default=True)
@click.option("--size", default=256, show_default=True, help="Height and width in pixels.")
def data_draw(out_dir: Path, count: int, seed: int, size: int) -> None:
    """Draw dermoscopy-like pictures with exact masks, to try everything without data."""
    from ulvm import synthetic

    synthetic.write_dataset(out_dir, count, seed=seed, size_hw=(size, size))
    click.echo(f"{count} drawn pictures with masks in {out_dir}")
