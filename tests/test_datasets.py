import io
import json
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ulvm import datasets
from ulvm.datasets import check, decode, find_pairs, shared_ids
from ulvm.errors import InputError
from ulvm.splits import load_split


def draw(seed: int, height: int = 30, width: int = 40) -> tuple[Image.Image, Image.Image]:
    """A picture of smooth noise and a mask with one rectangle."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    mask = np.zeros((height, width), np.uint8)
    top, left = generator.integers(2, 10, 2)
    mask[top : top + 12, left : left + 15] = 255
    return coarse.resize((width, height), Image.Resampling.BICUBIC), Image.fromarray(mask)


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_isic2017(root: Path, ids: dict[str, list[str]]) -> None:
    for part, names in ids.items():
        for name in names:
            image, mask = draw(int(name[-7:]))
            save(image, root / f"ISIC-2017_{part}_Data" / f"{name}.jpg")
            truth = root / f"ISIC-2017_{part}_Part1_GroundTruth"
            save(mask, truth / f"{name}_segmentation.png")
            save(mask, root / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png")
        for name in ("ATTRIBUTION.txt", "LICENSE.txt", ".DS_Store", "Thumbs.db"):
            (root / f"ISIC-2017_{part}_Data" / name).write_text("")
        junk = root / f"ISIC-2017_{part}_Data" / "__MACOSX"
        junk.mkdir()
        (junk / f"._{names[0]}.jpg").write_bytes(b"\0")


def write_folder(root: Path, names: list[str], ending: str = "") -> None:
    for seed, name in enumerate(names):
        image, mask = draw(seed)
        save(image, root / "images" / f"{name}.png")
        save(mask, root / "masks" / f"{name}{ending}.png")


def zip_folder(folder: Path, *, inner: bool) -> None:
    """Turn a folder into a zip of the same name, with the folder inside or only its files."""
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent if inner else folder))
    shutil.rmtree(folder)


def double_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moving"))
    folder.mkdir()
    folder.with_name("moving").rename(folder / folder.name)


def problem_of(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return str(caught.value)


ISIC_IDS = {
    "Training": ["ISIC_0000003", "ISIC_0000001"],
    "Validation": ["ISIC_0000002"],
    "Test_v2": ["ISIC_0000004"],
}


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


def test_damage_inside_a_zip(tmp_path: Path):
    write_isic2017(tmp_path, {"Training": ["ISIC_0000001"]})
    (tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg").write_bytes(b"no picture")
    for folder in list(tmp_path.iterdir()):
        zip_folder(folder, inner=True)
    path = tmp_path / "ISIC-2017_Training_Part1_GroundTruth.zip"
    content = bytearray(path.read_bytes())
    content[120] ^= 255  # inside the member, whose checksum then differs
    path.write_bytes(content)
    image, mask = check("isic2017", tmp_path).problems
    assert "ISIC-2017_Training_Data.zip, ISIC-2017_Training_Data/ISIC_0000001.jpg is not" in image
    assert "ISIC_0000001_segmentation.png is damaged (Bad CRC-32" in mask


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


def spoil(root: Path) -> dict[str, str]:
    """A folder with one fault of each kind; the word that `check` must say for each."""
    write_folder(root, [f"p{index}" for index in range(8)])
    images, masks = root / "images", root / "masks"
    (masks / "p0.png").unlink()
    (images / "p1.png").write_bytes((images / "p1.png").read_bytes()[:60])
    (masks / "p2.png").write_bytes(b"no picture")
    grey = np.asarray(Image.open(masks / "p3.png")).copy()
    grey[0, :3] = (1, 2, 3)
    Image.fromarray(grey).save(masks / "p3.png")
    Image.open(masks / "p4.png").resize((20, 15), Image.Resampling.NEAREST).save(masks / "p4.png")
    return {
        "p0": "without a mask",
        "p1": "damaged",
        "p2": "not a picture",
        "p3": "5 different values",
        "p4": "20×15",
    }


def test_check_reports_everything_at_once(tmp_path: Path):
    expected = spoil(tmp_path)
    calls: list[tuple[int, int]] = []
    report = check("folder", tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert len(report.problems) == len(expected)
    for sentence, (name, word) in zip(report.problems, expected.items(), strict=True):
        assert name in sentence
        assert word in sentence
    assert report.pairs == {"all": 7}
    assert report.image_sizes == {(30, 40): 6}
    assert report.mask_sizes == {(30, 40): 4, (15, 20): 1}
    assert calls == [(done, 7) for done in range(1, 8)]
    table = report.table()
    assert all(sentence in table for sentence in report.problems)
    assert "2 sizes, 20×15 to 40×30, most often 40×30 (4)" in table
    assert json.loads(json.dumps(report.to_dict()))["mask_sizes"] == {"40x30": 4, "20x15": 1}


@pytest.mark.parametrize("name", ["p0", "p1", "p2", "p3", "p4"])
def test_decode_refuses_what_check_reports(tmp_path: Path, name: str):
    spoil(tmp_path)
    for path in tmp_path.glob("*/p?.png"):
        if path.stem not in (name, "p5"):
            path.unlink()
    (sentence,) = check("folder", tmp_path).problems
    cache = tmp_path / "cache"
    message = problem_of(lambda: decode("folder", tmp_path, size=8, cache_dir=cache))
    assert message.startswith(sentence.removesuffix("."))
    assert not cache.exists() or list(cache.iterdir()) == []


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


def test_check_finds_duplicates(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c", "d", "e"])
    images = tmp_path / "images"
    shutil.copy(images / "a.png", images / "e.png")
    copy = Image.open(images / "b.png")
    copy.resize((60, 45), Image.Resampling.BICUBIC).save(images / "d.jpg", quality=80)
    (images / "d.png").unlink()
    report = check("folder", tmp_path, allow_mask_resize=True)
    same, near = report.duplicates
    assert same == ("a", "e", 0.0, True)
    assert (near.first, near.second, near.same_file) == ("b", "d", False)
    assert 0 < near.rms < datasets.DUPLICATE_RMS
    assert any("a = e (same file), b = d (differ by" in note for note in report.notes)
    assert report.to_dict()["duplicates"][0]["same_file"] is True


def test_check_finds_shared_ids_areas_and_other_files(tmp_path: Path):
    write_isic2017(tmp_path, ISIC_IDS)
    (tmp_path / "ISIC-2017_Training_Data" / "notes.csv").write_text("")
    truth = tmp_path / "ISIC-2017_Training_Part1_GroundTruth"
    Image.new("L", (40, 30)).save(truth / "ISIC_0000003_segmentation.png")
    report = check("isic2017", tmp_path)
    # ISIC_0000002 is the one id of these four that ISIC 2018's training part does not have.
    assert report.shared == {"isic2018": ["ISIC_0000001", "ISIC_0000003", "ISIC_0000004"]}
    assert report.lesion_area["validation"] == pytest.approx(12 * 15 / (30 * 40))
    assert report.lesion_area["train"] == pytest.approx(12 * 15 / (30 * 40) / 2)
    assert any("1 masks are empty: ISIC_0000003" in note for note in report.notes)
    assert any("1 other files were ignored: notes.csv" in note for note in report.notes)
    assert check("isic2017", tmp_path, against=["ph2"]).shared == {"ph2": []}


def test_decode_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path, ["a", "b"])
    first = decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.delattr(datasets, "read_image")
        again = decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache")
    assert again.path == first.path
    np.testing.assert_array_equal(again.images, first.images)
    assert decode("folder", tmp_path, size=9, cache_dir=tmp_path / "cache").path != first.path


def test_changed_files_get_a_new_cache(tmp_path: Path):
    write_folder(tmp_path, ["a", "b"])
    cache = tmp_path / "cache"
    first = decode("folder", tmp_path, size=8, cache_dir=cache)
    path = tmp_path / "masks" / "a.png"
    Image.new("L", (40, 30)).save(path)
    os.utime(path, ns=(0, time.time_ns() + 10**9))
    second = decode("folder", tmp_path, size=8, cache_dir=cache)
    assert first.masks[0].any()
    assert not second.masks[0].any()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_runs_at_once_agree(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])
    meeting = threading.Barrier(2)
    results = []

    def run() -> None:
        # Both are past the question "is it there already?" before either finishes.
        results.append(
            decode(
                "folder",
                tmp_path,
                size=8,
                cache_dir=tmp_path / "cache",
                progress=lambda done, total: done == total and meeting.wait(20),
            )
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = results
    np.testing.assert_array_equal(first.masks, second.masks)
    assert list((tmp_path / "cache").iterdir()) == [first.path]


def test_cache_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "data", ["a"])
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "from-variable"))
    assert decode("folder", tmp_path / "data", size=8).path.parent == tmp_path / "from-variable"
    monkeypatch.delenv("ULVM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    path = decode("folder", tmp_path / "data", size=8).path
    assert path.parent == tmp_path / ".cache" / "ulvm"
    assert path.name.startswith("folder-8-")
    (tmp_path / "file").write_text("")
    message = problem_of(
        lambda: decode("folder", tmp_path / "data", size=8, cache_dir=tmp_path / "file")
    )
    assert "ULVM_CACHE" in message


def test_decoded_dataset(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])
    decoded = decode("folder", tmp_path, size=24, cache_dir=tmp_path / "cache")
    assert decoded.indices(["c", "a"]).tolist() == [2, 0]
    assert "2 ids are not in the folder data: x, y" in problem_of(
        lambda: decoded.indices(["a", "x", "y"])
    )
    assert decoded.images.dtype == decoded.masks.dtype == np.uint8
    # The mask is soft, so its half-way line encloses about the rectangle's area.
    np.testing.assert_allclose(decoded.lesion_areas, 12 * 15 / (30 * 40), atol=0.02)
    decoded.images[:] = 0
    again = decode("folder", tmp_path, size=24, cache_dir=tmp_path / "cache")
    assert again.images.any()
    assert "folder: 3 pairs (all 3) at 24×24 in" in decoded.describe()


def test_shared_ids():
    assert shared_ids(["b", "a", "c"], {"c", "b", "d"}) == ["b", "c"]
    # shared with ISIC 2017: 1800 ids of its training and 121 of its validation part
    assert len(shared_ids("isic2017", "isic2018")) == 1800 + 121
    official = load_split("isic2017", "official")
    assert len(shared_ids(official.ids("validation"), "isic2018")) == 121
    assert shared_ids("ph2", "isic2018") == []
    assert "No committed ids of 'folder'" in problem_of(lambda: shared_ids("folder", []))


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
    found = datasets.find_pairs(dataset, tmp_path)
    assert [pair.id for pair in found] == [f"A_{index}" for index in range(len(images))]


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_folders_of_parts(tmp_path: Path, validation: str):
    for index, part in enumerate(["train", validation, "test"]):
        picture, mask = draw(index, 30, 40)
        save(picture, tmp_path / part / "images" / f"{index}.png")
        save(mask, tmp_path / part / "masks" / f"{index}.png")
    found = datasets.find_pairs("folder", tmp_path)
    assert [pair.part for pair in found] == ["train", "validation", "test"]


def test_grey_masks_are_thresholded_on_request(tmp_path: Path):
    picture, mask = draw(0, 30, 40)
    save(picture, tmp_path / "images" / "a.png")
    save(mask.convert("L").point(lambda value: 30 + value // 2), tmp_path / "masks" / "a.png")
    save(picture, tmp_path / "images" / "b.png")
    grey = Image.linear_gradient("L").resize((40, 30))
    save(grey, tmp_path / "masks" / "b.png")
    assert datasets.check("folder", tmp_path).problems
    assert not datasets.check("folder", tmp_path, threshold_masks=True).problems
    decoded = datasets.decode(
        "folder", tmp_path, size=32, cache_dir=tmp_path / "cache", threshold_masks=True
    )
    assert 0.4 < decoded.lesion_areas[1] < 0.6
