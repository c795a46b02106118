"""Label Studio's own code reads the predictions: its validator, its converter, its server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import ulvm
from ulvm.errors import InputError
from ulvm.use.label_studio import Control, encode_brush, find_control, make_backend, predict_picture

PICTURE = Path(ulvm.__file__).parent / "examples" / "light-skin.jpg"
CONFIG = """<View>
  <Image name="image" value="$photo"/>
  <{kind} name="tag" toName="image"><Label value="Lesion"/></{kind}>
</View>"""
PARSED = {
    "tag": {
        "type": "BrushLabels",
        "to_name": ["image"],
        "inputs": [{"type": "Image", "value": "photo"}],
        "labels": ["Lesion"],
    }
}


def control(kind: str) -> Control:
    return find_control({"tag": {**PARSED["tag"], "type": kind}})


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    full = np.ones((300, 301), bool)  # longer than one run may be
    return [rng.random((37, 51)) < 0.5, full, ~full, np.array([[True]]), np.eye(5, dtype=bool)]


@pytest.mark.parametrize("index", range(len(masks())))
def test_a_brush_is_what_the_converter_decodes(index: int) -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    mask = masks()[index]
    decoded = brush.decode_rle(encode_brush(mask)).reshape(*mask.shape, 4)
    assert (decoded == np.where(mask, 255, 0)[..., None]).all()


@pytest.mark.parametrize("kind", ["BrushLabels", "PolygonLabels"])
def test_the_validator_of_label_studio_accepts_a_prediction(kind: str) -> None:
    sdk = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk is not installed"
    )
    prediction = predict_picture(ulvm.load(), PICTURE, control(kind))
    interface = sdk.LabelInterface(CONFIG.format(kind=kind))
    assert interface.validate_prediction(prediction, return_errors=True) == []
    assert prediction["result"]
    prediction["result"][0]["from_name"] = "other"  # meta-test: it can refuse
    assert interface.validate_prediction(prediction, return_errors=True) != []


@pytest.mark.filterwarnings("ignore")  # the converter's own
@pytest.mark.parametrize("kind", ["BrushLabels", "PolygonLabels"])
def test_the_converter_exports_what_the_model_found(kind: str, tmp_path: Path) -> None:
    converter = pytest.importorskip(
        "label_studio_sdk.converter", reason="label-studio-sdk is not installed"
    )
    mask = ulvm.load()(ulvm.read_image(PICTURE)).mask
    prediction = predict_picture(ulvm.load(), PICTURE, control(kind))
    task = {
        "id": 1,
        "data": {"photo": str(PICTURE)},
        "annotations": [{"id": 1, "completed_by": 1, "result": prediction["result"]}],
    }
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    (tmp_path / "out").mkdir()
    tool = converter.Converter(CONFIG.format(kind=kind), str(tmp_path))
    if kind == "BrushLabels":
        tool.convert(str(tmp_path / "tasks.json"), str(tmp_path / "out"), "BRUSH_TO_PNG", False)
        (written,) = (tmp_path / "out").glob("*.png")
        assert (np.asarray(Image.open(written)) == np.where(mask, 255, 0)).all()
        return
    tool.convert_to_coco(str(tmp_path / "tasks.json"), str(tmp_path / "out"), is_dir=False)
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    canvas = Image.new("1", mask.shape[::-1])
    for annotation in content["annotations"]:
        ImageDraw.Draw(canvas).polygon(annotation["segmentation"][0], fill=1)
    assert (np.asarray(canvas) ^ mask).sum() < 0.02 * mask.sum()


@pytest.mark.filterwarnings("ignore")  # of the backend's old Flask
def test_the_backends_own_server_answers() -> None:
    api = pytest.importorskip("label_studio_ml.api", reason="label-studio-ml is not installed")
    app = api.init_app(make_backend())
    config = CONFIG.format(kind="BrushLabels")
    client = app.test_client()
    assert client.get("/health").get_json()["status"] == "UP"
    setup = {"project": "1.1", "schema": config, "label_config": config}
    assert client.post("/setup", json=setup).status_code == 200
    tasks = [
        {"id": 7, "data": {"photo": f"/data/local-files/?d={PICTURE}"}},
        {"id": 8, "data": {"photo": "/data/local-files/?d=nothing-here.jpg"}},
    ]
    answer = client.post("/predict", json={"tasks": tasks, "label_config": config, **setup})
    assert answer.status_code == 200, answer.data
    first, second = answer.get_json()["results"]
    expected = predict_picture(ulvm.load(), PICTURE, control("BrushLabels"))
    assert first["result"] == expected["result"]
    assert second["result"] == []


def test_an_interface_without_a_place_for_outlines_is_refused() -> None:
    choices: dict[str, Any] = {"tag": {**PARSED["tag"], "type": "Choices"}}
    with pytest.raises(InputError, match="Labeling Interface"):
        find_control(choices)


def test_a_picture_without_a_lesion_gives_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = ulvm.load()
    monkeypatch.setattr(segmenter, "network", lambda batch: np.zeros((1, 1, 256, 256), np.float32))
    assert predict_picture(segmenter, PICTURE, control("BrushLabels"))["result"] == []
