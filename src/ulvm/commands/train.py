"""``ulvm train``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ulvm.commands.shared import (
    DATASETS,
    FOLDER,
    mask_options,
    set_option,
)
from ulvm.errors import InputError


@click.command()
@click.argument("preset")
@click.option(
    "--data",
    "folders",
    multiple=True,
    required=True,
    metavar="[NAME=]DIR",
    help="Folder of the data as downloaded; NAME=DIR for each of several data sets.",
)
@click.option("--dataset", type=DATASETS, help="Which data set it is, if --data has no NAME.")
@click.option(
    "--split",
    "split_names",
    multiple=True,
    metavar="[NAME=]SPLIT",
    help="Split name or file; else the preset's. NAME=SPLIT for one of several data sets.",
)
@mask_options
@click.option(
    "--teacher",
    "teacher_dir",
    type=FOLDER,
    help="Folder of a teacher's masks, for a preset with train.teacher_share.",
)
@click.option("--from", "parent_name", metavar="MODEL", help="Start from this model's weights.")
@click.option("--out", "out_dir", type=FOLDER, required=True, help="The run's folder.")
@set_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--resume", is_flag=True, help="Continue the run in --out after its last checkpoint.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files as well.")
def train(
    preset: str,
    folders: tuple[str, ...],
    dataset: str | None,
    split_names: tuple[str, ...],
    parent_name: str | None,
    out_dir: Path,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a preset, such as paper; `ulvm presets` lists them.

    With --from, a name such as skin, a weights file or a run folder, training goes on from that
    model's weights by the preset's recipe. A folder that is sorted into train/, val/ and test/
    needs no --split.

    On several GPUs: torchrun --nproc-per-node=N -m ulvm train ...
    """
    with _stopped_in_words(out_dir):
        from ulvm.nn.distributed import launched
        from ulvm.nn.parent import load_parent
        from ulvm.nn.train import train as run_training
        from ulvm.presets import find_preset

        run = find_preset(preset).run
        where = _by_name(folders, dataset, "--data")
        if dataset and dataset not in where:
            raise InputError(
                f"--dataset {dataset} with --data {folders[0]}",
                "",
                f"write --data {dataset}=DIR, or leave out --dataset",
            )
        chosen = run.data.choose(list(where), _by_name(split_names, next(iter(where)), "--split"))
        run = dataclasses.replace(run, data=chosen)
        parent = None if parent_name is None else load_parent(parent_name)
        if parent is None:
            run = run.override(assignments)
        else:
            if launched().rank == 0 and parent.model != run.model:
                click.echo(f"The network is that of {parent_name}, not of the preset {preset}.")
            run = parent.apply(run, assignments)
        weights = run_training(run, where, out_dir, parent=parent, **options)
    if launched().rank > 0:  # rank 0 says it
        return
    stored = json.loads((out_dir / "run.json").read_text())
    best = stored["best"]
    click.echo(
        f"best weights: {weights}, of epoch {best['epoch']}: validation DSC "
        f"{best['validation_dsc_pooled']:.4f} (pooled), loss {best['validation_loss']:.4f}"
    )
    if stored["epochs_done"] < run.train.epochs:
        click.echo(
            f"ended after epoch {stored['epochs_done']} of {run.train.epochs}: the validation "
            f"loss was not lower for {run.train.patience} epochs"
        )
    masks = ["--threshold-masks"] * options["threshold_masks"]
    masks += ["--resize-masks"] * options["allow_mask_resize"]
    for split in stored["splits"]:
        name = split["dataset"]
        if split["sizes"]["test"]:
            words = ["ulvm", "eval", str(out_dir), "--dataset", name, "--data", where[name], *masks]
            click.echo(f"next: {shlex.join([*words, '--out', str(out_dir / f'test-{name}')])}")


@contextlib.contextmanager
def _stopped_in_words(out_dir: Path) -> Iterator[None]:
    """What Ctrl-C leaves, and the command that goes on from there; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        from ulvm.nn.distributed import launched
        from ulvm.nn.run_folder import has_checkpoint

        count = launched().count
        start = [f"torchrun --nproc-per-node={count} -m ulvm" if count > 1 else "ulvm"]
        again = [word for word in sys.argv[1:] if word != "--resume"]
        if has_checkpoint(out_dir):
            told = f"Stopped. {out_dir} holds the run as of its last checkpoint. Continue with: "
            again.append("--resume")
        else:
            told = "Stopped before the first checkpoint. Start again with: "
        if launched().rank == 0:
            click.echo(f"{told}{' '.join([*start, shlex.join(again)])}", err=True)
        raise click.exceptions.Exit(130) from None


def _by_name(values: tuple[str, ...], name: str | None, option: str) -> dict[str, str]:
    """``NAME=VALUE`` words as a table; a single word without a name belongs to ``name``."""
    named = [value.partition("=") for value in values]
    if any(not equals for _, equals, _ in named):
        if name is None or values[1:]:
            raise InputError(
                f"{option} {values[0]} does not say for which data set it is",
                "",
                f"write {option} NAME=… for each, or one alone together with --dataset",
            )
        return {name: values[0]}
    names = [first for first, _, _ in named]
    if twice := [each for each in names if names.count(each) > 1]:
        raise InputError(
            f"{option} names {twice[0]} twice",
            "each data set can be named once",
            "put the pictures of both into one folder and one split",
        )
    return {first: last for first, _, last in named}
