"""``ulvm predict`` and ``demo``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ulvm.commands.shared import FOLDER, NOTICE, engine_option, show_progress
from ulvm.errors import InputError, printable
from ulvm.spec import EngineName

if TYPE_CHECKING:
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
    overlay: bool,
    dicom_seg: bool,
    as_json: bool,
    threshold: float | None,
    raw: bool,
    coco_path: Path | None,
    coco_form: CocoForm | None,
    on_ray: bool,
) -> None:
    """Segment pictures: files, folders, patterns, or - for standard input.

    For each picture a mask PNG of its size is written and a line printed. A file that cannot
    be read is reported and skipped; the exit code is then 1.
    """
    from ulvm.picture import SUFFIXES
    from ulvm.predict import find_images

    if coco_form and not coco_path:
        raise click.UsageError("--coco-form needs --coco FILE.")
    if on_ray:
        if overlay or coco_path or dicom_seg or raw:
            raise click.UsageError(
                "--ray writes masks only: leave out --overlay, --coco, --dicom-seg and --raw."
            )
        _predict_on_ray(paths, model, engine, out, as_json, threshold)
        return
    out_dir = None if out is None else Path(out)
    if out_dir and out_dir.suffix.lower() in SUFFIXES and not out_dir.exists():
        raise InputError(
            f"--out {out_dir} is the name of a picture", "it must be a folder", "choose a folder"
        )
    sources = find_images(paths)
    _set_environment()
    with ThreadPoolExecutor(1) as opening:
        segmenter = opening.submit(_open, model, engine)
        coco = _Coco(coco_path, coco_form or "rle", segmenter) if coco_path else None
        options = {"overlay": overlay, "threshold": threshold, "dicom_seg": dicom_seg, "raw": raw}
        _predict(segmenter, sources, out_dir, as_json, coco, **options)


def _predict_on_ray(
    paths: tuple[str, ...],
    model: str | None,
    engine: EngineName | None,
    out: str | None,
    as_json: bool,
    threshold: float | None,
) -> None:
    from ulvm.predict import DEFAULT_OUT_DIR
    from ulvm.use.ray_data import find_addresses, predict_on_ray

    out = out or DEFAULT_OUT_DIR
    addresses = find_addresses(paths)
    rows = predict_on_ray(
        addresses,
        out,
        model=model,
        engine=engine,
        threshold=threshold,
    )
    new = failed = 0
    with show_progress("pictures") as progress:
        for new, row in enumerate(rows, start=1):
            if as_json:
                progress.say(json.dumps(row))
            if row["error"] is not None:
                failed += 1
                progress.say(f"Error: {row['error']}", err=True)
            progress(new, len(addresses))
    if not as_json:
        click.echo(
            f"{len(addresses) - failed} of {len(addresses)} pictures done, {new} now, in {out}"
        )
        click.echo(NOTICE)
    if failed:
        sys.exit(1)


class _Coco:
    """Collects the annotations of each picture for one file."""

    def __init__(self, path: Path, form: CocoForm, segmenter: Any) -> None:
        from ulvm.use.coco import require_replaceable

        require_replaceable(path)
        self.path, self.form, self.segmenter = path, form, segmenter
        self.pictures: list[Any] = []

    def describe(self, segmentation: Any) -> Any:
        from ulvm.use.coco import describe

        return describe(segmentation, self.form)

    def add(self, source: Any, prediction: Any) -> None:
        if prediction.error is None:
            name = source.output.with_name(Path(source.name).name)
            self.pictures.append((name, prediction.size_hw, prediction.extra))

    def write(self) -> None:
        from ulvm.use.coco import category_names, write_coco

        classes = self.segmenter.result().spec.model.classes
        write_coco(self.path, self.pictures, category_names(classes))


@click.command()
@click.option("--out", "out_dir", type=FOLDER, default=Path("demo-output"), show_default=True)
@engine_option
def demo(out_dir: Path, engine: EngineName | None) -> None:
    """Segment the drawn example pictures that come with ulvm."""
    import importlib.resources

    from ulvm.predict import find_images
    from ulvm.segmenter import load

    with importlib.resources.as_file(importlib.resources.files("ulvm") / "examples") as examples:
        sources = find_images([str(examples / "*.*")])
        _predict(load(engine=engine), sources, out_dir, as_json=False, overlay=True)
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


def _open(model: str | None, engine: EngineName | None) -> Any:
    """A model; its imports too take place in the thread that opens it."""
    from ulvm.segmenter import load

    return load(model, engine=engine)


def _predict(
    segmenter: Any,
    sources: Any,
    out_dir: Path | None,
    as_json: bool,
    coco: _Coco | None = None,
    **options: Any,
) -> None:
    """Segment, write, and say what came of it; the options are those of ``predict_files``."""
    from ulvm.predict import DEFAULT_OUT_DIR, predict_files

    failed = doubtful = 0
    predictions = predict_files(
        segmenter, sources, out_dir=out_dir, extra=coco.describe if coco else None, **options
    )
    with show_progress("pictures") as progress:
        for number, prediction in enumerate(predictions, start=1):
            if coco:
                coco.add(sources[number - 1], prediction)
            if as_json:
                progress.say(json.dumps(prediction.to_dict()))
            elif prediction.error is None:
                progress.say(_describe(prediction))
            if prediction.error is not None:
                failed += 1
                progress.say(f"Error: {prediction.error}", err=True)
            doubtful += bool(prediction.summary.get("warnings"))
            progress(number, len(sources))
    if coco:
        coco.write()
    if not as_json:
        done = len(sources) - failed
        place = printable(out_dir or DEFAULT_OUT_DIR)
        click.echo(f"{done} of {len(sources)} pictures done, in {place}")
        if doubtful:
            click.echo(f"{doubtful} of them unsure: look at these masks before you use them")
        click.echo(NOTICE)
    if failed:
        sys.exit(1)


def _describe(prediction: Any) -> str:
    from ulvm.predict import caption

    summary = prediction.summary
    if summary["bounding_box_xyxy"] is None:
        found = "no lesion found"
    else:
        left, top, right, bottom = summary["bounding_box_xyxy"]
        area = f" = {summary['area_mm2']:.1f} mm²" if summary["area_mm2"] is not None else ""
        found = (
            f"lesion {100 * summary['area_fraction']:.1f} % of the frame{area}, "
            f"box x {left}–{right} y {top}–{bottom}, "
            f"mean probability inside {summary['mean_probability_inside']:.2f}"
        )
    doubts = caption(summary)
    more = [*filter(None, [prediction.overlay_path]), *prediction.dicom_paths]
    written = "".join(f" and {path.name}" for path in more)
    return printable(
        f"{prediction.source}: {found}, {doubts and doubts + ', '}{summary['latency_ms']:.0f} ms"
        f" → {prediction.mask_path}{written}"
    )
