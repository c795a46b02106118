"""What is written is what pycocotools reads: the same masks, areas and boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ulvm
from ulvm.cli import main
from ulvm.image import read_mask
from ulvm.segmenter import Segmentation
from ulvm.synthetic import draw_lesion
from ulvm.use.coco import describe, encode_rle

# pycocotools' own, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXAMPLES = Path(ulvm.__file__).parent / "examples"


@pytest.fixture(scope="module")
def tools() -> Any:
    return pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = draw_lesion(1, (200, 333)).mask
    noisy = rng.random((67, 41)) < 0.5
    full = np.ones((5, 70000), bool)  # runs too long for three characters
    return [drawn, ~drawn, noisy, full, ~full, np.array([[True]])]


@pytest.mark.parametrize("index", range(len(masks())))
def test_run_lengths_are_those_of_pycocotools(tools: Any, index: int) -> None:
    mask = masks()[index]
    expected = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = encode_rle(mask)
    assert found == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    assert (tools.decode(found).astype(bool) == mask).all()


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_a_file_of_predictions_goes_round_through_pycocotools(
    tools: Any, tmp_path: Path, form: str
) -> None:
    from pycocotools.coco import COCO

    out = tmp_path / "lesions.json"
    command = ["predict", str(EXAMPLES), "--out", str(tmp_path / "out"), "--coco", str(out)]
    done = CliRunner().invoke(main, [*command, "--coco-form", form])
    assert done.exit_code == 0, done.output
    read = COCO(str(out))
    pictures = {each["file_name"]: each for each in read.loadImgs(read.getImgIds())}
    assert "light-skin.jpg" in pictures
    assert [each["name"] for each in read.loadCats(read.getCatIds())] == ["lesion"]
    for name, picture in pictures.items():
        mask = read_mask(tmp_path / "out" / f"{Path(name).with_suffix('')}_mask.png") > 0
        assert (picture["height"], picture["width"]) == mask.shape
        (found,) = read.loadAnns(read.getAnnIds(imgIds=picture["id"]))
        back = read.annToMask(found).astype(bool)
        if form == "rle":
            assert (back == mask).all()
            assert tools.area(found["segmentation"]) == found["area"] == mask.sum()
            assert tools.toBbox(found["segmentation"]).tolist() == found["bbox"]
        else:
            assert (back ^ mask).sum() < 0.03 * mask.sum()
        assert 0.5 < found["score"] <= 1


def test_exact_polygons_give_the_exact_mask(tools: Any) -> None:
    from ulvm.outline import flatten, polygons

    mask = draw_lesion(1, (200, 333)).mask
    rles = tools.frPyObjects([flatten(each) for each in polygons(mask)], *mask.shape)
    assert (tools.decode(tools.merge(rles)).astype(bool) == mask).all()


# The mask at the network's size, and the picture: COCO needs neither.
UNSEEN = np.zeros((8, 8), bool), np.zeros((8, 8, 3), np.uint8)


def test_a_picture_without_a_lesion_is_listed_without_annotations() -> None:
    nothing = np.zeros((4, 5), bool)
    maps = np.zeros((1, 8, 8), np.float32)
    assert describe(Segmentation(maps, nothing, None, 0.5, 1.0, *UNSEEN)) == []


def test_several_classes_are_several_categories() -> None:
    labels = np.array([[0, 1, 1], [0, 2, 2]], np.uint8)
    maps = np.full((3, 8, 8), 1 / 3, np.float32)
    found = describe(Segmentation(maps, labels != 0, labels, None, 1.0, *UNSEEN))
    assert [(each["category_id"], each["area"]) for each in found] == [(1, 2), (2, 2)]
    assert found[1]["bbox"] == [1, 1, 2, 1]


def test_a_broken_picture_is_not_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    out = tmp_path / "lesions.json"
    done = CliRunner().invoke(
        main,
        ["predict", str(tmp_path / "broken.jpg"), "--out", str(tmp_path), "--coco", str(out)],
    )
    assert done.exit_code == 1
    assert json.loads(out.read_text())["images"] == []


def test_equal_names_of_several_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        Image.fromarray(draw_lesion(3, (60, 80)).image_rgb).save(tmp_path / name / "a.png")
    paths, out = [str(tmp_path / name / "a.png") for name in ("x", "y")], tmp_path / "lesions.json"
    command = ["predict", *paths, "--out", str(tmp_path), "--coco", str(out)]
    assert CliRunner().invoke(main, command).exit_code == 0
    images = json.loads(out.read_text())["images"]
    assert [each["file_name"] for each in images] == [Path(path).as_posix() for path in paths]


def test_the_form_needs_the_file() -> None:
    done = CliRunner().invoke(main, ["predict", "photo.jpg", "--coco-form", "polygon"])
    assert done.exit_code == 2
    assert "--coco" in done.output


def test_only_a_coco_file_of_ulvm_is_replaced(tmp_path: Path) -> None:
    """The name of a picture after --coco is a slip of the hand."""
    photo, out = tmp_path / "photo.png", tmp_path / "lesions.json"
    Image.fromarray(draw_lesion(3, (60, 80)).image_rgb).save(photo)
    content = photo.read_bytes()
    for kept, before in ((photo, content), (tmp_path / "notes.json", b"{}")):
        kept.write_bytes(before)
        command = ["predict", str(photo), "--out", str(tmp_path / "out"), "--coco", str(kept)]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 1
        assert "is no COCO file of ulvm. Choose another name." in done.output
        assert kept.read_bytes() == before
    command = ["predict", str(photo), "--out", str(tmp_path / "out"), "--coco", str(out)]
    for _ in range(2):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
