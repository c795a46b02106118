"""LiteRT, formerly TensorFlow Lite: one ``.tflite`` file."""

from __future__ import annotations

from pathlib import Path

import litert_torch
import numpy as np
import numpy.typing as npt
import torch
from ai_edge_litert.interpreter import Interpreter

from ulvm.nn.export_forms import export_program
from ulvm.nn.model import PictureToProbability
from ulvm.spec import RunSpec

SUFFIX = ".tflite"


def convert(module: PictureToProbability, run: RunSpec, folder: Path) -> Path:
    """Write the network; the converter takes about a minute and shows its progress."""
    size = run.data.image_size
    example = torch.zeros(1, size, size, run.model.in_channels, dtype=torch.uint8)
    with torch.no_grad():
        exported = export_program(module, example).module()
        _drop_single_splits(exported)
        converted = litert_torch.convert(exported, (example,))
    path = folder / f"model{SUFFIX}"
    converted.export(str(path))
    return path


def predict(path: Path, image_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probability from what ``convert`` wrote, in single precision on the CPU."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    probability = []
    for image in image_rgb:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        probability.append(interpreter.get_tensor(wanted["index"]))
    return np.concatenate(probability)


def _drop_single_splits(exported: torch.fx.GraphModule) -> None:
    """Splits into one piece, which small pictures have and the converter cannot lower."""
    for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.split.Tensor):
        if len(node.meta["val"]) == 1:
            for piece in list(node.users):
                piece.replace_all_uses_with(node.args[0])
    exported.recompile()
