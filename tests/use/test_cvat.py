"""CVAT's own driver runs the function over a task, with its checks; only the server is made up."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import ulvm
from ulvm.errors import InputError
from ulvm.synthetic import draw_lesion
from ulvm.use.cvat import create

EXAMPLES = Path(ulvm.__file__).parent / "examples"


@pytest.fixture
def annotate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """A function that runs CVAT's driver over a task of two drawn pictures: the shapes sent."""
    pytest.importorskip("cvat_sdk", reason="cvat-sdk is not installed")
    from cvat_sdk import models
    from cvat_sdk.auto_annotation import driver

    label = models.Label(name="lesion", id=70, type="any", attributes=[], sublabels=[])
    samples = [
        SimpleNamespace(
            frame_index=index,
            frame_name=f"{index}.png",
            media=SimpleNamespace(load_image=lambda index=index: picture(index)),
        )
        for index in range(2)
    ]
    task = SimpleNamespace(labels=[label], samples=samples)
    monkeypatch.setattr(driver, "TaskDataset", lambda *args, **kwargs: task)
    sent: list[Any] = []

    class Api:
        def partial_update_annotations(
            self, action: str, task_id: int, *, patched_labeled_data_request: Any
        ) -> None:
            assert (action, task_id) == ("create", 5)
            sent.extend(patched_labeled_data_request.shapes)

    client = SimpleNamespace(
        tasks=SimpleNamespace(api=Api()), logger=logging.getLogger("tests.cvat")
    )

    def run(**options: Any) -> list[Any]:
        sent.clear()
        driver.annotate_task(client, 5, create(), **options)
        return list(sent)

    return run


def picture(index: int) -> Image.Image:
    return Image.fromarray(draw_lesion(120 + index, (240, 320)).image_rgb)


def test_a_mask_for_each_frame(annotate: Callable[..., list[Any]]) -> None:
    from cvat_sdk.masks import decode_mask

    shapes = annotate()
    assert [(each.frame, each.label_id, each.type.value) for each in shapes] == [
        (0, 70, "mask"),
        (1, 70, "mask"),
    ]
    for index, shape in enumerate(shapes):
        back = decode_mask(shape.points, image_width=320, image_height=240)
        assert (back == ulvm.load()(picture(index)).mask).all()


def test_polygons_where_cvat_asks_for_them(annotate: Callable[..., list[Any]]) -> None:
    shapes = annotate(conv_mask_to_poly=True)
    assert {each.type.value for each in shapes} == {"polygon"}
    canvas = Image.new("1", (320, 240))
    for shape in shapes:
        if shape.frame == 0:
            ImageDraw.Draw(canvas).polygon(shape.points, fill=1)
    mask = ulvm.load()(picture(0)).mask
    assert (np.asarray(canvas) ^ mask).sum() < 0.04 * mask.sum()


def test_nothing_below_the_confidence_asked_for(annotate: Callable[..., list[Any]]) -> None:
    assert annotate(conf_threshold=1.0) == []


def test_an_unknown_label_is_refused_by_cvat(annotate: Callable[..., list[Any]]) -> None:
    """Meta-test: the driver does check."""
    from cvat_sdk.auto_annotation import BadFunctionError, driver

    with pytest.raises(BadFunctionError, match="mole"):
        driver.annotate_task(SimpleNamespace(logger=logging.getLogger()), 5, create(label="mole"))


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(InputError, match=r"\.\[cvat\]"):
        create()
