"""The segmenter against models small enough to work out by hand, and the bundled one."""

import copy
import dataclasses
import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ulvm import segmenter as module
from ulvm import synthetic
from ulvm.engine import resize_probability
from ulvm.errors import InputError
from ulvm.image import resize
from ulvm.models import find_weights
from ulvm.segmenter import Segmentation, Segmenter, load
from ulvm.spec import DataSpec, ModelSpec, RunSpec

SIZE = 64
RANDOM = np.random.default_rng(0)


def write_model(
    path: Path,
    *,
    classes: int = 1,
    metadata: str | None = None,
    spec: RunSpec | None = None,
    input_name: str = "image_rgb",
    channels: int = 3,
) -> Path:
    """One class: mean of the channels / 255. Three: a softmax over the channels / 25."""
    picture = helper.make_tensor_value_info(
        input_name, TensorProto.UINT8, ["batch", SIZE, SIZE, channels]
    )
    probability = helper.make_tensor_value_info(
        "probability", TensorProto.FLOAT, ["batch", classes, SIZE, SIZE]
    )
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["probability"], keepdims=1)
        if classes == 1
        else helper.make_node("Softmax", ["scaled"], ["probability"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.float32(255 if classes == 1 else 25), "scale"),
        numpy_helper.from_array(np.array([1]), "axes"),
    ]
    graph = helper.make_graph(nodes, "oracle", [picture], [probability], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata is None:
        run = spec or RunSpec(
            model=ModelSpec(classes=classes), data=DataSpec(image_size=SIZE), threshold=0.4
        )
        metadata = json.dumps({"format": 1, "run": run.to_dict(), "git": "abc", "seeds": [1, 2]})
    if metadata:
        helper.set_model_props(model, {"ulvm": metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return load(write_model(tmp_path / "model.onnx"), threads=1)


@pytest.fixture
def three_classes(tmp_path: Path) -> Segmenter:
    return load(write_model(tmp_path / "three.onnx", classes=3), threads=1)


def enlarge(small: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(
        Image.fromarray(small.astype(np.float32)).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    )


def test_load_reads_spec_and_provenance(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    for model in (path, str(path)):
        segmenter = load(model)
        assert segmenter.spec.threshold == 0.4
        assert segmenter.size_hw == (SIZE, SIZE)
        assert segmenter.provenance == {"git": "abc", "seeds": [1, 2]}


@pytest.mark.parametrize("size_hw", [(64, 64), (90, 130), (20, 33), (1, 1), (1, 5000), (5000, 3)])
def test_one_class_at_any_size(segmenter: Segmenter, size_hw: tuple[int, int]) -> None:
    image = RANDOM.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    segmentation = segmenter(image, threshold=0.5, raw=True)
    expected = enlarge(resize(image, (SIZE, SIZE)).mean(axis=2) / 255, size_hw)
    assert segmentation.probability.dtype == np.float32
    np.testing.assert_allclose(segmentation.probability, expected, atol=1e-4)
    assert segmentation.mask.dtype == np.bool_
    np.testing.assert_array_equal(segmentation.mask, segmentation.probability >= np.float32(0.5))
    assert segmentation.size_hw == size_hw
    assert segmentation.labels is None
    assert segmentation.threshold == 0.5


def square_picture() -> np.ndarray:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[10:30, 40:60] = 204  # probability .8
    return image


def test_summary_of_a_square_worked_by_hand(segmenter: Segmenter) -> None:
    segmentation = segmenter(square_picture())
    assert segmentation.threshold == 0.4  # the model's own
    assert segmentation.area_pixels == 400
    assert segmentation.area_fraction == 400 / 4096
    assert segmentation.bounding_box_xyxy == (40, 10, 60, 30)
    assert segmentation.mean_probability_inside == pytest.approx(0.8)
    assert 0 < segmentation.latency_ms < 10_000
    assert json.loads(json.dumps(segmentation.to_dict())) == {
        "size_hw": [64, 64],
        "threshold": 0.4,
        "area_pixels": 400,
        "area_fraction": 400 / 4096,
        "area_mm2": None,
        "bounding_box_xyxy": [40, 10, 60, 30],
        "mean_probability_inside": segmentation.mean_probability_inside,
        "quality": segmentation.quality,
        "warnings": [doubt.to_dict() for doubt in segmentation.warnings],
        "latency_ms": segmentation.latency_ms,
    }


def test_threshold_is_inclusive(segmenter: Segmenter) -> None:
    image = np.full((SIZE, SIZE, 3), 51, np.uint8)
    at = float(segmenter(image, raw=True).probability[0, 0])
    assert at == pytest.approx(0.2)
    assert segmenter(image, threshold=at, raw=True).mask.all()
    assert not segmenter(image, threshold=at + 1e-4, raw=True).mask.any()


def test_specks_and_holes_go_unless_the_raw_mask_is_asked_for(segmenter: Segmenter) -> None:
    image = square_picture()
    image[18:22, 48:52] = 0
    image[50:55, 5:10] = 204
    raw, found = segmenter(image, raw=True), segmenter(image)
    assert raw.area_pixels == 400 - 16 + 25
    assert found.area_pixels == 400
    assert found.bounding_box_xyxy == (40, 10, 60, 30)
    np.testing.assert_array_equal(found.probability, raw.probability)
    np.testing.assert_array_equal(found.mask, segmenter(square_picture()).mask)


def test_one_colour_gives_an_empty_mask_and_a_warning(segmenter: Segmenter) -> None:
    image = np.full((90, 70, 3), 204, np.uint8)
    found = segmenter(image)
    assert not found.mask.any()
    assert found.quality == 0
    assert [doubt.code for doubt in found.warnings] == ["one-colour"]
    assert segmenter(image, raw=True).mask.all()


def test_empty_mask(segmenter: Segmenter) -> None:
    segmentation = segmenter(np.zeros((50, 40, 3), np.uint8))
    assert segmentation.area_fraction == 0
    assert segmentation.bounding_box_xyxy is None
    assert segmentation.mean_probability_inside is None
    plain = json.loads(json.dumps(segmentation.to_dict(), allow_nan=False))
    assert plain["bounding_box_xyxy"] is None


def test_several_classes(three_classes: Segmenter) -> None:
    image = RANDOM.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    segmentation = three_classes(image)
    exponentials = np.exp(image / 25.0)
    expected = exponentials / exponentials.sum(axis=2, keepdims=True)
    assert segmentation.probability.shape == (3, SIZE, SIZE)
    np.testing.assert_allclose(segmentation.probability, expected.transpose(2, 0, 1), atol=1e-5)
    assert segmentation.labels is not None
    assert segmentation.labels.dtype == np.uint8
    np.testing.assert_array_equal(segmentation.labels, segmentation.probability.argmax(axis=0))
    np.testing.assert_array_equal(segmentation.mask, segmentation.labels != 0)
    inside = expected[segmentation.mask][:, 1:].sum(axis=1).mean()
    assert segmentation.mean_probability_inside == pytest.approx(inside, abs=1e-5)
    assert segmentation.threshold is None
    with pytest.raises(InputError, match="3 classes"):
        three_classes(image, threshold=0.5)
    labels = three_classes(RANDOM.integers(0, 256, (9, 31, 3), dtype=np.uint8)).labels
    assert labels is not None
    assert labels.shape == (9, 31)


def test_probability_of_a_batch(segmenter: Segmenter) -> None:
    batch = RANDOM.integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    probability = segmenter.probability(batch)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, batch.mean(axis=3)[:, None] / 255, atol=1e-6)
    reversed_channels = segmenter.probability(batch[..., ::-1])  # no contiguous memory
    np.testing.assert_allclose(reversed_channels, probability, atol=1e-6)
    for wrong in (batch[0], batch.astype(np.float32), batch[:, 1:]):
        with pytest.raises(InputError, match=r"It must be uint8 \(batch, 64, 64, 3\)"):
            segmenter.probability(wrong)


def test_a_pillow_image_gives_what_its_array_gives(segmenter: Segmenter) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    found = segmenter(Image.fromarray(picture))
    np.testing.assert_array_equal(found.probability, segmenter(picture).probability)
    assert found.size_hw == (90, 120)


@pytest.mark.parametrize(
    ("image", "given", "remedy"),
    [
        (np.zeros((5, 6), np.uint8), "uint8 (5, 6)", "np.repeat(image[..., None], 3, axis=2)"),
        (np.zeros((5, 6, 1), np.uint8), "uint8 (5, 6, 1)", "np.repeat(image, 3, axis=2)"),
        (np.zeros((5, 6, 4), np.uint8), "uint8 (5, 6, 4)", "image[..., :3]"),
        (np.zeros((3, 5, 6), np.uint8), "uint8 (3, 5, 6)", "image.transpose(1, 2, 0)"),
        (np.zeros((2, 5, 6, 3), np.uint8), "uint8 (2, 5, 6, 3)", "one picture at a time"),
        (np.zeros((5, 6, 2), np.uint8), "uint8 (5, 6, 2)", "three channels"),
        (np.zeros((0, 6, 3), np.uint8), "uint8 (0, 6, 3)", "at least one pixel"),
        (np.zeros(7, np.uint8), "uint8 (7,)", "read_image"),
        (np.zeros((5, 6, 3), np.float32), "float32 (5, 6, 3)", ".round().astype(np.uint8)"),
        (np.zeros((5, 6, 3), np.uint16), "uint16 (5, 6, 3)", ".astype(np.uint8)"),
        ([np.zeros((5, 6, 3), np.uint8)], "is a list", "one picture at a time"),
        (None, "is a NoneType", ""),
        (np.ma.masked_greater(np.full((5, 6, 3), 9, np.uint8), 8), "masked pixels", "filled(0)"),
    ],
)
def test_refused_pictures(segmenter: Segmenter, image: Any, given: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        segmenter(image)
    assert given in caught.value.given
    assert remedy in caught.value.remedy
    assert "uint8 (height, width, 3)" in caught.value.accepted


def test_colours_that_pillow_has_multiplied_by_opacity(segmenter: Segmenter) -> None:
    grey = square_picture()[..., 0]
    half = Image.fromarray(np.dstack([grey, np.full_like(grey, 128)]))
    found = segmenter(half.convert("La")).image
    assert found is not None
    np.testing.assert_array_equal(np.asarray(found), np.asarray(segmenter(half).image))


def test_a_closed_file_and_an_empty_path_are_sentences(segmenter: Segmenter) -> None:
    file = io.BytesIO()
    file.close()
    for given, said in ((file, "cannot be read"), ("", "The path is empty. Name a file.")):
        with pytest.raises(InputError, match=said):
            segmenter(given)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 50, float("nan"), "0.5", [0.5]])
def test_refused_thresholds(segmenter: Segmenter, threshold: Any) -> None:
    with pytest.raises(InputError, match="must be a number between 0 and 1"):
        segmenter(square_picture(), threshold=threshold)


def test_refused_files(tmp_path: Path) -> None:
    def refuse(path: Path, *words: str) -> None:
        with pytest.raises(InputError) as caught:
            load(path)
        for word in (path.name, *words):
            assert word in str(caught.value)

    refuse(tmp_path / "no.onnx", "Model not found: ")
    refuse(tmp_path, "is a folder")
    for name, content in (("empty.onnx", b""), ("text.onnx", b"no model at all")):
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, "cannot be opened by ONNX Runtime")

    def written(name: str, **options: Any) -> Path:
        return write_model(tmp_path / name, **options)

    refuse(written("foreign.onnx", metadata=""), "holds no run of ulvm", "ulvm export")
    refuse(written("broken.onnx", metadata="{"), "holds no run of ulvm")
    refuse(written("list.onnx", metadata="[1]"), "holds no run of ulvm")
    refuse(written("later.onnx", metadata='{"format": 2, "run": {}}'), "format 2", "Update ulvm")
    unknown = '{"format": 1, "run": {"modle": {}}}'
    refuse(written("unknown.onnx", metadata=unknown), ": no field 'modle'")
    # A graph that is not what its own run says.
    other_size = RunSpec(data=DataSpec(image_size=96))
    refuse(written("size.onnx", spec=other_size), "batch, 64, 64, 3", "batch, 96, 96, 3")
    two = RunSpec(model=ModelSpec(classes=2), data=DataSpec(image_size=SIZE))
    refuse(written("classes.onnx", spec=two), "(batch, 2, 64, 64)")
    refuse(written("name.onnx", input_name="input"), "input tensor(uint8)")
    refuse(written("channels.onnx", channels=4), "batch, 64, 64, 4")
    for threads in (0, 1.5, "2", None):
        with pytest.raises(InputError, match=f"threads={threads!r}"):
            load(written("good.onnx"), threads=cast(int, threads))


def test_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    for constant in model.graph.initializer:
        if constant.name == "scale":
            constant.CopyFrom(numpy_helper.from_array(np.float32(np.nan), "scale"))
    onnx.save(model, path)
    with pytest.raises(InputError, match="no probability"):
        load(path)(square_picture())


# The bundled model


def test_bundled_model_in_both_engines() -> None:
    image = drawn_picture()
    ours, theirs = load("skin"), load("skin", engine="onnx")
    assert ours.spec == theirs.spec
    assert ours.provenance["split_hash"] == theirs.provenance["split_hash"]
    found, other = ours(image), theirs(image)
    assert found.probability.shape == (100, 150)
    assert found.mask.any()
    np.testing.assert_array_equal(found.mask, other.mask)
    np.testing.assert_allclose(found.probability, other.probability, atol=1e-4)


def drawn_picture() -> np.ndarray:
    return synthetic.draw_lesion(3, (100, 150)).image_rgb


def test_weights_run_folders_and_copies_give_the_same(tmp_path: Path) -> None:
    shutil.copy(find_weights("skin"), tmp_path / "weights.safetensors")
    bundled = load("skin")
    wanted = bundled(drawn_picture()).probability
    others = [
        load(tmp_path),  # a run folder
        load(tmp_path / "weights.safetensors", threads=2),
        load(str(tmp_path / "weights.safetensors"), engine="c"),
        copy.deepcopy(bundled),
        pickle.loads(pickle.dumps(bundled)),
    ]
    for other in others:
        assert other.spec == bundled.spec
        np.testing.assert_array_equal(other(drawn_picture()).probability, wanted)
    onnx_copy = pickle.loads(pickle.dumps(load("skin", engine="onnx")))
    np.testing.assert_allclose(onnx_copy(drawn_picture()).probability, wanted, atol=1e-4)


def test_refused_weights(tmp_path: Path) -> None:
    def refuse(path: Path, *words: str, **options: Any) -> None:
        with pytest.raises(InputError) as caught:
            load(path, **options)
        for word in (path.name, *words):
            assert word in str(caught.value)

    def written(name: str, header: bytes) -> Path:
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header)
        return tmp_path / name

    def described(**metadata: Any) -> bytes:
        return json.dumps({"__metadata__": {"ulvm": json.dumps(metadata)}}).encode()

    run = RunSpec().to_dict()
    refuse(tmp_path / "no.safetensors", "Model not found: ", "run folder")
    refuse(tmp_path, "is a folder without weights.safetensors")
    foreign = (b"", b"{", b"[1]", b"{}", b'{"__metadata__": {}}', b"[" * 10**5)
    for index, header in enumerate(foreign):
        refuse(written(f"{index}.safetensors", header), "holds no run of ulvm")
    (tmp_path / "no-header.safetensors").write_bytes(b"123")
    refuse(tmp_path / "no-header.safetensors", "holds no run of ulvm")
    refuse(written("later.safetensors", described(format=2, run=run)), "format 2", "Update ulvm")
    unknown = described(format=1, run={"modle": {}})
    refuse(written("unknown.safetensors", unknown), ": no field 'modle'")
    refuse(written("empty.safetensors", described(format=1, run=run)), "empty.safetensors: ")
    whole = find_weights().read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    refuse(tmp_path / "cut.safetensors", "cut.safetensors: ")
    refuse(tmp_path / "cut.safetensors", "is no .onnx file", engine="onnx")
    refuse(write_model(tmp_path / "m.onnx"), "is no .safetensors file", engine="c")


def test_without_onnx_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ulvm.onnx", None)
    with pytest.raises(InputError, match=r"pip install '\.\[onnx\]'"):
        load("skin", engine="onnx")
    assert load()(drawn_picture()).mask.any()


def test_probability_is_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []

    def resize_and_note(probability: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        made.append(size_hw)
        return resize_probability(probability, size_hw)

    monkeypatch.setattr(module, "resize_probability", resize_and_note)
    segmentation = load()(drawn_picture())
    assert (segmentation.mask.shape, segmentation.area_pixels > 0) == ((100, 150), True)
    assert "probability" not in repr(segmentation)
    assert made == []
    assert segmentation.probability is segmentation.probability
    assert made == [(100, 150)]


def test_segmentation_is_frozen(segmenter: Segmenter) -> None:
    segmentation = segmenter(square_picture())
    assert isinstance(segmentation, Segmentation)
    with pytest.raises(dataclasses.FrozenInstanceError):
        segmentation.threshold = 0.1  # type: ignore[misc]


def test_twelve_megapixels_keep_their_size(segmenter: Segmenter) -> None:
    image = RANDOM.integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    segmentation = segmenter(image)
    assert segmentation.mask.shape == segmentation.probability.shape == (3000, 4000)
