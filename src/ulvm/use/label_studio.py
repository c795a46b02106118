"""Label Studio's machine learning backend: outlines as brush or polygon, to correct by hand.

``python -m ulvm.use.label_studio`` serves it; Label Studio is given its address.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click
import numpy as np

from ulvm.errors import InputError
from ulvm.image import BoolArray
from ulvm.outline import polygons
from ulvm.picture import ImageSource, read_picture
from ulvm.segmenter import Segmentation, Segmenter, load
from ulvm.use.coco import TOLERANCE
from ulvm.version import __version__

LARGEST_RUN = 2**16
_BRUSH, _POLYGON = "BrushLabels", "PolygonLabels"


class Control(NamedTuple):
    """The part of a labelling interface that the outlines go to.

    Args:
        name: Of the control's tag.
        kind: ``BrushLabels`` or ``PolygonLabels``.
        to_name: The picture's tag.
        key: Where a task's data hold the picture's address.
        label: What a lesion is called.
    """

    name: str
    kind: str
    to_name: str
    key: str
    label: str


def find_control(label_config: Mapping[str, Any]) -> Control:
    """The first brush or polygon control over a picture, and its first label.

    Args:
        label_config: As ``parse_config`` of Label Studio's tools gives it.

    Raises:
        InputError: There is none.
    """
    for name, tag in label_config.items():
        pictures = [each["value"] for each in tag["inputs"] if each["type"] == "Image"]
        if tag["type"] in (_BRUSH, _POLYGON) and pictures and tag["labels"]:
            return Control(name, tag["type"], tag["to_name"][0], pictures[0], tag["labels"][0])
    raise InputError(
        "the labelling interface has no place for an outline",
        f"it needs a tag {_BRUSH} or {_POLYGON} with a label, over an Image",
        "add one under Settings, Labeling Interface",
    )


def predict_picture(segmenter: Segmenter, source: ImageSource, control: Control) -> dict[str, Any]:
    """Label Studio's prediction for one picture.

    Args:
        segmenter: A model of one class.
        source: The picture's file.
        control: Where the outline goes.

    Raises:
        InputError: The picture cannot be read.
    """
    found = segmenter(read_picture(source))
    height, width = found.size_hw
    score = found.mean_probability_inside or 0.0
    regions = [
        {
            "id": f"ulvm{number}",
            "from_name": control.name,
            "to_name": control.to_name,
            "type": control.kind.lower(),
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "value": {**value, control.kind.lower(): [control.label]},
        }
        for number, value in enumerate(_shapes(found, control.kind))
    ]
    return {"model_version": f"ulvm {__version__}", "score": score, "result": regions}


def encode_brush(mask: BoolArray) -> list[int]:
    """Label Studio's run lengths of a mask, as bytes.

    Args:
        mask: bool (height, width).

    Returns:
        The number of samples, four channels a pixel, in 32 bits; how many bits a sample and each
        of four sizes of run lengths take; then runs: 1, the size's number, length and sample.

    Source: the format of @thi.ng/rle-pack, which ``label_studio_sdk.converter.brush`` reads.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * 4
    pieces = -(-lengths // LARGEST_RUN)
    samples = np.repeat(flat[starts], pieces) * 255
    sizes = np.full(len(samples), LARGEST_RUN)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LARGEST_RUN
    runs = np.concatenate(
        [np.ones((len(sizes), 3), np.uint8), _bits(sizes - 1, 16), _bits(samples, 8)], axis=1
    )
    head = [(flat.size * 4, 32), (8 - 1, 5), (3 - 1, 4), (4 - 1, 4), (8 - 1, 4), (16 - 1, 4)]
    parts = [_bits(np.array([value]), count).ravel() for value, count in head]
    return [int(each) for each in np.packbits(np.concatenate([*parts, runs.ravel()]))]


def make_backend(model: str | None = None) -> type[Any]:
    """The class that Label Studio's backend serves; its old and its new interface call it alike.

    Args:
        model: As for ``ulvm.load``; loaded once, here.

    Raises:
        InputError: As ``ulvm.load``; or the model has several classes.
    """
    from label_studio_ml.model import LabelStudioMLBase

    segmenter = load(model)
    segmenter.check_threshold(0.5)  # refuses a model of several classes

    class LesionBackend(LabelStudioMLBase):  # type: ignore[misc]  # it has no annotations
        """Outlines the picture of each task."""

        def predict(self, tasks: list[Any], context: Any = None, **more: Any) -> list[Any]:
            """A prediction for each task, in order; an empty one where the picture cannot be read.

            Raises:
                InputError: The labelling interface has no place for an outline.
            """
            control = find_control(self.parsed_label_config)
            return [self._predict(task, control) for task in tasks]

        def _predict(self, task: Any, control: Control) -> dict[str, Any]:
            try:
                path = self._fetch(task["data"][control.key], task.get("id"))
                return predict_picture(segmenter, path, control)
            except (InputError, OSError, KeyError) as error:
                logging.getLogger(__name__).warning("task %s: %s", task.get("id"), error)
                return {"model_version": f"ulvm {__version__}", "score": 0.0, "result": []}

        def _fetch(self, address: str, task_id: Any) -> str:
            """The picture's file on this machine; only newer versions take the task's number."""
            accepted = inspect.signature(self.get_local_path).parameters
            more = {"task_id": task_id} if "task_id" in accepted else {}
            return str(self.get_local_path(address, **more))

    return LesionBackend


def _shapes(found: Segmentation, kind: str) -> Iterator[dict[str, Any]]:
    """The values of the regions: one brush, or a polygon for each piece."""
    if not found.area_pixels:
        return
    if kind == _BRUSH:
        yield {"format": "rle", "rle": encode_brush(found.mask)}
        return
    height, width = found.size_hw
    for corners in polygons(found.mask, tolerance=TOLERANCE):
        percent = (corners * 100 / (width, height)).round(4)
        yield {"points": percent.tolist(), "closed": True}


def _bits(values: Any, count: int) -> Any:
    """uint8 (values, count): so many bits of each, highest first."""
    places = np.arange(count - 1, -1, -1)
    return ((values.astype(np.int64)[:, None] >> places) & 1).astype(np.uint8)


@click.command()
@click.option("--model", help="As for ulvm predict.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Who may ask; 0.0.0.0: all.")
@click.option("--port", default=9090, show_default=True)
def main(model: str | None, host: str, port: int) -> None:
    """Serve the backend; give its address to Label Studio under Settings, Model."""
    try:
        from label_studio_ml.api import init_app

        app = init_app(make_backend(model))
    except InputError as error:
        raise click.ClickException(str(error)) from None
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"This needs the package {error.name}, which is not installed. "
            "Run pip install '.[label-studio]' in the clone of ulvm, in an environment of its own."
        ) from None
    app.run(host=host, port=port)


if __name__ == "__main__":
    main()
