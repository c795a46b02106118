"""ONNX files, run by ONNX Runtime: networks that the engine doesn't run, and a second opinion.

The one place that imports onnxruntime; others take it from here. Its builds from the package index
report to their maker: they look up a host and keep an identifier in the home folder, unless told
otherwise before the import and again after it.
"""

import os
import re
from typing import Any

import numpy as np

if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":  # setting one while threads run may crash them
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

from ulvm.errors import InputError
from ulvm.image import FloatArray, Uint8Array
from ulvm.limits import parse_json
from ulvm.spec import METADATA_KEY, RunSpec

onnxruntime.disable_telemetry_events()

__all__ = ["OnnxNetwork", "onnxruntime"]

# A weight outside the file: a StringStringEntryProto of key "location", its length in any form.
_OUTSIDE = re.compile(rb"\n(?:\x08|\x88\x80*\x00)location")


class OnnxNetwork:
    """A model file; call it with pictures. Safe to share by threads; it can be pickled.

    The file has one input ``image_rgb``, uint8 (batch, size, size, 3), and one output
    ``probability``, float32 (batch, classes, size, size); normalisation and sigmoid or softmax
    are part of the graph.

    Args:
        content: The file's bytes.
        name: What to call it in messages.
        threads: CPU threads of one inference, at least 1.

    Raises:
        InputError: It is not ONNX, or asks for weights in other files.
    """

    def __init__(self, content: bytes, name: str, *, threads: int = 1) -> None:
        self._content, self._name, self._threads = content, name, threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors arrive as exceptions
        # The graph needs no rewriting: with it, loading takes 95 ms longer and a picture no less.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Threads that spin while they wait take the cores from decoding and writing: over a folder
        # 8 pictures a second with spinning, 28 without; one picture alone 19 ms with, 21 without.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if _OUTSIDE.search(content):
            raise _refused(f"{name} has weights in another file")
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of the runtime's own classes and others
            program = f"ONNX Runtime {onnxruntime.__version__}"
            raise _refused(f"{name} cannot be opened by {program}", error) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return (_open, (self._content, self._name, self._threads))

    def metadata(self) -> Any:
        """What the file holds under ulvm's key; None where that is no JSON."""
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        try:
            return parse_json(text or "null")
        except ValueError:
            return None

    def require_contract(self, spec: RunSpec) -> None:
        """Check names and types of input and output; the batch axis may be fixed or free.

        Raises:
            InputError: They are not what the run asks for.
        """
        size = spec.data.image_size
        accepted = [
            ("image_rgb", "tensor(uint8)", [size, size, 3]),
            ("probability", "tensor(float)", [spec.model.classes, size, size]),
        ]
        ends = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = [(end.name, end.type, list(end.shape[1:])) for end in ends]
        if found != accepted:
            raise InputError(
                f"{self._name} has {_describe(found)}",
                f"its own run asks for {_describe(accepted)}",
                "export the checkpoint again with `ulvm export`",
            )

    def __call__(self, images_rgb: Uint8Array) -> FloatArray:
        """Probability of a batch of pictures.

        Args:
            images_rgb: uint8 (batch, size, size, 3), range 0..255.

        Returns:
            float32 (batch, classes, size, size), range 0..1.

        Raises:
            InputError: ONNX Runtime fails, or the output is not in 0..1.
        """
        try:
            (probability,) = self._session.run(
                ["probability"], {"image_rgb": np.ascontiguousarray(images_rgb)}
            )
        except Exception as error:  # of the runtime's own classes and others
            raise _refused(f"{self._name} cannot be run", error) from error
        if not (probability.min() >= 0 and probability.max() <= 1):  # nor NaN
            raise _refused(f"{self._name} gave a number that is no probability, from 0 to 1")
        result: FloatArray = probability
        return result


def _open(content: bytes, name: str, threads: int) -> OnnxNetwork:
    return OnnxNetwork(content, name, threads=threads)


def _refused(given: str, error: Exception | None = None) -> InputError:
    """The error for a file that `ulvm export` can't have written so."""
    if error is not None:
        given += f" ({next(iter(str(error).splitlines()), type(error).__name__)})"
    accepted = "it must be an ONNX file that `ulvm export` wrote, which holds all its weights"
    return InputError(given, accepted, "export it again, or choose another file")


def _describe(ends: list[tuple[str, str, list[Any]]]) -> str:
    return " and ".join(f"{name} {kind} (batch, {str(shape)[1:-1]})" for name, kind, shape in ends)
