"""Weights → one ONNX file that every front end runs, checked against torch before it is written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnxscript import rewriter
from torch import Tensor, nn

from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.export_forms import for_export
from ulvm.nn.model import PictureToProbability
from ulvm.onnx import onnxruntime
from ulvm.provenance import versions
from ulvm.spec import FORMAT, METADATA_KEY, RunSpec
from ulvm.synthetic import probe_images

OPSET = 20  # the first in which GELU is one operator; torch's exporter writes 18 and later
# As for phones: by the processor, torch's own rounding moves a peer's probability by up to 3e-4.
TOLERANCE = 1e-3
SLOW_RULE = "SlicesSplit"  # of the exporter


def export(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a trained network as ONNX, with its spec inside and in ``NAME.onnx.json`` beside it.

    The graph's input is ``image_rgb``, uint8 (batch, size, size, 3); its output
    ``probability``, float32 (batch, classes, size, size). The batch is free.

    Args:
        source: As for ``load_weights``.
        out: The ONNX file.

    Returns:
        The content of that file.

    Raises:
        InputError: ``source`` is no run, or the two runtimes differ by more than
            ``TOLERANCE``; then nothing is written.
    """
    out = Path(out)
    network, run, provenance = load_weights(source)
    module = PictureToProbability(network).eval()
    content = build_onnx(module, run, provenance)
    difference = largest_difference(module, content, run.data.image_size, run.model.in_channels)
    if not difference <= TOLERANCE:
        raise InputError(
            f"ONNX Runtime {onnxruntime.__version__} and torch {torch.__version__} differ by "
            f"{difference:.1e} in probability",
            f"up to {TOLERANCE:.0e} is allowed",
            "nothing was written. Try other versions of torch, onnx or onnxruntime",
        )
    side = {
        "format": FORMAT,
        "file": out.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "opset": OPSET,
        "largest_difference_from_torch": difference,
        "run": run.to_dict(),
        **provenance,
    }
    write_atomically(out, content)
    write_atomically(side_file(out), (json.dumps(side, indent=2) + "\n").encode())
    return side


def side_file(out: Path) -> Path:
    """What says in JSON what is in an exported file, for who can't read its own metadata."""
    return out.with_name(f"{out.name}.json")


def build_onnx(module: PictureToProbability, run: RunSpec, provenance: dict[str, Any]) -> bytes:
    """The ONNX file's content, with the run in its metadata."""
    size = run.data.image_size
    example = torch.randint(0, 256, (2, size, size, run.model.in_channels), dtype=torch.uint8)
    model = trace_onnx(for_export(module), example, "image_rgb", free_batch=True)
    for node in model.graph.node:
        node.doc_string = ""
    del model.graph.value_info[:]
    model.producer_name = "ulvm"
    metadata = {"format": FORMAT, "run": run.to_dict(), "exported_with": versions(), **provenance}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def trace_onnx(
    module: nn.Module, example: Tensor, input_name: str, *, free_batch: bool = False
) -> onnx.ModelProto:
    """A module of one input as an ONNX model whose output is named ``probability``.

    Args:
        module: In evaluation mode.
        example: An input, whose shape is fixed.
        input_name: Of the graph's input and of the module's argument.
        free_batch: Whether the first axis is free.
    """
    free = {input_name: {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad(), _quiet(), _without_slow_rule():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=["probability"],
            dynamic_shapes=free if free_batch else None,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # the exporter's traces: paths of this machine
    return model


def largest_difference(
    module: PictureToProbability, content: bytes, size: int, channels: int
) -> float:
    """Largest difference of probability between torch and ONNX Runtime; nan where one gives nan.

    Args:
        module: What the ONNX content was made from.
        content: An ONNX file.
        size, channels: Of its input.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in probe_images(size, channels):
        with torch.no_grad():
            expected = module(torch.from_numpy(batch)).numpy()
        (found,) = session.run(["probability"], {"image_rgb": batch})
        worst = float(np.maximum(worst, np.abs(expected - found).max()))  # keeps a nan
    return worst


def _without_slow_rule() -> contextlib.AbstractContextManager[object]:
    """The exporter's rewriting without the rule that makes a split of slices.

    It goes through the whole graph for each node, a third of all time, and our slices are splits
    already.
    """
    name = "_DEFAULT_REWRITE_RULES"  # not in every version
    kept = tuple(rule for rule in getattr(rewriter, name, ()) if rule.name != SLOW_RULE)
    return mock.patch.object(rewriter, name, kept, create=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own deprecation notices and progress lines are not the user's to read."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
