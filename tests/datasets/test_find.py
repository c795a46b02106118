"""Pairs are found in every form that downloads have."""

import io
import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_up_folders import (
    ISIC_IDS,
    double_folder,
    draw,
    problem_of,
    save,
    write_folder,
    write_isic2017,
    zip_folder,
)
from ulvm.datasets import check, decode, find_pairs


@pytest.mark.parametrize("form", ["folders", "zips", "flat zips", "doubled", "parent"])
def test_official_isic_downloads(tmp_path: Path, form: str):
    root = tmp_path / "isic2017" if form == "parent" else tmp_path
    write_isic2017(root, ISIC_IDS)
    for folder in list(root.iterdir()):
        if "zips" in form:
            zip_folder(folder, inner=form == "zips")
        if form == "doubled":
            double_folder(folder)
    pairs = find_pairs("isic2017", tmp_path)
    assert [(pair.id[-1], pair.part) for pair in pairs] == [
        ("1", "train"),
        ("2", "validation"),
        ("3", "train"),
        ("4", "test"),
    ]
    decoded = decode("isic2017", tmp_path, size=16, cache_dir=tmp_path / "cache")
    for row, pair in enumerate(pairs):
        # Oracle: Pillow alone, from the bytes.
        image = Image.open(io.BytesIO(pair.image.read_bytes())).convert("RGB")
        mask = draw(int(pair.id[-7:]))[1]
        bilinear = Image.Resampling.BILINEAR
        np.testing.assert_array_equal(decoded.images[row], image.resize((16, 16), bilinear))
        np.testing.assert_array_equal(decoded.masks[row], mask.resize((16, 16), bilinear))
    assert decoded.ids == [pair.id for pair in pairs]
    assert decoded.parts == [pair.part for pair in pairs]
    assert check("isic2017", tmp_path).problems == []


def test_isic2018_names(tmp_path: Path):
    for part in ("Training", "Validation", "Test"):
        image, mask = draw(1)
        save(image, tmp_path / f"ISIC2018_Task1-2_{part}_Input" / f"{part}.jpg")
        save(mask, tmp_path / f"ISIC2018_Task1_{part}_GroundTruth" / f"{part}_segmentation.png")
    pairs = find_pairs("isic2018", tmp_path)
    assert {pair.id: pair.part for pair in pairs} == {
        "Training": "train",
        "Validation": "validation",
        "Test": "test",
    }


@pytest.mark.parametrize("form", ["official", "official, inner folder", "flat", "zip"])
def test_ph2_layouts(tmp_path: Path, form: str):
    for name in ("IMD002", "IMD435"):
        image, mask = draw(int(name[-3:]))
        mask = mask.convert("1")
        if form == "flat":
            save(image, tmp_path / "trainx" / f"{name}.bmp")
            save(mask, tmp_path / "trainy" / f"{name}_lesion.bmp")
        else:
            outer = tmp_path / ("" if "inner" in form else "PH2Dataset")
            case = outer / "PH2 Dataset images" / name
            save(image, case / f"{name}_Dermoscopic_Image" / f"{name}.bmp")
            save(mask, case / f"{name}_lesion" / f"{name}_lesion.bmp")
            save(mask, case / f"{name}_roi" / f"{name}_R1_Label2.bmp")
            (outer / "PH2_dataset.txt").write_text("")
    if form == "zip":
        zip_folder(tmp_path / "PH2Dataset", inner=True)
    pairs = find_pairs("ph2", tmp_path)
    assert [(pair.id, pair.part) for pair in pairs] == [("IMD002", "all"), ("IMD435", "all")]
    decoded = decode("ph2", tmp_path, size=40, cache_dir=tmp_path / "cache")
    expected = draw(435)[1].resize((40, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded.masks[1], expected)


@pytest.mark.parametrize("ending", ["", "_mask", "_segmentation", "_lesion"])
def test_own_folder(tmp_path: Path, ending: str):
    write_folder(tmp_path, ["b", "a"], ending)
    write_folder(tmp_path, ["c_mask", "c_roi"])
    ids = [pair.id for pair in find_pairs("folder", tmp_path)]
    assert ids == ["a", "b", "c_mask", "c_roi"]


def test_nothing_there_names_what_was_looked_for(tmp_path: Path):
    message = problem_of(lambda: find_pairs("isic2017", tmp_path))
    assert str(tmp_path) in message
    assert "ISIC-2017_Training_Data + ISIC-2017_Training_Part1_GroundTruth" in message
    assert "missing" in problem_of(lambda: find_pairs("ph2", tmp_path / "none"))
    assert "isic2017, isic2018, ph2, folder" in problem_of(lambda: find_pairs("isic", tmp_path))


def test_half_a_download(tmp_path: Path):
    write_isic2017(tmp_path, ISIC_IDS)
    shutil.rmtree(tmp_path / "ISIC-2017_Test_v2_Part1_GroundTruth")
    message = problem_of(lambda: find_pairs("isic2017", tmp_path))
    assert "but not ISIC-2017_Test_v2_Part1_GroundTruth" in message


def test_broken_zip(tmp_path: Path):
    write_isic2017(tmp_path, ISIC_IDS)
    zip_folder(tmp_path / "ISIC-2017_Training_Data", inner=True)
    path = tmp_path / "ISIC-2017_Training_Data.zip"
    path.write_bytes(path.read_bytes()[:-30])
    assert "Download it again" in problem_of(lambda: find_pairs("isic2017", tmp_path))


def test_missing_partners_and_ids_twice_are_named(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])
    (tmp_path / "masks" / "b.png").unlink()
    assert "1 pictures without a mask" in problem_of(lambda: find_pairs("folder", tmp_path))
    (tmp_path / "images" / "b.png").unlink()
    (tmp_path / "images" / "c.png").unlink()
    message = problem_of(lambda: find_pairs("folder", tmp_path))
    assert "1 masks without a picture in the all part: c" in message
    (tmp_path / "masks" / "c.png").rename(tmp_path / "masks" / "a_mask.png")
    assert "have the same id" in problem_of(lambda: find_pairs("folder", tmp_path))


def test_id_in_two_official_parts(tmp_path: Path):
    write_isic2017(tmp_path, {"Training": ["ISIC_0000001"], "Test_v2": ["ISIC_0000001"]})
    message = problem_of(lambda: find_pairs("isic2017", tmp_path))
    assert "(train)" in message
    assert "(test)" in message


@pytest.mark.data
def test_real_data(tmp_path: Path):
    if "ULVM_DATA" not in os.environ:
        pytest.skip("ULVM_DATA names no folder with the real data")
    data = os.environ["ULVM_DATA"]
    assert len(find_pairs("isic2017", data)) == 2150
    assert len(find_pairs("isic2018", data)) == 2594
    report = check("ph2", data)
    assert report.pairs == {"all": 200}
    assert report.problems == []
    decoded = decode("ph2", data, size=64, cache_dir=tmp_path)
    assert decoded.lesion_areas.mean() == pytest.approx(report.lesion_area["all"], abs=2e-3)


@pytest.mark.parametrize(
    ("dataset", "images", "masks"),
    [
        ("folder", ["Images"], "Masks"),
        ("ham10000", ["images"], "masks"),
        (
            "ham10000",
            ["HAM10000_images_part_1", "HAM10000_images_part_2"],
            "HAM10000_segmentations_lesion_tschandl",
        ),
        ("pad-ufes", ["images/imgs_part_1", "images/imgs_part_2"], "masks"),
        ("isic2016", ["ISBI2016_ISIC_Part1_Test_Data"], "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    ],
)
def test_other_public_layouts(tmp_path: Path, dataset: str, images: list[str], masks: str):
    for index, folder in enumerate(images):
        picture, mask = draw(index, 30, 40)
        save(picture, tmp_path / folder / f"A_{index}.png")
        save(mask, tmp_path / masks / f"A_{index}_segmentation.png")
    found = find_pairs(dataset, tmp_path)
    assert [pair.id for pair in found] == [f"A_{index}" for index in range(len(images))]


@pytest.mark.parametrize(
    "names", ["train val test", "train validation test", "Train valid Test", "training Val testing"]
)
def test_folders_of_parts(tmp_path: Path, names: str):
    for index, part in enumerate(names.split()):
        picture, mask = draw(index, 30, 40)
        save(picture, tmp_path / part / "images" / f"{index}.png")
        save(mask, tmp_path / part / "Masks" / f"{index}.png")
    # As where capitals don't count: a folder of two names is read once.
    first = names.split()[0]
    (tmp_path / (first.title() if first.islower() else first.lower())).symlink_to(tmp_path / first)
    found = find_pairs("folder", tmp_path)
    assert [pair.part for pair in found] == ["train", "validation", "test"]


def ids_of(root: Path) -> list[str]:
    return [pair.id for pair in find_pairs("folder", root)]


def test_hidden_files_and_folders_are_no_pairs(tmp_path: Path):
    write_folder(tmp_path, ["a"])
    for side in ("images", "masks"):
        shutil.copytree(tmp_path / side, tmp_path / side / ".ipynb_checkpoints")
        shutil.copy(tmp_path / side / "a.png", tmp_path / side / ".b.png")
    assert ids_of(tmp_path) == ["a"]
    for side in ("images", "masks"):
        (tmp_path / side / ".ipynb_checkpoints").rename(tmp_path / side / "shown")
    assert "have the same id" in problem_of(lambda: find_pairs("folder", tmp_path))


def test_hidden_members_of_a_zip_are_no_pairs(tmp_path: Path):
    write_folder(tmp_path, ["a"])
    shutil.copytree(tmp_path / "images", tmp_path / "images" / ".cache")
    for side in ("images", "masks"):
        zip_folder(tmp_path / side, inner=True)
    assert ids_of(tmp_path) == ["a"]


def test_zips_with_backslashes(tmp_path: Path):
    write_folder(tmp_path, ["a"])
    for side in ("images", "masks"):
        with zipfile.ZipFile(tmp_path / f"{side}.zip", "w") as archive:
            archive.write(tmp_path / side / "a.png", f"{side}\\part 1\\a.png")
        shutil.rmtree(tmp_path / side)
    assert ids_of(tmp_path) == ["a"]
    assert decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache").masks.any()


def test_names_in_both_unicode_forms_pair(tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "Müller é") for form in ("NFC", "NFD"))
    image, mask = draw(0)
    save(image, tmp_path / "images" / f"{decomposed}.png")
    save(mask, tmp_path / "masks" / f"{composed}_mask.png")
    assert ids_of(tmp_path) == [composed]
    decoded = decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache")
    assert decoded.indices([decomposed]).tolist() == [0]


def test_linked_folders_are_followed_once(tmp_path: Path):
    write_folder(tmp_path / "elsewhere", ["a", "b"])
    for side in ("images", "masks"):
        (tmp_path / "data" / side).mkdir(parents=True)
        (tmp_path / "data" / side / "linked").symlink_to(tmp_path / "elsewhere" / side)
        (tmp_path / "data" / side / "again").symlink_to(tmp_path / "data" / side)
    assert ids_of(tmp_path / "data") == ["a", "b"]


def test_links_to_nothing_are_named(tmp_path: Path):
    write_folder(tmp_path, ["a"])
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "images" / "notes.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "images" / "c.png")
    problems = check("folder", tmp_path).problems
    for name, said in zip("bc", problems, strict=True):
        assert f"{name}.png leads to no file" in said
    assert "b.png leads to no file" in problem_of(lambda: find_pairs("folder", tmp_path))


@pytest.mark.parametrize("outer", ["", "Kvasir-SEG/"])
@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),  # Kvasir-SEG
        ("Original", "Ground Truth"),  # CVC-ClinicDB
        ("PNG/Original", "PNG/Ground Truth"),
    ],
)
def test_folders_of_other_fields(tmp_path: Path, outer: str, images: str, masks: str):
    for name in ("1", "2"):
        image, mask = draw(int(name))
        save(image, tmp_path / outer / images / f"{name}.png")
        save(mask, tmp_path / outer / masks / f"{name}.png")
    assert ids_of(tmp_path) == ["1", "2"]


def test_endings_of_masks_in_capitals(tmp_path: Path):
    write_folder(tmp_path, ["a"], "_Segmentation")
    assert ids_of(tmp_path) == ["a"]


@pytest.mark.parametrize("outer", ["Dataset_BUSI_with_GT", "."])
def test_pictures_beside_their_masks(tmp_path: Path, outer: str):
    root = tmp_path / outer
    for index, name in enumerate(["benign", "malignant", "normal"]):
        image, mask = draw(index)
        save(image, root / name / f"{name} (1).png")
        save(mask, root / name / f"{name} (1)_mask.png")
    second = Image.new("L", (40, 30))
    second.paste(255, (35, 25, 40, 30))
    save(second, root / "benign" / "benign (1)_mask_1.png")
    assert ids_of(tmp_path) == ["benign (1)", "malignant (1)", "normal (1)"]
    decoded = decode("folder", tmp_path, size=40, cache_dir=tmp_path / "cache")
    both = np.maximum(draw(0)[1], second)
    expected = Image.fromarray(both).resize((40, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded.masks[0], expected)
    (root / "benign" / "benign (1)_mask_1.png").unlink()
    fewer = decode("folder", tmp_path, size=40, cache_dir=tmp_path / "cache")
    assert fewer.masks[0].sum() < decoded.masks[0].sum()


@pytest.mark.parametrize("with_test_masks", [True, False])
def test_nnunet(tmp_path: Path, with_test_masks: bool):
    for index, part in enumerate(["Tr", "Ts"]):
        image, mask = draw(index)
        save(image, tmp_path / f"images{part}" / f"case_{index}_0000.png")
        if part == "Tr" or with_test_masks:
            save(
                mask.point(lambda value: value // 255),
                tmp_path / f"labels{part}" / f"case_{index}.png",
            )
    found = [(pair.id, pair.part) for pair in find_pairs("folder", tmp_path)]
    assert found == [("case_0", "train"), ("case_1", "test")][: 1 + with_test_masks]
    assert not check("folder", tmp_path).problems
