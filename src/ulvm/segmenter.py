"""A model file run by ONNX Runtime: picture in, probability and mask out.

A model file is ONNX with one input ``image_rgb``, uint8 (batch, size, size, 3), and one output
``probability``, float32 (batch, classes, size, size); normalisation and sigmoid or softmax are
part of the graph. Its metadata holds under the key ``ulvm`` the JSON object
``{"format": 1, "run": <RunSpec>, …}``; whatever else it holds is the model's provenance.
"""

import importlib.resources
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from PIL import Image

from ulvm.errors import InputError
from ulvm.image import (
    BoolArray,
    FloatArray,
    Uint8Array,
    bounding_box_xyxy,
    resize,
    resize_probability,
)
from ulvm.spec import FORMAT, METADATA_KEY, RunSpec

BUNDLED_MODEL = "ulvm-isic2017.onnx"

_ONNXRUNTIME_ERRORS = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.InvalidProtobuf,
    onnxruntime_errors.NotImplemented,
    onnxruntime_errors.RuntimeException,
)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the model found in one picture, at the picture's own size.

    Args:
        probability: float32, range 0..1: (height, width) for one class; (classes, height,
            width) for several, of which class 0 is the background.
        mask: bool (height, width): where the probability is at least the threshold; for several
            classes, where the label is not 0.
        labels: uint8 (height, width), the most probable class; None for one class.
        threshold: Of the mask; None for several classes.
        latency_ms: Time of resizing to the network's size, inference and resizing back.
    """

    probability: FloatArray
    mask: BoolArray
    labels: Uint8Array | None
    threshold: float | None
    latency_ms: float

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        height, width = self.mask.shape
        return height, width

    @cached_property
    def area_pixels(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def area_fraction(self) -> float:
        """Share of the picture that the mask covers, 0..1."""
        return self.area_pixels / self.mask.size

    @cached_property
    def bounding_box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of the mask, right and bottom exclusive; None if empty."""
        return bounding_box_xyxy(self.mask)

    @cached_property
    def mean_probability_inside(self) -> float | None:
        """Mean lesion probability (several classes: of not being background); None if empty."""
        if self.bounding_box_xyxy is None:
            return None
        left, top, right, bottom = self.bounding_box_xyxy
        box = np.s_[top:bottom, left:right]
        first = self.probability if self.labels is None else self.probability[0]
        mean = float(first[box][self.mask[box]].mean(dtype=np.float64))
        return mean if self.labels is None else 1 - mean

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values for JSON."""
        return {
            "size_hw": list(self.size_hw),
            "threshold": self.threshold,
            "area_pixels": self.area_pixels,
            "area_fraction": self.area_fraction,
            "bounding_box_xyxy": self.bounding_box_xyxy and list(self.bounding_box_xyxy),
            "mean_probability_inside": self.mean_probability_inside,
            "latency_ms": self.latency_ms,
        }


class Segmenter:
    """A loaded model; call it with a picture. ``load`` makes one. Safe to share by threads.

    Args:
        session: The model, already checked against the contract above.
        spec: The run that made the model.
        provenance: What else the model file says of itself.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, spec: RunSpec, provenance: dict[str, Any]
    ) -> None:
        self._session = session
        self.spec = spec
        self.provenance = provenance

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.spec.data.image_size, self.spec.data.image_size

    def __call__(
        self, image_rgb: Uint8Array | Image.Image, *, threshold: float | None = None
    ) -> Segmentation:
        """Segment one picture of any size and aspect.

        Args:
            image_rgb: uint8 (height, width, 3), range 0..255, or a Pillow image of mode RGB.
            threshold: A pixel is lesion where the probability is at least this, between 0 and
                1; by default the model's own. Only for models of one class.

        Returns:
            Probability and mask at the size of the picture.

        Raises:
            InputError: It is no RGB picture, or the threshold is out of range.
        """
        height, width = _require_image(image_rgb)
        threshold = self.check_threshold(threshold)
        start = time.perf_counter()
        maps = self.probability(resize(image_rgb, self.size_hw)[None])[0]  # (classes, size, size)
        labels = None
        if threshold is not None:
            probability = resize_probability(maps[0], (height, width))  # (height, width)
            mask = probability >= np.float32(threshold)
        else:
            probability = np.empty((len(maps), height, width), np.float32)
            for index, small in enumerate(maps):
                probability[index] = resize_probability(small, (height, width))
            labels = _most_probable(probability)
            mask = labels != 0
        latency_ms = (time.perf_counter() - start) * 1e3
        return Segmentation(probability, mask, labels, threshold, latency_ms)

    def probability(self, images_rgb: Uint8Array) -> FloatArray:
        """Probability of a batch that already has the network's size.

        Args:
            images_rgb: uint8 (batch, size, size, 3), range 0..255.

        Returns:
            float32 (batch, classes, size, size), range 0..1.

        Raises:
            InputError: The array has another shape or type.
        """
        if images_rgb.dtype != np.uint8 or images_rgb.shape[1:] != (*self.size_hw, 3):
            size = self.spec.data.image_size
            raise InputError(
                f"the batch is {images_rgb.dtype} {images_rgb.shape}",
                f"accepted is uint8 (batch, {size}, {size}, 3)",
                "resize each picture with ulvm.image.resize and stack them",
            )
        (probability,) = self._session.run(
            ["probability"], {"image_rgb": np.ascontiguousarray(images_rgb)}
        )
        result: FloatArray = probability
        return result

    def check_threshold(self, threshold: float | None) -> float | None:
        """The threshold that a call will use: the given one, else the model's own.

        Returns:
            The threshold; None for a model of several classes, which has none.

        Raises:
            InputError: It is not between 0 and 1, or the model has several classes.
        """
        if self.spec.model.classes > 1:
            if threshold is not None:
                raise InputError(
                    f"threshold={threshold} was given to a model of "
                    f"{self.spec.model.classes} classes",
                    "such a model takes the most probable class of each pixel",
                    "leave the threshold out",
                )
            return None
        if threshold is None:
            return self.spec.threshold
        if not 0 < threshold < 1:
            raise InputError(
                f"threshold={threshold} is out of range",
                "accepted is a number between 0 and 1",
                f"use {self.spec.threshold}, the model's own",
            )
        return threshold


def load(model: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> Segmenter:
    """Load a model file.

    Args:
        model: Path of a model that ``ulvm export`` wrote; by default the bundled one.
        threads: CPU threads of one inference, at least 1; by default one for each core.

    Returns:
        The model, ready to be called with a picture.

    Raises:
        InputError: The file is missing, not ONNX, or not a model of this project.
    """
    if threads is not None and threads < 1:
        raise InputError(
            f"threads={threads} is too small", "accepted is 1 or more", "leave it out for all cores"
        )
    content, name = _read_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0 lets ONNX Runtime choose
    options.log_severity_level = 4  # errors arrive as exceptions
    # The graph needs no rewriting: with it, loading takes 95 ms longer and a picture no less.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Threads that spin while they wait take the cores from decoding and writing: over a folder
    # 8 pictures a second with spinning, 28 without; one picture alone 19 ms with, 21 without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _ONNXRUNTIME_ERRORS as error:
        raise InputError(
            f"{name} cannot be opened by ONNX Runtime {onnxruntime.__version__} "
            f"({str(error).splitlines()[0]})",
            "accepted is an ONNX file that `ulvm export` wrote",
            "export it again, or choose another file",
        ) from error
    metadata = _read_metadata(session, name)
    try:
        spec = RunSpec.from_dict(metadata.pop("run"))
    except InputError as error:
        raise InputError(f"in {name}: {error.given}", error.accepted, error.remedy) from error
    _require_contract(session, spec, name)
    return Segmenter(session, spec, metadata)


def _read_model(model: str | os.PathLike[str] | None) -> tuple[bytes, str]:
    """The file's content and what to call it in messages."""
    if model is None:
        bundled = importlib.resources.files("ulvm") / "weights" / BUNDLED_MODEL
        if not bundled.is_file():
            raise InputError(
                f"the bundled model {BUNDLED_MODEL} is missing from this installation of ulvm",
                "accepted is a model file",
                "name one that `ulvm export` wrote, or install ulvm again",
            )
        return bundled.read_bytes(), BUNDLED_MODEL
    path = Path(model)
    if not path.is_file():
        raise InputError(
            f"the model {path} " + ("is a folder" if path.is_dir() else "does not exist"),
            "accepted is an ONNX file that `ulvm export` wrote",
            "check the path",
        )
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise InputError(
            f"the model {path} cannot be read ({error.strerror})",
            "accepted is a readable file",
            "check its permissions",
        ) from error


def _read_metadata(session: onnxruntime.InferenceSession, name: str) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    try:
        metadata = json.loads(text or "null")
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("run"), dict):
        raise InputError(
            f"{name} is ONNX, but holds no run of ulvm in its metadata",
            "accepted is an ONNX file that `ulvm export` wrote",
            "export your checkpoint with `ulvm export`",
        )
    if (version := metadata.pop("format", None)) != FORMAT:
        raise InputError(
            f"{name} has model format {version}",
            f"this version of ulvm accepts format {FORMAT}",
            "update ulvm, or export the checkpoint again",
        )
    return metadata


def _require_contract(session: onnxruntime.InferenceSession, spec: RunSpec, name: str) -> None:
    size = spec.data.image_size
    # Names and types of inputs and outputs; the batch axis may be fixed or free.
    accepted = [
        ("image_rgb", "tensor(uint8)", [size, size, 3]),
        ("probability", "tensor(float)", [spec.model.classes, size, size]),
    ]
    ends = [*session.get_inputs(), *session.get_outputs()]
    found = [(end.name, end.type, list(end.shape[1:])) for end in ends]
    if found != accepted:
        raise InputError(
            f"{name} has {_describe(found)}",
            f"its own run asks for {_describe(accepted)}",
            "export the checkpoint again with `ulvm export`",
        )


def _describe(ends: list[tuple[str, str, list[Any]]]) -> str:
    return " and ".join(f"{name} {kind} (batch, {str(shape)[1:-1]})" for name, kind, shape in ends)


def _most_probable(probability: FloatArray) -> Uint8Array:
    """Arg max over the classes, without numpy's int64 copy of the picture."""
    labels = np.zeros(probability.shape[1:], np.uint8)
    best = probability[0].copy()
    for label, candidate in enumerate(probability[1:], start=1):
        labels[candidate > best] = label
        np.maximum(best, candidate, out=best)
    return labels


def _require_image(image_rgb: Any) -> tuple[int, int]:
    """Height and width of the picture."""
    accepted = (
        "accepted is a numpy array, uint8 (height, width, 3), range 0..255, or a Pillow image "
        "of mode RGB"
    )
    if isinstance(image_rgb, Image.Image):
        if image_rgb.mode == "RGB" and image_rgb.width and image_rgb.height:
            return image_rgb.height, image_rgb.width
        raise InputError(
            f"the picture is a Pillow image of mode {image_rgb.mode} and size {image_rgb.size}",
            accepted,
            "convert it with image.convert('RGB')",
        )
    if not isinstance(image_rgb, np.ndarray):
        raise InputError(
            f"the picture is a {type(image_rgb).__name__}",
            accepted,
            "read files with ulvm.image.read_image",
        )
    shape = image_rgb.shape
    if image_rgb.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and image_rgb.size:
        return shape[0], shape[1]
    if image_rgb.size == 0:
        remedy = "give a picture of at least one pixel"
    elif len(shape) == 2:
        remedy = "repeat the grey channel with np.repeat(image[..., None], 3, axis=2)"
    elif len(shape) == 4:
        remedy = "give one picture at a time"
    elif len(shape) != 3:
        remedy = "read it with ulvm.image.read_image"
    elif shape[2] == 4:
        remedy = "drop the alpha channel with image[..., :3]"
    elif shape[2] == 1:
        remedy = "repeat the grey channel with np.repeat(image, 3, axis=2)"
    elif shape[2] != 3 and shape[0] == 3:
        remedy = "move the channels last with image.transpose(1, 2, 0)"
    elif shape[2] != 3:
        remedy = "choose three channels: red, green and blue"
    elif np.issubdtype(image_rgb.dtype, np.floating):
        remedy = "scale it to 0..255 and convert it with .round().astype(np.uint8)"
    else:
        remedy = "scale it to 0..255 and convert it with .astype(np.uint8)"
    raise InputError(f"the picture is {image_rgb.dtype} {shape}", accepted, remedy)
