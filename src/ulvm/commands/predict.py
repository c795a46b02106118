"""``ulvm predict`` and ``demo``."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from ulvm.commands.shared import FOLDER, NOTICE, engine_option, show_progress
from ulvm.spec import EngineName


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    help="Name, run folder, .safetensors or .onnx file; else the bundled one.",
)
@engine_option
@click.option("--out", "out_dir", type=FOLDER, help="Output folder; else ./ulvm-output.")
@click.option("--overlay", is_flag=True, help="Write the picture with the outline as well.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a picture.")
@click.option("--threshold", type=float, help="Probability from which a pixel is lesion, 0..1.")
@click.option("--raw", is_flag=True, help="Keep specks and holes in the mask.")
def predict(
    paths: tuple[str, ...],
    model: str | None,
    engine: EngineName | None,
    out_dir: Path | None,
    overlay: bool,
    as_json: bool,
    threshold: float | None,
    raw: bool,
) -> None:
    """Segment pictures: files, folders, patterns, or - for standard input.

    For each picture a mask PNG of its size is written and a line printed. A file that cannot
    be read is reported and skipped; the exit code is then 1.
    """
    from ulvm.predict import find_images

    sources = find_images(paths)
    with ThreadPoolExecutor(1) as opening:
        segmenter = opening.submit(_open, model, engine)
        _predict(segmenter, sources, out_dir, overlay, as_json, threshold, raw)


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
        _predict(load(engine=engine), sources, out_dir, overlay=True, as_json=False, threshold=None)


def _open(model: str | None, engine: EngineName | None) -> Any:
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
    raw: bool = False,
) -> None:
    from ulvm.predict import DEFAULT_OUT_DIR, predict_files

    failed = doubtful = 0
    predictions = predict_files(
        segmenter, sources, out_dir=out_dir, overlay=overlay, threshold=threshold, raw=raw
    )
    with show_progress("pictures") as advance:
        for number, prediction in enumerate(predictions, start=1):
            if as_json:
                click.echo(json.dumps(prediction.to_dict()))
            elif prediction.error is None:
                click.echo(_describe(prediction))
            if prediction.error is not None:
                failed += 1
                click.echo(f"Error: {prediction.error}", err=True)
            doubtful += bool(prediction.summary.get("warnings"))
            advance(number, len(sources))
    if not as_json:
        done = len(sources) - failed
        click.echo(f"{done} of {len(sources)} pictures done, in {out_dir or DEFAULT_OUT_DIR}")
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
        found = (
            f"lesion {100 * summary['area_fraction']:.1f} % of the frame, "
            f"box x {left}–{right} y {top}–{bottom}, "
            f"mean probability inside {summary['mean_probability_inside']:.2f}"
        )
    doubts = caption(summary)
    written = f" and {prediction.overlay_path.name}" if prediction.overlay_path else ""
    return (
        f"{prediction.source}: {found}, {doubts and doubts + ', '}{summary['latency_ms']:.0f} ms"
        f" → {prediction.mask_path}{written}"
    )
