"""``ulvm eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ulvm.commands.shared import (
    FOLDER,
    GROUPS,
    NOTICE,
    Progress,
    data_options,
    engine_option,
    mask_options,
)
from ulvm.errors import InputError
from ulvm.spec import EngineName, require_rgb


@click.command("eval")
@click.argument("model")
@data_options
@mask_options
@click.option(
    "--split", "split_name", help="Split name or file, or all; else the model's own, or all."
)
@click.option("--part", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option("--threshold", type=float, help="Probability from which a pixel is lesion, 0..1.")
@click.option(
    "--exclude-seen", is_flag=True, help="Leave out pictures the model was made with, and copies."
)
@click.option(
    "--device", default="cpu", show_default=True, help="Other than cpu runs weights in torch."
)
@engine_option
@click.option("--by", help="Score by size,contrast,tone or a column of the groups' file too.")
@click.option("--groups", type=GROUPS, help="CSV file 'id,…'; else groups.csv beside the data.")
@click.option("--isic", is_flag=True, help="Also score full-size masks as the ISIC challenge does.")
@click.option("--out", "out_dir", type=FOLDER, required=True, help="Folder for the results.")
def evaluate(
    model: str,
    dataset: str,
    data_dir: Path,
    split_name: str | None,
    part: str,
    threshold: float | None,
    exclude_seen: bool,
    device: str,
    engine: EngineName | None,
    by: str | None,
    groups: Path | None,
    isic: bool,
    out_dir: Path,
    **masks: Any,
) -> None:
    """Score MODEL: a run folder, a .safetensors or .onnx file, or a name such as bundled.

    Masks are scored raw, with specks and holes, as papers score them.
    """
    from ulvm import datasets, evaluate, splits
    from ulvm.datasets.read import mask_rules, read_masks
    from ulvm.groups import find_table, read_table
    from ulvm.provenance import choose_unseen, find_copies, find_own_split, read_seen

    probability_of, run, provenance = _load_model(model, device, engine)
    require_rgb(run.model)
    seen = read_seen(run, provenance)
    decoded = datasets.decode(dataset, data_dir, size=run.data.image_size, **masks)
    names = tuple(provenance.get("classes", decoded.classes))
    if decoded.classes and names != decoded.classes:
        raise InputError(
            f"the classes.csv of {dataset} lists {', '.join(decoded.classes)}, "
            f"the model has {', '.join(names)}",
            "classes are scored by their numbers",
            "list the same ones in the same order",
        )
    own = None if split_name else find_own_split(seen, decoded)
    if own is not None:
        split = own.resolve(decoded.pairs)
    else:
        split = splits.choose_split(dataset, split_name, run.data.split, decoded.pairs)
    committed = splits.available_splits(dataset)
    exclude_seen |= split.name == splits.EVERYTHING and split.name not in committed
    ids = choose_unseen(split.ids(part), seen, decoded, split, part=part, drop=exclude_seen)
    rules = mask_rules(dataset, data_dir, **masks)
    pair_of = {pair.id: pair for pair in decoded.pairs}

    def full_truth(id_: str) -> Any:
        return read_masks(pair_of[id_], rules) > 0

    with Progress("scored") as progress:
        evaluation = evaluate.evaluate(
            probability_of,
            decoded,
            ids,
            threshold=run.threshold if threshold is None else threshold,
            full_truth=full_truth if isic else None,
            model=model,
            split=split.name,
            split_hash=split.hash,
            part=part + (" (unseen)" if exclude_seen else ""),
            by=[name.strip() for name in by.split(",")] if by else (),
            columns=read_table(groups) if groups else find_table(data_dir, dataset),
            copies=find_copies(ids, seen, decoded) if part == "test" and not exclude_seen else (),
            progress=progress,
        )
    click.echo(evaluation.table())
    for table in evaluation.strata:
        click.echo(f"\n{table.markdown()}\n")
    for path in evaluation.save(out_dir):
        click.echo(f"→ {path}")
    click.echo(NOTICE)


def _load_model(model: str, device: str, engine: EngineName | None) -> Any:
    """The function, run and provenance of a model: on a CPU the engine's, else torch's."""
    from ulvm.engine import UNSUPPORTED, EngineError
    from ulvm.segmenter import load

    if device == "cpu" or model.endswith(".onnx"):
        try:
            segmenter = load(model, engine=engine)
        except EngineError as error:
            if engine is not None or error.code != UNSUPPORTED:
                raise
        else:
            return segmenter.probability, segmenter.spec, segmenter.provenance
    from ulvm.nn.checkpoint import load_probability, load_weights
    from ulvm.nn.distributed import choose_device

    device = str(choose_device(device))
    return *load_probability(model, device), load_weights(model)[2]
