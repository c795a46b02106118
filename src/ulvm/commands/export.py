"""``ulvm export``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option(
    "--target",
    type=click.Choice(["c", "executorch", "litert", "ncnn", "openvino"]),
    help="C, or a phone's runtime; else ONNX.",
)
def export(run: str, out: Path, target: str | None) -> None:
    """Write the weights of RUN as ONNX, checked against torch, with model.json beside it.

    RUN is a run folder, a .safetensors file or the name of a model, such as bundled.

    With --target c as one C file, NAME.c, with NAME.h and a test beside it: for any device, and
    torch is not needed.

    With another --target, for a runtime on phones; each needs the extra of its name. OUT ends in
    .pte (executorch), .tflite (litert), .ncnn.param (ncnn) or .xml (openvino); the last two write a
    .bin beside it.
    """
    if target == "c":
        _export_c(run, out)
        return
    from ulvm.nn.export import OPSET, SIDE_FILE
    from ulvm.nn.export import export as export_onnx
    from ulvm.nn.targets import export_for

    side = export_for(target, run, out) if target else export_onnx(run, out)
    click.echo(
        f"{out}: {side['bytes'] / 1000:.0f} kB, {target or f'opset {OPSET}'}, differs from torch "
        f"by {side['largest_difference_from_torch']:.1e} at most; {out.parent / SIDE_FILE}"
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
