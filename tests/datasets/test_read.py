"""A pair's pixels, and what is wrong with them."""

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from made_up_folders import draw, problem_of, save
from ulvm.datasets import check, decode, read
from ulvm.limits import Room


@pytest.mark.parametrize(
    ("dataset", "image_hw", "mask_hw", "allow", "accepted"),
    [
        ("folder", (30, 40), (30, 40), False, True),
        ("folder", (32, 32), (60, 80), False, False),
        ("folder", (32, 32), (60, 80), True, True),
        ("isic2018", (32, 32), (60, 80), False, True),
        ("isic2018", (30, 40), (60, 80), False, True),
        ("isic2018", (30, 40), (60, 60), False, False),
        ("isic2018", (30, 40), (60, 60), True, True),
    ],
)
def test_masks_of_another_size(tmp_path: Path, dataset, image_hw, mask_hw, allow, accepted):
    images, masks = tmp_path / "images", tmp_path / "masks"
    if dataset == "isic2018":
        images = tmp_path / "ISIC2018_Task1-2_Training_Input"
        masks = tmp_path / "ISIC2018_Task1_Training_GroundTruth"
    save(draw(0, *image_hw)[0], images / "a.png")
    save(draw(0, *mask_hw)[1], masks / "a_segmentation.png")
    report = check(dataset, tmp_path, allow_mask_resize=allow)
    assert (report.problems == []) == accepted
    assert any("another size" in note for note in report.notes) == (
        accepted and image_hw != mask_hw
    )
    arguments = {"size": 8, "cache_dir": tmp_path / "cache", "allow_mask_resize": allow}
    if accepted:
        decode(dataset, tmp_path, **arguments)
    else:
        assert "--resize-masks" in problem_of(lambda: decode(dataset, tmp_path, **arguments))


def test_grey_masks_are_thresholded_on_request(tmp_path: Path):
    picture, mask = draw(0, 30, 40)
    save(picture, tmp_path / "images" / "a.png")
    save(mask.convert("L").point(lambda value: 30 + value // 2), tmp_path / "masks" / "a.png")
    save(picture, tmp_path / "images" / "b.png")
    grey = Image.linear_gradient("L").resize((40, 30))
    save(grey, tmp_path / "masks" / "b.png")
    assert check("folder", tmp_path).problems
    assert not check("folder", tmp_path, threshold_masks=True).problems
    decoded = decode(
        "folder", tmp_path, size=32, cache_dir=tmp_path / "cache", threshold_masks=True
    )
    assert 0.4 < decoded.lesion_areas[1] < 0.6


def write_turned(
    root: Path,
    height: int,
    width: int,
    turn: int,
    *,
    upright: bool,
    box: tuple[int, int, int, int] = (2, 3, 14, 12),
) -> None:
    """A picture stored turned, as phones do; its mask drawn as seen, or on what is stored."""
    image, mask = Image.new("RGB", (width, height), "white"), Image.new("L", (width, height))
    for picture, colour in ((image, "brown"), (mask, 255)):
        picture.paste(colour, box)
    stored = Image.Transpose.ROTATE_90 if turn == 6 else Image.Transpose.ROTATE_180
    exif = Image.Exif()
    exif[0x0112] = turn
    (root / "images").mkdir(parents=True)
    image.transpose(stored).save(root / "images" / "a.jpg", exif=exif)
    save(mask if upright else mask.transpose(stored), root / "masks" / "a.png")


@pytest.mark.parametrize("height", [30, 40])
@pytest.mark.parametrize("turn", [3, 6])
def test_masks_of_turned_pictures_are_upright(tmp_path: Path, height: int, turn: int):
    write_turned(tmp_path / "right", height, 40, turn, upright=True)
    assert not check("folder", tmp_path / "right").problems
    write_turned(tmp_path / "wrong", height, 40, turn, upright=False)
    for allow in (False, True):
        report = check("folder", tmp_path / "wrong", allow_mask_resize=allow)
        (said,) = report.problems
        assert "turned by its EXIF orientation" in said
        assert "resize" not in said
    arguments = {"size": 8, "cache_dir": tmp_path / "cache", "allow_mask_resize": True}
    assert "turned by its EXIF" in problem_of(
        lambda: decode("folder", tmp_path / "wrong", **arguments)
    )


def test_sizes_tell_of_a_turn_where_the_lesion_does_not(tmp_path: Path):
    write_turned(tmp_path, 40, 42, 6, upright=False, box=(13, 12, 29, 28))
    (said,) = check("folder", tmp_path, allow_mask_resize=True).problems
    assert "turned by its EXIF orientation" in said


def test_masks_of_one_picture_have_one_size(tmp_path: Path):
    image, mask = draw(0)
    for name, picture in (("", image), ("_mask", mask), ("_mask_1", mask.resize((20, 15), 0))):
        save(picture, tmp_path / "benign" / f"benign (1){name}.png")
    (said,) = check("folder", tmp_path).problems
    assert "benign (1)_mask_1.png is 20×15" in said


def test_large_pictures_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one picture, eight workers hold one at a time."""
    for index in range(9):
        picture, mask = draw(index)
        save(picture, tmp_path / "images" / f"{index}.png")
        save(mask, tmp_path / "masks" / f"{index}.png")
    held, most = [0], [0]
    masks, problem = read.read_masks, read._size_problem

    def begin(*arguments: Any) -> Any:
        held[0] += 1
        most[0] = max(most[0], held[0])
        time.sleep(0.005)
        return masks(*arguments)

    def end(*arguments: Any) -> Any:
        held[0] -= 1
        return problem(*arguments)

    monkeypatch.setattr(read, "read_masks", begin)
    monkeypatch.setattr(read, "_size_problem", end)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(read, "_ROOM", Room(30 * 40))
    assert check("folder", tmp_path).pairs == {"all": 9}
    assert most == [1]
