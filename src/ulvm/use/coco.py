"""Results as a COCO file: pictures, and for each piece of skin found its RLE or polygons."""

import datetime
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.image import BoolArray, bounding_box_xyxy
from ulvm.outline import flatten, polygons
from ulvm.segmenter import Segmentation
from ulvm.version import __version__

CocoForm = Literal["rle", "polygon"]
_START = b'{"info": {"description": "outlines by ulvm'
TOLERANCE = 1.0  # pixels that a polygon may leave the mask's edge by, to be short enough to edit


def describe(segmentation: Segmentation, form: CocoForm = "rle") -> list[dict[str, Any]]:
    """The annotations of one picture, without their ids; none where nothing was found.

    Args:
        segmentation: What the model found.
        form: ``rle`` is exact. ``polygon`` can be edited by hand: within a pixel, holes filled.

    Returns:
        One dictionary for each class in the picture, its ``category_id`` the label (1 for the
        lesion), ``bbox`` as x, y, width and height in pixels, ``score`` in 0..1.
    """
    labels = segmentation.labels
    masks = (
        {1: segmentation.mask}
        if labels is None
        else {int(label): labels == label for label in np.unique(labels) if label}
    )
    annotations = []
    for label, mask in masks.items():
        box = bounding_box_xyxy(mask)
        if box is None:
            continue
        left, top, right, bottom = box
        shape: Any = (
            encode_rle(mask)
            if form == "rle"
            else [flatten(each) for each in polygons(mask, tolerance=TOLERANCE)]
        )
        annotations.append(
            {
                "category_id": label,
                "segmentation": shape,
                "area": int(np.count_nonzero(mask)),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "score": segmentation.mean_probability_inside,
            }
        )
    return annotations


def encode_rle(mask: BoolArray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        ``size``, height and width, and ``counts``, a string: lengths of runs down the columns,
        background first, each as its difference from the one before the last, in characters of
        six bits.

    Source: the format of pycocotools, which reads it.
    """
    down = mask.T.ravel()
    changes = np.flatnonzero(down[1:] != down[:-1]) + 1
    bounds = np.concatenate([[0], changes, [down.size]])
    counts = np.diff(bounds).tolist()
    if down.size and down[0]:
        counts.insert(0, 0)
    letters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits = value & 31
            value >>= 5
            is_last = value == (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + (0 if is_last else 32)))
            if is_last:
                break
    return {"size": list(mask.shape), "counts": "".join(letters)}


def require_replaceable(path: Path) -> None:
    """Check that nothing of others is lost by writing there.

    Raises:
        InputError: There is a file that ``write_coco`` did not write.
    """
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_START)) == _START:
                return
    raise InputError(
        f"{path} is there already and is no COCO file of ulvm", "", "choose another name"
    )


def write_coco(
    path: str | os.PathLike[str],
    pictures: Iterable[tuple[PurePath, tuple[int, int], list[dict[str, Any]]]],
    names: dict[int, str],
) -> None:
    """Write one COCO file of many pictures, whole or not at all.

    Args:
        path: Where to.
        pictures: Of each its name, height and width in pixels, and what ``describe`` gave.
        names: Label → what it is called, from 1.

    Raises:
        InputError: The folder cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, (height, width), found) in enumerate(pictures, start=1):
        images.append(
            {"id": image_id, "file_name": name.as_posix(), "width": width, "height": height}
        )
        for each in found:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **each})
    content = {
        "info": {
            "description": "outlines by ulvm, for research and education, not for diagnosis",
            "version": __version__,
            "date_created": datetime.date.today().isoformat(),
        },
        "licenses": [],
        "images": images,
        "categories": [
            {"id": label, "name": name, "supercategory": "skin"} for label, name in names.items()
        ],
        "annotations": annotations,
    }
    write_atomically(path, json.dumps(content).encode())


def category_names(classes: int) -> dict[int, str]:
    """Label → name, for a model of so many classes."""
    if classes == 1:
        return {1: "lesion"}
    return {label: f"class {label}" for label in range(1, classes)}
