"""What several commands share: options, the progress bar, the notice."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click

from ulvm.spec import DatasetName, EngineName
from ulvm.use import NOTICE as NOTICE

DATASETS = click.Choice(get_args(DatasetName))
FOLDER = click.Path(path_type=Path, file_okay=False)
GROUPS = click.Path(path_type=Path, exists=True, dir_okay=False)


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--data", "data_dir", type=FOLDER, required=True, help="Folder of the data as downloaded."
    )(command)
    return click.option("--dataset", type=DATASETS, required=True, help="Which data set it is.")(
        command
    )


threshold_option = click.option(
    "--threshold-masks", is_flag=True, help="Accept grey masks: lesion from half their range on."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(get_args(EngineName)),
    help="c, ulvm's own, or onnx: ONNX Runtime, to compare; else what fits the model.",
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Change a field of the run."
)


@contextlib.contextmanager
def show_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, and only where someone watches it."""
    shown: list[Any] = []
    position = 0

    def advance(done: int, total: int) -> None:
        nonlocal position
        if not sys.stderr.isatty():
            return
        if not shown:
            shown.append(click.progressbar(length=total, label=label, file=sys.stderr))
            shown[0].__enter__()
        shown[0].update(done - position)
        position = done

    try:
        yield advance
    finally:
        if shown:
            shown[0].__exit__(None, None, None)
