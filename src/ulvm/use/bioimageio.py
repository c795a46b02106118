"""A trained network for bioimage.io: ``ulvm export MODEL --target bioimageio --out FOLDER``.

The folder holds a description, the weights as TorchScript and as ONNX, and a drawn picture with
what the network makes of it, which bioimage.io's own test compares.
Source of its fields: bioimage.io model description, format 0.5.
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ulvm.image import FloatArray, Uint8Array, draw_overlay
from ulvm.nn.export import OPSET
from ulvm.nn.planes import build_onnx_of_planes, build_torchscript, probability_of_planes
from ulvm.synthetic import draw_lesion
from ulvm.use import NOTICE
from ulvm.use.model_folder import (
    DESCRIPTION,
    PAPER,
    PAPER_LINK,
    Loaded,
    load_model,
    readme,
    require_equal,
    write_folder,
)
from ulvm.version import __version__

FORMAT = "0.5.3"
"""Of the description; later packages of bioimage.io read earlier formats."""

_TEST_SEED = 1
_HOW = """## Run it

`bioimageio test FOLDER` compares the network with its test pictures; `bioimageio predict` runs it.

## Validation

Compare masks with outlines by hand, on pictures like your own, before you rely on any: Dice and the
distance of the outlines. Pictures from other cameras, dark skin, hair and ink lower both."""


def export(model: str | Path, out: Path) -> dict[str, Any]:
    """Write a model folder.

    Args:
        model: A run folder, a weights file or the name of a model.
        out: The folder, made where missing.

    Returns:
        ``bytes`` written and ``largest_difference_from_torch``.

    Raises:
        InputError: There is no such model, or one of the two files computes something else than
            torch; then nothing is written.
    """
    loaded = load_model(model)
    script, script_differs = build_torchscript(loaded.module, loaded.run)
    require_equal(script_differs, "TorchScript")
    graph, graph_differs = build_onnx_of_planes(loaded.module, loaded.run)
    require_equal(graph_differs, "ONNX Runtime")

    size = loaded.run.data.image_size
    picture = draw_lesion(_TEST_SEED, (size, size)).image_rgb
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], dtype=np.float32)
    probability = probability_of_planes(loaded.module, planes)
    files = {
        "weights.pt": script,
        "weights.onnx": graph,
        "test_input.npy": _npy(planes),
        "test_output.npy": _npy(probability),
        "cover.png": _cover(picture, probability),
        "README.md": readme(loaded, _HOW).encode(),
    }
    description = _describe(loaded, files)
    # JSON is YAML too; so no package is needed to write it.
    files["rdf.yaml"] = (json.dumps(description, indent=2) + "\n").encode()
    written = write_folder(out, files)
    difference = max(script_differs, graph_differs)
    return {"bytes": written, "largest_difference_from_torch": difference}


def _describe(loaded: Loaded, files: dict[str, bytes]) -> dict[str, Any]:
    run = loaded.run

    def file(name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest()}

    def axes(channels: list[str]) -> list[dict[str, Any]]:
        size = run.data.image_size
        return [
            {"type": "batch"},
            {"type": "channel", "channel_names": channels},
            {"type": "space", "id": "y", "size": size},
            {"type": "space", "id": "x", "size": size},
        ]

    author = {"name": "The ulvm maintainers"}
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": "UltraLight VM-UNet skin lesion segmentation"
        if run.model.network == "ultralight-vm-unet"
        else f"{run.model.network} skin lesion segmentation",
        "description": f"{DESCRIPTION} {NOTICE}",
        "version": __version__,
        "authors": [author],
        "cite": [{"text": PAPER, "url": PAPER_LINK}],
        "license": "MIT",
        "documentation": "README.md",
        "covers": ["cover.png"],
        "tags": ["dermoscopy", "skin-lesion", "segmentation", "2d", "unet", "mamba"],
        "inputs": [
            {
                "id": "image",
                "description": "An RGB picture, squashed to this size.",
                "axes": axes(["red", "green", "blue"]),
                "data": {"type": "float32", "range": [0, 255]},
                "test_tensor": file("test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "description": f"Of {', '.join(loaded.classes)}, for each pixel.",
                "axes": axes([name.replace(" ", "_") for name in loaded.classes]),
                "data": {"type": "float32", "range": [0, 1]},
                "test_tensor": file("test_output.npy"),
            }
        ],
        "weights": {
            "torchscript": {
                **file("weights.pt"),
                "authors": [author],
                "pytorch_version": metadata.version("torch").partition("+")[0],
            },
            "onnx": {**file("weights.onnx"), "parent": "torchscript", "opset_version": OPSET},
        },
        "config": {"ulvm": {"threshold": run.threshold, "run": run.to_dict()}},
    }


def _cover(picture: Uint8Array, probability: FloatArray) -> bytes:
    """A PNG file of the drawn picture beside itself with the outline."""
    outlined = draw_overlay(picture, probability[0, -1] >= 0.5)
    content = io.BytesIO()
    Image.fromarray(np.concatenate([picture, outlined], axis=1)).save(content, "PNG")
    return content.getvalue()


def _npy(array: FloatArray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
