"""Masks of several classes by the table beside them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ulvm import datasets
from ulvm.datasets.classes import TABLE, find_classes, read_classes
from ulvm.errors import InputError

LABELS = np.zeros((40, 60), np.uint8)
LABELS[5:30, 10:30] = 1
LABELS[20:35, 25:50] = 2


def write_table(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_text(text)
    return folder / TABLE


def save(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("value", ["9" * 4999, "0" * 4999, "\u00b2", ""])
def test_a_value_that_is_no_whole_number(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"write whole numbers|Write whole numbers"):
        read_classes(write_table(tmp_path, f"value,name\n0,skin\n{value},naevus\n"))


def test_values_become_classes_in_the_tables_order(tmp_path: Path) -> None:
    table = read_classes(write_table(tmp_path, "value;name\n7;skin\n255;naevus\n100;crust\n"))
    assert table.names == ("skin", "naevus", "crust")
    mask = save(np.array([7, 255, 100], np.uint8)[LABELS], tmp_path / "a.png")
    np.testing.assert_array_equal(table.read(mask), LABELS)
    other = save(np.array([7, 255, 101], np.uint8)[LABELS], tmp_path / "b.png")
    with pytest.raises(InputError, match=r"holds 101, not in classes\.csv.*7, 255, 100"):
        table.read(other)


def test_indices_of_a_palette_are_values(tmp_path: Path) -> None:
    table = read_classes(write_table(tmp_path, "value,name\n0,skin\n1,naevus\n2,crust\n"))
    image = Image.fromarray(LABELS, "L").convert("P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.putdata(LABELS.ravel().tolist())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(table.read(tmp_path / "a.png"), LABELS)


def test_colours_become_classes(tmp_path: Path) -> None:
    text = "r,g,b,name\n0,0,0,skin\n255,0,0,naevus\n0,0,255,crust\n"
    table = read_classes(write_table(tmp_path, text))
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    np.testing.assert_array_equal(table.read(save(colours[LABELS], tmp_path / "a.png")), LABELS)
    colours[1] = 254, 0, 0
    with pytest.raises(InputError, match=r"holds \(254, 0, 0\), not in"):
        table.read(save(colours[LABELS], tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value,nom\n0,skin\n", "no column 'name'"),
        ("value,name\n0,skin\nx,naevus\n", "gives naevus x"),
        ("name\nskin\nnaevus\n", "gives skin no value"),
        ("r,g,b,name\n0,0,0,skin\n256,0,0,naevus\n", "gives naevus 256,0,0"),
        ("value,name\n0,skin\n0,naevus\n", "a value twice"),
        ("value,name\n0,skin\n1,skin\n", "a name twice"),
        ("value,name\n0,skin\n", "has 1 classes"),
        ("value,name\n", "has 0 classes"),
    ],
)
def test_tables_that_say_too_little_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_classes(write_table(tmp_path, text))


def test_resized_labels_are_labels_in_their_places(tmp_path: Path) -> None:
    table = read_classes(write_table(tmp_path, "value,name\n0,skin\n1,naevus\n2,crust\n"))
    doubled = LABELS.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(table.resize(doubled, LABELS.shape), LABELS)
    skin_beside_crust = np.where(np.arange(64) < 32, 0, 2).astype(np.uint8)[None].repeat(64, 0)
    assert set(np.unique(table.resize(skin_beside_crust, (40, 40)))) == {0, 2}  # 1 is not between


def test_a_data_set_is_decoded_with_its_classes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))
    picture = np.stack([LABELS * 100] * 3, axis=-1)
    for name in "ab":
        save(picture, tmp_path / "mine" / "images" / f"{name}.png")
        save(LABELS * 50, tmp_path / "mine" / "masks" / f"{name}.png")
    with pytest.raises(InputError, match="3 different values"):
        datasets.decode("folder", tmp_path / "mine", size=32)
    assert find_classes(tmp_path / "mine", "folder") is None
    write_table(tmp_path / "mine", "value,name\n0,skin\n50,naevus\n100,crust\n")
    decoded = datasets.decode("folder", tmp_path / "mine", size=32)
    assert decoded.classes == ("skin", "naevus", "crust")
    assert set(np.unique(decoded.masks)) == {0, 1, 2}
    assert decoded.lesion_areas[0] == pytest.approx((LABELS > 0).mean(), abs=0.02)
    assert datasets.check("folder", tmp_path / "mine").problems == []
    write_table(tmp_path / "mine", "value,name\n0,skin\n100,crust\n50,naevus\n")  # another cache
    swapped = datasets.decode("folder", tmp_path / "mine", size=32)
    np.testing.assert_array_equal(swapped.masks == 1, decoded.masks == 2)
