"""Exports the bundled weights for each runtime and writes how far each is from torch.

``ulvm export`` compares before it writes: in probability and in every pixel of the masks, on
random, drawn and extreme pictures; one that fails gives no row. Writes
``results/speed/targets.json``; a runtime that is left out keeps the row that another environment
wrote.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from measure import command_line, provenance, today, write_result
from ulvm import segmenter
from ulvm.models import find_weights
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.export import export, probe_images
from ulvm.nn.model import PictureToProbability
from ulvm.nn.targets import TARGETS, compare, export_for

WEIGHTS = find_weights("isic2017")
ONNX = "onnx"
# Of each target: the ending of its file, and the package that ran it here.
RUNTIMES = {
    ONNX: (".onnx", "onnxruntime"),
    "executorch": (".pte", "executorch"),
    "litert": (".tflite", "ai-edge-litert"),
}
# As `ulvm.nn.targets` has the other runtimes.
ONNX_RUNTIME: Any = SimpleNamespace(
    predict=lambda path, images_rgb: segmenter.load(path).probability(images_rgb)
)


def measure(target: str, weights: Path = WEIGHTS) -> dict[str, Any]:
    """Size and largest difference, as the export itself found them."""
    suffix, package = RUNTIMES[target]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"lesion{suffix}"
        if target == ONNX:
            side = export(weights, out)
            network, run, _ = load_weights(weights)
            differing = compare(ONNX_RUNTIME, out, PictureToProbability(network).eval(), run)[1]
        else:
            side = export_for(target, weights, out)
            differing = 0  # else it would have been refused
    size = side["run"]["data"]["image_size"]
    return {
        "runtime": f"{package} {importlib.metadata.version(package)}",
        "torch": torch.__version__,
        "bytes": side["bytes"],
        "largest_difference": side["largest_difference_from_torch"],
        "differing_pixels": differing,
        "pixels": sum(map(len, probe_images(size, 3))) * size**2,
        "date": today(),
    }


def main() -> None:
    """Export, compare, write, print."""
    parser = command_line(__doc__, "targets.json")
    parser.add_argument("targets", nargs="*", default=[ONNX, *TARGETS], help="all, if none")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["targets"] if options.out.exists() else {}
    for target in options.targets:
        rows[target] = measure(target)
        print(target, rows[target])
        result = {
            "what": "the bundled weights, exported by ulvm export: bytes of all files, largest "
            "difference of probability from torch, pixels of masks that differ",
            "machine": provenance(options.commit)["machine"],
            "targets": {name: rows[name] for name in RUNTIMES if name in rows},
        }
        write_result(options.out, result)


if __name__ == "__main__":
    main()
