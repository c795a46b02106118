"""``ulvm export``."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import click

from ulvm.errors import InputError
from ulvm.models import find_weights

# Targets that are a folder, and the module of each.
FOLDERS = {"monai": "ulvm.use.monai_bundle", "bioimageio": "ulvm.use.bioimageio"}


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option(
    "--target",
    type=click.Choice(["c", "executorch", "litert", *FOLDERS]),
    help="C, a phone's runtime, or a folder for another tool; else ONNX.",
)
def export(run: str, out: Path, target: str | None) -> None:
    """Write the weights of RUN as ONNX, checked against torch, with NAME.onnx.json beside it.

    RUN is a run folder, a .safetensors file or the name of a model, such as bundled.

    With --target c as one C file, NAME.c, with NAME.h and a test beside it: for any device, and
    torch is not needed.

    With another --target, for a runtime on phones; each needs the extra of its name. OUT ends in
    .pte (executorch) or .tflite (litert).

    With --target monai or bioimageio OUT is a folder: a MONAI bundle, a model for bioimage.io.
    """
    if out.is_file() and out.samefile(find_weights(run)):
        raise InputError(f"{out} is the model itself", "", "name another file")
    if target in FOLDERS:
        _export_folder(run, out, target)
        return
    if out.is_dir():
        raise InputError(f"{out} is a folder", "OUT is a file here", "name a file in it")
    if target == "c":
        _export_c(run, out)
        return
    from ulvm.nn.export import OPSET, side_file
    from ulvm.nn.export import export as export_onnx
    from ulvm.nn.targets import export_for

    side = export_for(target, run, out) if target else export_onnx(run, out)
    click.echo(
        f"{out}: {side['bytes'] / 1000:.0f} kB, {target or f'opset {OPSET}'}, differs from torch "
        f"by {side['largest_difference_from_torch']:.1e} at most; {side_file(out)}"
    )


def _export_c(run: str, out: Path) -> None:
    """Compared with torch where there is torch, else with the engine of this installation."""
    from ulvm.engine.export import export as export_c

    reference, name = None, "ulvm's engine"
    if importlib.util.find_spec("torch") is not None:
        from ulvm.nn.checkpoint import load_probability

        (reference, _), name = load_probability(run, double=True), "torch"
    done = export_c(run, out, reference)
    click.echo(
        f"{out}: with {', '.join(done['files'][1:])} {done['bytes'] / 1000:.0f} kB, differs from "
        f"{name} by {done['largest_difference']:.1e} at most"
    )
    click.echo(done["said"])


def _export_folder(run: str, out: Path, target: str) -> None:
    if out.is_file():
        raise InputError(f"{out} is a file", f"--target {target} writes a folder", "name another")
    done = importlib.import_module(FOLDERS[target]).export(run, out)
    click.echo(
        f"{out}: {done['bytes'] / 1000:.0f} kB, differs from torch by "
        f"{done['largest_difference_from_torch']:.1e} at most"
    )
