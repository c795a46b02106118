"""``ulvm reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ulvm.commands.shared import FOLDER, NOTICE, set_option


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@click.option(
    "--data",
    "data_dir",
    type=FOLDER,
    required=True,
    help="Folder that holds isic2017, isic2018 and ph2, each as downloaded.",
)
@click.option(
    "--results",
    "results_dir",
    type=FOLDER,
    default=Path("results/runs"),
    show_default=True,
    help="Result files; what has one here is not run again.",
)
@click.option(
    "--runs",
    "runs_dir",
    type=FOLDER,
    default=Path("runs/reproduce"),
    show_default=True,
    help="Weights and progress; what has some here goes on from there.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--side-by-side", default=1, show_default=True, help="Runs at the same time.")
@click.option("--only", multiple=True, help="Runs whose name holds this, as sorted/ or paper-42.")
@set_option
def reproduce(
    tables: tuple[str, ...],
    data_dir: Path,
    results_dir: Path,
    runs_dir: Path,
    **options: Any,
) -> None:
    """Train and score the runs of each TABLE that have no result yet, then print the tables.

    A stopped run is resumed. TABLE is main, branches, bridges, stages, mamba, widths, mixers,
    peers, plug or leaks.
    """
    from ulvm.reproduce.report import render
    from ulvm.reproduce.runs import reproduce as run_tables

    for said, done, count in run_tables(tables, data_dir, results_dir, runs_dir, **options):
        click.echo(f"{done} of {count}: {said}")
    for table in tables:
        click.echo(render(table, results_dir))
    click.echo(NOTICE)
