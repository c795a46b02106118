"""What several commands share: options, the progress bar, the notice."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click

from ulvm.spec import DatasetName, EngineName
from ulvm.use import NOTICE as NOTICE

Command = Callable[..., None]

DATASETS = click.Choice(get_args(DatasetName))
FOLDER = click.Path(path_type=Path, file_okay=False)
GROUPS = click.Path(path_type=Path, exists=True, dir_okay=False)


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options that go together, as one decorator."""
    return lambda command: functools.reduce(lambda made, add: add(made), options[::-1], command)


data_options = _all(
    click.option("--dataset", type=DATASETS, required=True, help="Which data set it is."),
    click.option(
        "--data", "data_dir", type=FOLDER, required=True, help="Folder of the data as downloaded."
    ),
)
mask_options = _all(  # named as `datasets.decode` names them
    click.option(
        "--threshold-masks",
        is_flag=True,
        help="Accept grey masks: lesion from half their range on.",
    ),
    click.option(
        "--resize-masks",
        "allow_mask_resize",
        is_flag=True,
        help="Accept masks of another size than pictures.",
    ),
)
engine_option = click.option(
    "--engine",
    type=click.Choice(get_args(EngineName)),
    help="c, ulvm's own, or onnx: ONNX Runtime, to compare; else what fits the model.",
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Change a field of the run."
)


class Progress:
    """A bar on standard error, where someone watches it; lines that are printed stay whole.

    Call it with how many are done, of how many. One alone gets no bar.
    """

    _WIDTH = 30

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            click.echo(err=True)

    def __call__(self, done: int, total: int) -> None:
        if total < 2 or not sys.stderr.isatty():
            return
        filled = self._WIDTH * done // total
        bar = f"{self._label} [{'#' * filled:-<{self._WIDTH}}] {done}/{total}"
        if bar != self._bar:
            self._bar = bar
            self._draw()

    def say(self, line: str, *, err: bool = False) -> None:
        """Print a line above the bar."""
        if self._bar:
            click.echo(f"\r{' ' * len(self._bar)}\r", nl=False, err=True)
        click.echo(line, err=err)
        self._draw()

    def _draw(self) -> None:
        if self._bar:
            click.echo(f"\r{self._bar}", nl=False, err=True)
