"""The command ``ulvm``: translates words into calls and results into lines; decides nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import click

from ulvm.errors import InputError, PictureWarning
from ulvm.spec import DatasetName, EngineName
from ulvm.version import __version__

NOTICE = "Not a medical device: for research and education, not for diagnosis."
BUNDLED = "bundled"

_DATASETS = click.Choice(get_args(DatasetName))
_FOLDER = click.Path(path_type=Path, file_okay=False)
_GROUPS = click.Path(path_type=Path, exists=True, dir_okay=False)


class _Group(click.Group):
    """Shows the caller's mistakes in sentences instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except InputError as problem:
            raise click.ClickException(str(problem)) from None
        except ModuleNotFoundError as problem:
            raise click.ClickException(
                f"This command needs the package {problem.name}, which is not installed. "
                "Run pip install 'ultralight-vm-unet[train]'."
            ) from None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """What the caller should know, as a sentence; what is for programmers, as ever."""
    if issubclass(category, PictureWarning):
        click.echo(f"Note: {message}.", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--data", "data_dir", type=_FOLDER, required=True, help="Folder of the data as downloaded."
    )(command)
    return click.option("--dataset", type=_DATASETS, required=True, help="Which data set it is.")(
        command
    )


_threshold_option = click.option(
    "--threshold-masks", is_flag=True, help="Accept grey masks: lesion from half their range on."
)
_engine_option = click.option(
    "--engine",
    type=click.Choice(get_args(EngineName)),
    help="c, ulvm's own, or onnx: ONNX Runtime, to compare; else what fits the model.",
)
_set_option = click.option(
    "--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Change a field of the run."
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ulvm")
def main() -> None:
    """Outline skin lesions with UltraLight VM-UNet.

    Not a medical device: for research and education, not for diagnosis.
    """


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Run folder, .safetensors or .onnx file; else the bundled one.",
)
@_engine_option
@click.option("--out", "out_dir", type=_FOLDER, help="Output folder; else ./ulvm-output.")
@click.option("--overlay", is_flag=True, help="Write the picture with the outline as well.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a picture.")
@click.option("--threshold", type=float, help="Probability from which a pixel is lesion, 0..1.")
def predict(
    paths: tuple[str, ...],
    model: Path | None,
    engine: EngineName | None,
    out_dir: Path | None,
    overlay: bool,
    as_json: bool,
    threshold: float | None,
) -> None:
    """Segment pictures: files, folders, patterns, or - for standard input.

    For each picture a mask PNG of its size is written and a line printed. A file that cannot
    be read is reported and skipped; the exit code is then 1.
    """
    from ulvm.predict import find_images

    sources = find_images(paths)
    with ThreadPoolExecutor(1) as opening:
        segmenter = opening.submit(_open, model, engine)
        _predict(segmenter, sources, out_dir, overlay, as_json, threshold)


@main.command()
@click.option("--out", "out_dir", type=_FOLDER, default=Path("demo-output"), show_default=True)
@_engine_option
def demo(out_dir: Path, engine: EngineName | None) -> None:
    """Segment the drawn example pictures that come with ulvm."""
    import importlib.resources

    from ulvm.predict import find_images
    from ulvm.segmenter import load

    with importlib.resources.as_file(importlib.resources.files("ulvm") / "examples") as examples:
        sources = find_images([str(examples / "*.*")])
        _predict(load(engine=engine), sources, out_dir, overlay=True, as_json=False, threshold=None)


@main.command()
@click.option("--port", default=8765, show_default=True, help="Of this machine; 0 takes any.")
@click.option("--open/--no-open", "open_browser", default=True, help="Show it in the browser.")
def serve(port: int, open_browser: bool) -> None:
    """Open the page that outlines pictures and the camera's video in the browser.

    It is served to this machine only, and pictures do not leave the browser.
    """
    from ulvm.serve import serve as run_server

    run_server(port, open_browser=open_browser)


def _open(model: Path | None, engine: EngineName | None) -> Any:
    """A model; its imports too take place in the thread that opens it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads, for nothing
    from ulvm.segmenter import load

    return load(model, engine=engine)


def _predict(
    segmenter: Any,
    sources: Any,
    out_dir: Path | None,
    overlay: bool,
    as_json: bool,
    threshold: float | None,
) -> None:
    from ulvm.predict import DEFAULT_OUT_DIR, predict_files

    failed = 0
    predictions = predict_files(
        segmenter, sources, out_dir=out_dir, overlay=overlay, threshold=threshold
    )
    with _progress("pictures") as advance:
        for number, prediction in enumerate(predictions, start=1):
            if as_json:
                click.echo(json.dumps(prediction.to_dict()))
            elif prediction.error is None:
                click.echo(_describe(prediction))
            if prediction.error is not None:
                failed += 1
                click.echo(f"Error: {prediction.error}", err=True)
            advance(number, len(sources))
    if not as_json:
        done = len(sources) - failed
        click.echo(f"{done} of {len(sources)} pictures done, in {out_dir or DEFAULT_OUT_DIR}")
        click.echo(NOTICE)
    if failed:
        sys.exit(1)


def _describe(prediction: Any) -> str:
    summary = prediction.summary
    if summary["bounding_box_xyxy"] is None:
        found = "no lesion found"
    else:
        left, top, right, bottom = summary["bounding_box_xyxy"]
        found = (
            f"lesion {100 * summary['area_fraction']:.1f} % of the frame, "
            f"box x {left}–{right} y {top}–{bottom}, "
            f"mean probability inside {summary['mean_probability_inside']:.2f}"
        )
    written = f" and {prediction.overlay_path.name}" if prediction.overlay_path else ""
    return (
        f"{prediction.source}: {found}, {summary['latency_ms']:.0f} ms"
        f" → {prediction.mask_path}{written}"
    )


@main.group()
def data() -> None:
    """Check and decode data sets, make splits, draw pictures."""


@data.command("check")
@_data_options
@_threshold_option
@click.option("--resize-masks", is_flag=True, help="Accept masks of another size than pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def data_check(
    dataset: str, data_dir: Path, threshold_masks: bool, resize_masks: bool, as_json: bool
) -> None:
    """Read every file and report what is there, what is wrong and what repeats."""
    from ulvm import datasets

    with _progress("checked") as progress:
        report = datasets.check(
            dataset,
            data_dir,
            allow_mask_resize=resize_masks,
            threshold_masks=threshold_masks,
            progress=progress,
        )
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
    if report.problems:
        sys.exit(1)


@data.command("prepare")
@_data_options
@_threshold_option
@click.option("--size", default=256, show_default=True, help="Height and width in pixels.")
@click.option("--resize-masks", is_flag=True, help="Accept masks of another size than pictures.")
def data_prepare(
    dataset: str, data_dir: Path, threshold_masks: bool, size: int, resize_masks: bool
) -> None:
    """Decode a data set once, into a cache that training and evaluation map into memory."""
    from ulvm import datasets

    with _progress("decoded") as progress:
        decoded = datasets.decode(
            dataset,
            data_dir,
            size=size,
            allow_mask_resize=resize_masks,
            threshold_masks=threshold_masks,
            progress=progress,
        )
    click.echo(decoded.describe())


@data.command("split")
@_data_options
@click.option("--folds", default=5, show_default=True, help="Number of splits.")
@click.option("--seed", default=42, show_default=True, help="Seed of the shuffling.")
@click.option("--by-area", is_flag=True, help="Give each fold small and large lesions alike.")
@click.option(
    "--groups",
    type=_GROUPS,
    help="CSV file 'id,group': a group, such as a patient, is never divided.",
)
@click.option("--out", "out_dir", type=_FOLDER, required=True, help="Folder for the split files.")
def data_split(
    dataset: str,
    data_dir: Path,
    folds: int,
    seed: int,
    by_area: bool,
    groups: Path | None,
    out_dir: Path,
) -> None:
    """Write split files of one's own, for cross-validation."""
    from ulvm import datasets, splits
    from ulvm.groups import read_groups

    ids = [pair.id for pair in datasets.find_pairs(dataset, data_dir)]
    made = splits.make_folds(
        ids,
        folds=folds,
        seed=seed,
        areas=datasets.decode(dataset, data_dir, size=256).lesion_areas if by_area else None,
        groups=read_groups(groups, ids) if groups else None,
        dataset=dataset,
    )
    for split in made:
        path = out_dir / f"{split.name}.json"
        split.save(path)
        sizes = ", ".join(f"{part} {len(ids)}" for part, ids in split.parts.items())
        click.echo(f"{path}: {sizes}, hash {split.hash}")


@data.command("draw")
@click.option("--out", "out_dir", type=_FOLDER, required=True, help="Folder to draw into.")
@click.option("--count", default=50, show_default=True, help="Number of pictures.")
@click.option("--seed", default=0, show_default=True)
@click.option("--size", default=256, show_default=True, help="Height and width in pixels.")
@click.option(
    "--layout",
    type=_DATASETS,
    default="folder",
    show_default=True,
)
def data_draw(out_dir: Path, count: int, seed: int, size: int, layout: str) -> None:
    """Draw dermoscopy-like pictures with exact masks, to try everything without data."""
    from ulvm import synthetic

    synthetic.write_dataset(out_dir, count, seed=seed, size_hw=(size, size), layout=layout)
    click.echo(f"{count} drawn pictures with masks in {out_dir}")


@main.command()
@click.argument("preset")
@click.option(
    "--data",
    "folders",
    multiple=True,
    required=True,
    metavar="[NAME=]DIR",
    help="Folder of the data as downloaded; NAME=DIR for each of several data sets.",
)
@click.option("--dataset", type=_DATASETS, help="Which data set it is, if --data has no NAME.")
@click.option(
    "--split",
    "split_names",
    multiple=True,
    metavar="[NAME=]SPLIT",
    help="Split name or file; else the preset's. NAME=SPLIT for one of several data sets.",
)
@_threshold_option
@click.option(
    "--teacher",
    "teacher_dir",
    type=_FOLDER,
    help="Folder of a teacher's masks, for a preset with train.teacher_share.",
)
@click.option("--out", "out_dir", type=_FOLDER, required=True, help="The run's folder.")
@_set_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--resume", is_flag=True, help="Continue the run in --out after its last checkpoint.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files as well.")
def train(
    preset: str,
    folders: tuple[str, ...],
    dataset: str | None,
    split_names: tuple[str, ...],
    threshold_masks: bool,
    teacher_dir: Path | None,
    out_dir: Path,
    assignments: tuple[str, ...],
    device: str,
    resume: bool,
    tensorboard: bool,
) -> None:
    """Train a preset, such as paper; `ulvm presets` lists them.

    On several GPUs: torchrun --nproc-per-node=N -m ulvm train ...
    """
    from ulvm.nn.distributed import launched
    from ulvm.nn.train import train as run_training
    from ulvm.presets import find_preset

    run = find_preset(preset).run
    where = _by_name(folders, dataset, "--data")
    chosen = run.data.choose(list(where), _by_name(split_names, next(iter(where)), "--split"))
    run = dataclasses.replace(run, data=chosen).override(assignments)
    try:
        weights = run_training(
            run,
            where,
            out_dir,
            teacher_dir=teacher_dir,
            threshold_masks=threshold_masks,
            device=device,
            resume=resume,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        again = " ".join(["ulvm", *(word for word in sys.argv[1:] if word != "--resume")])
        raise click.ClickException(
            f"Stopped. {out_dir} holds the run as of its last checkpoint, which is written after "
            f"the first epoch and then every few seconds. Continue with: {again} --resume"
        ) from None
    if launched().rank > 0:  # rank 0 says it
        return
    click.echo(f"best weights: {weights}")
    for name, folder in where.items():
        click.echo(f"next: ulvm eval {out_dir} --dataset {name} --data {folder} --part test")


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
    return {first: last for first, _, last in named}


@main.command("eval")
@click.argument("model")
@_data_options
@_threshold_option
@click.option(
    "--split", "split_name", help="Split name or file, or all; else the model's own, or all."
)
@click.option("--part", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option("--threshold", type=float, help="Probability from which a pixel is lesion, 0..1.")
@click.option("--exclude-seen", is_flag=True, help="Leave out pictures the model was made with.")
@click.option(
    "--device", default="cpu", show_default=True, help="Other than cpu runs weights in torch."
)
@_engine_option
@click.option("--by", help="Score by size,contrast,tone or a column of the groups' file too.")
@click.option("--groups", type=_GROUPS, help="CSV file 'id,…'; else groups.csv beside the data.")
@click.option("--isic", is_flag=True, help="Also score full-size masks as the ISIC challenge does.")
@click.option("--out", "out_dir", type=_FOLDER, required=True, help="Folder for the results.")
def evaluate(
    model: str,
    dataset: str,
    data_dir: Path,
    threshold_masks: bool,
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
) -> None:
    """Score MODEL: a run folder, a .safetensors or .onnx file, or the word bundled."""
    from ulvm import datasets, evaluate, splits
    from ulvm.datasets.read import read_masks
    from ulvm.groups import find_table, read_table
    from ulvm.provenance import choose_unseen

    probability_of, run = _load_model(model, device, engine)
    own = {source.dataset: source.split for source in run.data.sources}
    pairs = datasets.find_pairs(dataset, data_dir)
    split = splits.choose_split(dataset, split_name or own.get(dataset), run.data.split, pairs)
    committed = splits.available_splits(dataset)
    exclude_seen |= split.name == splits.EVERYTHING and split.name not in committed
    ids = choose_unseen(split.ids(part), run, pairs, split, part=part, drop=exclude_seen)
    decoded = datasets.decode(
        dataset, data_dir, size=run.data.image_size, threshold_masks=threshold_masks
    )
    pair_of = {pair.id: pair for pair in pairs}

    def full_truth(id_: str) -> Any:
        return read_masks(pair_of[id_], threshold_masks) > 0

    with _progress("scored") as progress:
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
            progress=progress,
        )
    click.echo(evaluation.table())
    for table in evaluation.strata:
        click.echo(f"\n{table.markdown()}\n")
    for path in evaluation.save(out_dir):
        click.echo(f"→ {path}")
    click.echo(NOTICE)


def _load_model(model: str, device: str, engine: EngineName | None) -> Any:
    """The function and the run of a model: on a CPU the engine's, else torch's."""
    from ulvm.engine import UNSUPPORTED, EngineError
    from ulvm.segmenter import load

    if device == "cpu" or model == BUNDLED or model.endswith(".onnx"):
        try:
            segmenter = load(None if model == BUNDLED else model, engine=engine)
        except EngineError as error:
            if engine is not None or error.code != UNSUPPORTED:
                raise
        else:
            return segmenter.probability, segmenter.spec
    from ulvm.nn.checkpoint import load_probability

    return load_probability(model, device)


@main.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@click.option(
    "--data",
    "data_dir",
    type=_FOLDER,
    required=True,
    help="Folder that holds isic2017, isic2018 and ph2, each as downloaded.",
)
@click.option(
    "--results",
    "results_dir",
    type=_FOLDER,
    default=Path("results/runs"),
    show_default=True,
    help="Result files; what has one here is not run again.",
)
@click.option(
    "--runs",
    "runs_dir",
    type=_FOLDER,
    default=Path("runs/reproduce"),
    show_default=True,
    help="Weights and progress; what has some here goes on from there.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--side-by-side", default=1, show_default=True, help="Runs at the same time.")
@click.option("--only", multiple=True, help="Runs whose name holds this, as sorted/ or paper-42.")
@_set_option
def reproduce(
    tables: tuple[str, ...],
    data_dir: Path,
    results_dir: Path,
    runs_dir: Path,
    device: str,
    side_by_side: int,
    only: tuple[str, ...],
    assignments: tuple[str, ...],
) -> None:
    """Train and score the runs of each TABLE that have no result yet, then print the tables.

    A stopped run is resumed. TABLE is main, branches, bridges, stages, mamba, widths, mixers,
    peers, plug or leaks.
    """
    from ulvm.reproduce.report import render
    from ulvm.reproduce.runs import reproduce as run_tables

    for said, done, count in run_tables(
        tables,
        data_dir,
        results_dir,
        runs_dir,
        device=device,
        side_by_side=side_by_side,
        only=only,
        assignments=assignments,
    ):
        click.echo(f"{done} of {count}: {said}")
    for table in tables:
        click.echo(render(table, results_dir))
    click.echo(NOTICE)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option(
    "--target",
    type=click.Choice(["c", "executorch", "litert", "ncnn", "openvino"]),
    help="C, or a phone's runtime; else ONNX.",
)
def export(run: Path, out: Path, target: str | None) -> None:
    """Write the weights of RUN as ONNX, checked against torch, with model.json beside it.

    With --target c as one C file, NAME.c, with NAME.h and a test beside it: for any device; RUN
    may also be the word bundled, and torch is not needed.

    With another --target, for a runtime on phones; each needs the extra of its name. OUT ends in
    .pte (executorch), .tflite (litert), .ncnn.param (ncnn) or .xml (openvino); the last two write a
    .bin beside it.
    """
    if target == "c":
        _export_c(None if run == Path(BUNDLED) else run, out)
        return
    from ulvm.nn.export import OPSET, SIDE_FILE
    from ulvm.nn.export import export as export_onnx
    from ulvm.nn.targets import export_for

    side = export_for(target, run, out) if target else export_onnx(run, out)
    click.echo(
        f"{out}: {side['bytes'] / 1000:.0f} kB, {target or f'opset {OPSET}'}, differs from torch "
        f"by {side['largest_difference_from_torch']:.1e} at most; {out.parent / SIDE_FILE}"
    )


def _export_c(run: Path | None, out: Path) -> None:
    """Compared with torch where there is torch, else with the engine of this installation."""
    from ulvm.engine.export import export as export_c
    from ulvm.engine.export import find_weights

    reference, name = None, "ulvm's engine"
    if importlib.util.find_spec("torch") is not None:
        from ulvm.nn.checkpoint import load_probability

        (reference, _), name = load_probability(find_weights(run), double=True), "torch"
    done = export_c(run, out, reference)
    click.echo(
        f"{out}: with {', '.join(done['files'][1:])} {done['bytes'] / 1000:.0f} kB, differs from "
        f"{name} by {done['largest_difference']:.1e} at most"
    )
    click.echo(done["said"])


@main.command()
@click.argument("preset", default="paper")
@_set_option
@click.option("--size", default=256, show_default=True, help="Height and width in pixels.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def inspect(preset: str, assignments: tuple[str, ...], size: int, as_json: bool) -> None:
    """Show shapes, parameters, multiply-accumulates and memory of each stage."""
    from ulvm.nn.complexity import inspect_model
    from ulvm.presets import find_preset

    run = find_preset(preset).run.override(assignments)
    complexity = inspect_model(run.model, (size, size))
    click.echo(json.dumps(complexity.to_dict(), indent=2) if as_json else complexity.table())


@main.command()
def presets() -> None:
    """List the runs that train and inspect know."""
    from ulvm.presets import PRESETS
    from ulvm.reproduce.experiments import published_scores

    click.echo(f"{'preset':21}{'parameters':>11}{'published DSC':>15}  what")
    for name, preset in PRESETS.items():
        scores = published_scores(name, "isic2017", "isic2017")
        published = f"{scores['dsc']:.4f}" if scores else ""
        click.echo(f"{name:21}{preset.parameters:>11,}{published:>15}  {preset.note}")


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
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
