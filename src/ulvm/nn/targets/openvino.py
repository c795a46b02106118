"""OpenVINO: the graph as ``.xml``, the weights as ``.bin`` of the same stem."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset13 as opset

from ulvm.nn.export import build_onnx
from ulvm.nn.model import PictureToProbability
from ulvm.spec import RunSpec

SUFFIX = ".xml"


def convert(module: PictureToProbability, run: RunSpec, folder: Path) -> Path:
    """Write the network, made from its ONNX file, whose metadata OpenVINO keeps (``framework``)."""
    model = openvino.Core().read_model(build_onnx(module, run, {}))
    size = run.data.image_size
    # A free batch costs three times the time.
    model.reshape([1, size, size, run.model.in_channels])
    _keep_rows(model)
    path = folder / f"model{SUFFIX}"
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def predict(path: Path, image_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probability from what ``convert`` wrote, in single precision on the CPU."""
    # Without the hint some processors compute in half precision.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(image[None])[0].copy() for image in image_rgb])


def _keep_rows(model: openvino.Model) -> None:
    """Write a mean of means as the mean of sums, which OpenVINO does not merge into one sum.

    The exported GroupNorm sums row by row for the sake of float32; merged, pictures of one value
    are 3e-4 off and single pixels of masks change.
    """
    for outer in model.get_ordered_ops():
        inner = outer.input_value(0).get_node() if outer.inputs() else outer
        if {outer.get_type_name(), inner.get_type_name()} == {"ReduceMean"}:
            features, axes = inner.input_values()
            shape = features.get_shape()
            count = math.prod(shape[axis] for axis in axes.get_node().get_data().flat)
            sums = opset.reduce_sum(features, axes, keep_dims=True)
            mean = opset.multiply(sums, np.float32(1 / count))
            outer.input(0).replace_source_output(mean.output(0))
