"""``ulvm predict`` and ``demo``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ulvm
from ulvm.commands.shared import FOLDER, NOTICE, Progress, engine_option
from ulvm.errors import InputError, printable
from ulvm.spec import EngineName

if TYPE_CHECKING:
    from ulvm.predict import Source
    from ulvm.use.coco import CocoForm


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    help="Name, run folder, .safetensors or .onnx file; else the bundled one.",
)
@engine_option
@click.option("--out", help="Output folder; else ./ulvm-output.")
@click.option("--overlay", is_flag=True, help="Write the picture with the outline as well.")
@click.option(
    "--dicom-seg",
    is_flag=True,
    help="Of DICOM files: write a DICOM segmentation, and the outline drawn, as well.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a picture.")
@click.option("--threshold", type=float, help="Probability from which a pixel is lesion, 0..1.")
@click.option("--raw", is_flag=True, help="Keep specks and holes in the mask.")
@click.option(
    "--coco",
    "coco_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all outlines into this COCO file as well.",
)
@click.option(
    "--coco-form",
    type=click.Choice(["rle", "polygon"]),
    help="rle, exact and the default, or polygon, to be edited by hand.",
)
@click.option(
    "--ray",
    "on_ray",
    is_flag=True,
    help="Over a Ray cluster, or this machine's cores; goes on where it stopped. PATH may be a "
    "Parquet file of paths or the address of an object store, and so may --out.",
)
def predict(
    paths: tuple[str, ...],
    model: str | None,
    engine: EngineName | None,
    out: str | None,
    as_json: bool,
    coco_path: Path | None,
    coco_form: CocoForm | None,
    on_ray: bool,
    **options: Any,
) -> None:
    """Segment pictures: files, folders, patterns, or - for standard input.

    For each picture a mask PNG of its size is written and a line printed. A file that cannot
    be read is reported and skipped; the exit code is then 1.
    """
    from ulvm.picture import SUFFIXES
    from ulvm.predict import DEFAULT_OUT_DIR, find_images

    if coco_form and not coco_path:
        raise click.UsageError("--coco-form needs --coco FILE.")
    if on_ray:
        if coco_path or any(options[name] for name in ("overlay", "dicom_seg", "raw")):
            raise click.UsageError(
                "--ray writes masks only: leave out --overlay, --coco, --dicom-seg and --raw."
            )
        from ulvm.use.ray_data import find_addresses, predict_on_ray

        out, addresses = out or DEFAULT_OUT_DIR, find_addresses(paths)
        given = {"model": model, "engine": engine, "threshold": options["threshold"]}
        _report(predict_on_ray(addresses, out, **given), len(addresses), out, as_json, on_ray=True)
        return
    out_dir = None if out is None else Path(out)
    if out_dir and out_dir.suffix.lower() in SUFFIXES and not out_dir.exists():
        raise InputError(
            f"--out {out_dir} is the name of a picture", "it must be a folder", "choose a folder"
        )
    if coco_path:
        from ulvm.use.coco import require_replaceable

        require_replaceable(coco_path)
    sources = find_images(paths)
    _set_environment()
    with ThreadPoolExecutor(1) as opening:
        segmenter = opening.submit(lambda: ulvm.load(model, engine=engine))  # and imports it there
        rows = _predict(segmenter, sources, out_dir, coco_path, coco_form or "rle", **options)
        _report(rows, len(sources), out_dir or DEFAULT_OUT_DIR, as_json)


@click.command()
@click.option("--out", "out_dir", type=FOLDER, default=Path("demo-output"), show_default=True)
@engine_option
def demo(out_dir: Path, engine: EngineName | None) -> None:
    """Segment the drawn example pictures that come with ulvm."""
    import importlib.resources

    from ulvm.predict import find_images

    with importlib.resources.as_file(importlib.resources.files("ulvm") / "examples") as examples:
        sources = find_images([str(examples / "*.*")])
        rows = _predict(ulvm.load(engine=engine), sources, out_dir, overlay=True)
        _report(rows, len(sources), out_dir, as_json=False)
    click.echo(f"Next, with a picture of yours: {_own_name()} predict photo.jpg --overlay")


def _own_name() -> str:
    """What to type for ulvm: after `make demo`, or as a module, it isn't on the path."""
    if shutil.which("ulvm"):
        return "ulvm"
    called = Path(sys.argv[0])
    return "python -m ulvm" if called.name == "__main__.py" else shlex.quote(str(called))


def _set_environment() -> None:
    """What numpy and ONNX Runtime's import would set, before there are threads.

    libjpeg, in another thread, asks the C library for variables: one that is set meanwhile may move
    the table that is read, and Python ends in a segmentation fault.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads, for nothing
    for name in ("OPENBLAS_MAIN_FREE", "GOTOBLAS_MAIN_FREE", "ORT_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")


def _predict(
    segmenter: Any,
    sources: Sequence[Source],
    out_dir: Path | None,
    coco_path: Path | None = None,
    coco_form: CocoForm = "rle",
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """What came of each source, as ``Prediction.to_dict`` has it; then the COCO file is written.

    The options are those of ``predict_files``.
    """
    from ulvm.predict import predict_files

    def describe(segmentation: Any) -> Any:
        from ulvm.use.coco import describe

        return describe(segmentation, coco_form)

    options["extra"] = describe if coco_path else None
    names = [source.output.parent / Path(source.name).name for source in sources]
    if len(set(names)) < len(names):  # of several folders
        names = [Path(source.name) for source in sources]
    outlined: list[Any] = []
    predictions = predict_files(segmenter, sources, out_dir=out_dir, **options)
    for name, prediction in zip(names, predictions, strict=True):
        if coco_path and prediction.error is None:
            outlined.append((name, prediction.size_hw, prediction.extra))
        yield prediction.to_dict()
    if coco_path:
        from ulvm.use.coco import category_names, write_coco

        classes = segmenter.result().spec.model.classes
        write_coco(coco_path, outlined, category_names(classes))


def _report(
    rows: Iterator[dict[str, Any]],
    total: int,
    out: Path | str,
    as_json: bool,
    *,
    on_ray: bool = False,
) -> None:
    """Say what came of each picture, of many on Ray only how far it is, and then of all."""
    count = failed = doubtful = 0
    with Progress("pictures") as progress:
        for count, row in enumerate(rows, start=1):
            if as_json:
                progress.say(json.dumps(row))
            elif row["error"] is None and not on_ray:
                progress.say(_describe(row))
            if row["error"] is not None:
                failed += 1
                progress.say(f"Error: {row['error']}", err=True)
            doubtful += bool(row.get("warnings"))
            progress(count, total)
    if not as_json:
        now = f", {count} now" if on_ray else ""
        click.echo(f"{total - failed} of {total} pictures done{now}, in {printable(out)}")
        if doubtful and not on_ray:
            click.echo(f"{doubtful} of them unsure: look at these masks before you use them")
        click.echo(NOTICE)
    if failed:
        sys.exit(1)


def _describe(row: dict[str, Any]) -> str:
    from ulvm.predict import caption

    if row["bounding_box_xyxy"] is None:
        found = "no lesion found"
    else:
        left, top, right, bottom = row["bounding_box_xyxy"]
        area = f" = {row['area_mm2']:.1f} mm²" if row["area_mm2"] is not None else ""
        found = (
            f"lesion {100 * row['area_fraction']:.1f} % of the frame{area}, "
            f"box x {left}–{right} y {top}–{bottom}, "
            f"mean probability inside {row['mean_probability_inside']:.2f}"
        )
    doubts = caption(row)
    more = [*filter(None, [row["overlay_path"]]), *row["dicom_paths"]]
    written = "".join(f" and {Path(path).name}" for path in more)
    return printable(
        f"{row['source']}: {found}, {doubts and doubts + ', '}{row['latency_ms']:.0f} ms"
        f" → {row['mask_path']}{written}"
    )
