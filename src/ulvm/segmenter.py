"""A loaded model: picture in, probability and mask out.

Weights are a safetensors file that ``ulvm train`` wrote, run by the engine; an ONNX file of
``ulvm export`` is run by ONNX Runtime. Either holds under the key ``ulvm`` of its metadata the
JSON object ``{"format": 1, "run": <RunSpec>, …}``; what else it holds is the model's provenance.
"""

import numbers
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ulvm.engine import (
    Engine,
    EngineError,
    clean_probability,
    resize_mask,
    resize_probability,
)
from ulvm.errors import InputError, install_extra
from ulvm.image import (
    BoolArray,
    FloatArray,
    Uint8Array,
    bounding_box_xyxy,
    draw_overlay,
    is_rgb,
    resize,
    write_png,
)
from ulvm.limits import parse_json
from ulvm.models import read_weights
from ulvm.outline import Polygon, find_polygons
from ulvm.picture import (
    SPACING_MM,
    ImageSource,
    is_written_by_ulvm,
    read_picture,
    turn_upright,
)
from ulvm.quality import Assessment, Doubt, assess, is_one_colour
from ulvm.spec import FORMAT, METADATA_KEY, EngineName, RunSpec, require_rgb


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the model found in one picture, at the picture's own size.

    Args:
        maps: float32 (classes, size, size), range 0..1: probability at the network's own size.
        mask: bool (height, width): where the probability is at least the threshold; for several
            classes, where the label is not 0. For one class it has no specks, no holes, and is
            empty for a picture of one colour, unless the raw mask was asked for.
        labels: uint8 (height, width), the most probable class; None for one class.
        threshold: Of the mask; None for several classes.
        latency_ms: Time of resizing to the network's size, inference and making the mask.
        spot: bool (size, size), the mask at the network's own size.
        seen: uint8 (size, size, 3), what the network saw.
        image: What was segmented, upright, a Pillow image or uint8 (height, width, 3); it is the
            caller's own where nothing had to be converted.
        spacing_mm: Distance of the picture's rows and of its columns; None where it is not known.
    """

    maps: FloatArray = field(repr=False)
    mask: BoolArray = field(repr=False)
    labels: Uint8Array | None = field(repr=False)
    threshold: float | None
    latency_ms: float
    spot: BoolArray = field(repr=False)
    seen: Uint8Array = field(repr=False)
    image: Image.Image | Uint8Array | None = field(default=None, repr=False)
    spacing_mm: tuple[float, float] | None = None

    @cached_property
    def probability(self) -> FloatArray:
        """At the picture's size, made when it is first asked for; float32, range 0..1.

        (height, width) for one class; (classes, height, width) for several, of which class 0 is
        the background.
        """
        if self.labels is None:
            return resize_probability(self.maps[0], self.size_hw)
        probability = np.empty((len(self.maps), *self.size_hw), np.float32)
        for index, small in enumerate(self.maps):
            probability[index] = resize_probability(small, self.size_hw)
        return probability

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

    @property
    def area_mm2(self) -> float | None:
        """Area of the mask in mm²; None where the picture does not say how large its pixels are."""
        if self.spacing_mm is None:
            return None
        return self.area_pixels * self.spacing_mm[0] * self.spacing_mm[1]

    @cached_property
    def bounding_box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of the mask, right and bottom exclusive; None if empty."""
        return bounding_box_xyxy(self.mask)

    @cached_property
    def mean_probability_inside(self) -> float | None:
        """Mean lesion probability (several classes: of not being background); None if empty.

        Over the network's own pixels, so that it costs the same for a picture of any size.
        """
        if not self.area_pixels:
            return None
        inside = self._lesion[self.spot]
        # Where rounding alone put a pixel into the mask, its probability is the highest one.
        return float(inside.mean(dtype=np.float64) if inside.size else self._lesion.max())

    @property
    def _lesion(self) -> FloatArray:
        """Probability of not being background, (size, size)."""
        lesion: FloatArray = self.maps[0] if self.labels is None else 1 - self.maps[0]
        return lesion

    @property
    def quality(self) -> float:
        """An estimate of the mask's Dice, 0..1; 0 for an empty mask. See ``ulvm.quality``."""
        return self._assessment.quality

    @property
    def warnings(self) -> tuple[Doubt, ...]:
        """Reasons not to trust the mask, the weightiest first; each has a code and words."""
        return self._assessment.warnings

    @cached_property
    def _assessment(self) -> Assessment:
        threshold = 0.5 if self.threshold is None else self.threshold
        return assess(self.seen, self._lesion, self.spot, threshold)

    def polygons(self, *, tolerance: float = 0.0, label: int | None = None) -> list[Polygon]:
        """The outlines of the mask, and of the holes in it, as points (x, y) in pixels.

        Args:
            tolerance: How far, in pixels, an outline may leave the mask's pixels to need fewer
                points; 0 keeps every corner.
            label: For several classes, the one wanted; by default all that are no background.

        Returns:
            The largest piece first, each with ``outline``, float64 (points, 2), clockwise, and
            ``holes``, a tuple of such arrays.
        """
        labels = self.mask if self.labels is None else self.labels
        mask = self.mask if label is None else np.equal(labels, label)
        return find_polygons(mask, tolerance=tolerance)

    def overlay(self, **style: Any) -> Image.Image:
        """The picture with the mask tinted and outlined, as a Pillow image.

        Args:
            style: ``color_rgb``, ``opacity`` and ``line_width`` of ``ulvm.draw_overlay``.

        Raises:
            InputError: This segmentation was made without its picture.
        """
        if self.image is None:
            raise InputError(
                "this segmentation does not hold its picture", "", "use ulvm.draw_overlay"
            )
        return Image.fromarray(draw_overlay(np.asarray(self.image), self.mask, **style))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as a PNG file: 0 and 255, or for several classes the labels.

        Args:
            path: Its ending is ``.png``. A mask that ulvm wrote is replaced; nothing else is.

        Raises:
            InputError: Another ending, a file of someone else's is there, or the folder cannot
                be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(
                f"{path} does not end in .png",
                "masks are written as PNG, which keeps every pixel",
                "for a picture of the outline use .overlay().save(…)",
            )
        if path.exists() and not is_written_by_ulvm(path):
            raise InputError(
                f"{path} is there already and was not written by ulvm", "", "choose another name"
            )
        write_png(path, self.mask if self.labels is None else self.labels)

    def _repr_html_(self) -> str:
        """What a notebook shows: the overlay, or the mask without its picture, and the finding."""
        from ulvm.notebook import show

        return show(self.image, self.mask, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values for JSON."""
        return {
            "size_hw": list(self.size_hw),
            "threshold": self.threshold,
            "area_pixels": self.area_pixels,
            "area_fraction": self.area_fraction,
            "area_mm2": self.area_mm2,
            "bounding_box_xyxy": self.bounding_box_xyxy and list(self.bounding_box_xyxy),
            "mean_probability_inside": self.mean_probability_inside,
            "quality": self.quality,
            "warnings": [doubt.to_dict() for doubt in self.warnings],
            "latency_ms": self.latency_ms,
        }


class Segmenter:
    """A loaded model; call it with a picture. ``load`` makes one. Safe to share by threads.

    Args:
        network: uint8 (batch, size, size, 3) → float32 (batch, classes, size, size), finite.
        spec: The run that made the model.
        provenance: What else the model file says of itself.
    """

    def __init__(
        self,
        network: Callable[[Uint8Array], FloatArray],
        spec: RunSpec,
        provenance: dict[str, Any],
    ) -> None:
        self.network = network
        self.spec = spec
        self.provenance = provenance

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.spec.data.image_size, self.spec.data.image_size

    def __call__(
        self,
        picture: ImageSource | Image.Image | Uint8Array,
        *,
        threshold: float | None = None,
        raw: bool = False,
    ) -> Segmentation:
        """Segment one picture of any size and aspect.

        Args:
            picture: A path, the bytes of a file, a binary file object, a Pillow image, or uint8
                (height, width, 3), range 0..255. All but the array are turned as their EXIF says
                and put on white, as ``ulvm.read_image`` does.
            threshold: A pixel is lesion where the probability is at least this, between 0 and
                1; by default the model's own. Only for models of one class.
            raw: Leave specks and holes in the mask, and what was found in one colour. Otherwise
                parts below a quarter of the largest go and holes are filled. Masks of several
                classes are raw always.

        Returns:
            Probability and mask at the size of the picture.

        Raises:
            InputError: It is no picture, or a file that cannot be read; the threshold is out of
                range; or the network gave a number that is no probability.
        """
        upright = _read(picture)
        width, height = upright.size if isinstance(upright, Image.Image) else upright.shape[1::-1]
        threshold = self.check_threshold(threshold)
        start = time.perf_counter()
        seen = resize(upright, self.size_hw)
        maps = self.probability(seen[None])[0]  # (classes, size, size)
        labels = None
        if threshold is not None:
            map_of_mask = maps[0] if raw else clean(seen, maps[0], threshold)
            spot = map_of_mask >= np.float32(threshold)
            mask, _ = resize_mask(map_of_mask, (height, width), threshold)
        else:
            spot = maps.argmax(axis=0) != 0
            labels = _most_probable(maps, (height, width))
            mask = labels != 0
        latency_ms = (time.perf_counter() - start) * 1e3
        spacing = upright.info.get(SPACING_MM) if isinstance(upright, Image.Image) else None
        return Segmentation(maps, mask, labels, threshold, latency_ms, spot, seen, upright, spacing)

    def probability(self, images_rgb: Uint8Array) -> FloatArray:
        """Probability of a batch that already has the network's size.

        Args:
            images_rgb: uint8 (batch, size, size, 3), range 0..255.

        Returns:
            float32 (batch, classes, size, size), range 0..1.

        Raises:
            InputError: The array has another shape or type, or the network gave a number that
                is no probability.
        """
        require_rgb(self.spec.model)
        if images_rgb.dtype != np.uint8 or images_rgb.shape[1:] != (*self.size_hw, 3):
            size = self.spec.data.image_size
            raise InputError(
                f"the batch is {images_rgb.dtype} {images_rgb.shape}",
                f"it must be uint8 (batch, {size}, {size}, 3)",
                "resize each picture with ulvm.image.resize and stack them",
            )
        return self.network(images_rgb)

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
        given: Any = threshold
        is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)
        if not is_number or not 0 < threshold < 1:
            wrong = "out of range" if is_number else f"a {type(threshold).__name__}"
            raise InputError(
                f"threshold={threshold!r} is {wrong}",
                "it must be a number between 0 and 1",
                f"use {self.spec.threshold}, the model's own",
            )
        return threshold


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    threads: int = 1,
    engine: EngineName | None = None,
) -> Segmenter:
    """Load a model.

    Args:
        model: A name in ``ulvm.models.NAMES``, a safetensors file or a run folder of ``ulvm
            train``, or an ONNX file of ``ulvm export``; by default the bundled model.
        threads: CPU threads of one inference, at least 1.
        engine: ``c`` is ulvm's own, for safetensors; ``onnx`` is ONNX Runtime, for ONNX files,
            and needs the extra of that name. By default what fits the file.

    Returns:
        The model, ready to be called with a picture.

    Raises:
        InputError: The file is missing, damaged, not a model of this project, or a network that
            the engine doesn't run; or ONNX Runtime is asked for and not installed.
    """
    given: Any = threads
    if not isinstance(given, numbers.Integral) or threads < 1:
        raise InputError(
            f"threads={threads!r} was given", "it must be 1 or more", "leave it out for one"
        )
    if engine is None:
        engine = "onnx" if model is not None and Path(model).suffix == ".onnx" else "c"
    path, content = read_weights(model, onnx=engine == "onnx")
    return (_load_onnx if engine == "onnx" else load_bytes)(content, str(path), threads)


def load_bytes(content: bytes, name: str, threads: int = 1) -> Segmenter:
    """``load`` of a safetensors file's bytes; ``name`` is for messages."""
    spec, provenance = read_run(read_header(content), name)
    try:
        network = Engine(content, threads=threads)
    except EngineError as error:
        raise EngineError(f"{name}: {error}", error.code) from error
    return Segmenter(network, spec, provenance)


def _load_onnx(content: bytes, name: str, threads: int) -> Segmenter:
    try:
        from ulvm.onnx import OnnxNetwork
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name} needs ONNX Runtime, which is not installed",
            ".safetensors files need no such package",
            install_extra("onnx"),
        ) from error
    network = OnnxNetwork(content, name, threads=threads)
    spec, provenance = read_run(network.metadata(), name)
    network.require_contract(spec)
    return Segmenter(network, spec, provenance)


def read_header(content: bytes) -> Any:
    """What a safetensors file holds under ulvm's key; None where there is no such thing."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = parse_json(content[8 : 8 + length])
        return parse_json(header["__metadata__"][METADATA_KEY])
    except (ValueError, KeyError, TypeError):
        return None


def read_run(metadata: Any, name: str) -> tuple[RunSpec, dict[str, Any]]:
    """The run that made a model, and what else its file says of itself."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("run"), dict):
        raise InputError(
            f"{name} holds no run of ulvm in its metadata",
            "it must be a .safetensors file of `ulvm train` or an ONNX file of `ulvm export`",
            "choose another file, or copy it again",
        )
    if (version := metadata.pop("format", None)) != FORMAT:
        raise InputError(
            f"{name} has model format {version}",
            f"this version of ulvm reads format {FORMAT}",
            "update ulvm, or export the checkpoint again",
        )
    try:
        return RunSpec.from_dict(metadata.pop("run")), metadata
    except InputError as error:
        raise InputError(f"in {name}: {error.given}", error.accepted, error.remedy) from error


def clean(picture: Uint8Array, probability: FloatArray, threshold: float) -> FloatArray:
    """The probability that a mask is made of: without specks and holes; 0 for one colour.

    Args:
        picture: uint8 (size, size, 3), what the network saw.
        probability: float32 (size, size), range 0..1.
        threshold: Of the mask.

    Returns:
        float32 (size, size), a new array.
    """
    if is_one_colour(picture):
        return np.zeros_like(probability)
    return clean_probability(probability, threshold)


def _most_probable(maps: FloatArray, size_hw: tuple[int, int]) -> Uint8Array:
    """uint8 of the given size: the class of highest probability there."""
    labels = np.zeros(size_hw, np.uint8)
    best = resize_probability(maps[0], size_hw)
    for label, small in enumerate(maps[1:], start=1):
        candidate = resize_probability(small, size_hw)
        labels[candidate > best] = label
        np.maximum(best, candidate, out=best)
    return labels


def _read(picture: Any) -> Image.Image | Uint8Array:
    """The picture, upright and RGB."""
    if isinstance(picture, Image.Image):
        if not picture.width or not picture.height:
            raise InputError(
                f"the picture has no pixels: its size is {picture.size}", "", "choose another one"
            )
        return turn_upright(picture)
    if isinstance(picture, str | os.PathLike | bytes) or hasattr(picture, "read"):
        return read_picture(picture)
    if isinstance(picture, bytearray | memoryview):
        return read_picture(bytes(picture))
    _require_array(picture)
    array: Uint8Array = picture
    return array


def _require_array(image_rgb: Any) -> None:
    accepted = "an array must be uint8 (height, width, 3), range 0..255"
    if not isinstance(image_rgb, np.ndarray):
        raise InputError(
            f"the picture is a {type(image_rgb).__name__}",
            "it must be a path, a file's bytes, a binary file object, a Pillow image or a numpy "
            "array, uint8 (height, width, 3), range 0..255",
            "give one picture at a time",
        )
    shape = image_rgb.shape
    if np.ma.is_masked(image_rgb):
        raise InputError(
            "the picture is an array with masked pixels", accepted, "fill them with image.filled(0)"
        )
    if is_rgb(image_rgb):
        return
    last = shape[2] if len(shape) == 3 else 0
    rounded = ".round()" if np.issubdtype(image_rgb.dtype, np.floating) else ""
    remedies = [  # of what is true first
        (image_rgb.size == 0, "give a picture of at least one pixel"),
        (len(shape) == 2, "repeat the grey channel with np.repeat(image[..., None], 3, axis=2)"),
        (len(shape) == 4, "give one picture at a time"),
        (len(shape) != 3, "read it with ulvm.read_image"),
        (last == 4, "drop the alpha channel with image[..., :3]"),
        (last == 1, "repeat the grey channel with np.repeat(image, 3, axis=2)"),
        (last != 3 and shape[:1] == (3,), "move the channels last with image.transpose(1, 2, 0)"),
        (last != 3, "choose three channels: red, green and blue"),
        (True, f"scale it to 0..255 and convert it with {rounded}.astype(np.uint8)"),
    ]
    remedy = next(remedy for is_so, remedy in remedies if is_so)
    raise InputError(f"the picture is {image_rgb.dtype} {shape}", accepted, remedy)
