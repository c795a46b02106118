"""`check` says everything that is wrong or worth knowing."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from made_up_folders import (
    ISIC_IDS,
    problem_of,
    spoil,
    write_folder,
    write_isic2017,
    zip_folder,
)
from ulvm.datasets import check, shared_ids
from ulvm.looks import NEAR
from ulvm.splits import load_split
from ulvm.synthetic import draw_lesion


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


def test_check_finds_duplicates(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c", "d", "e", "f"])
    images = tmp_path / "images"
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        Image.fromarray(draw_lesion(seed, (96, 128)).image_rgb).save(images / f"{name}.png")
    shutil.copy(images / "a.png", images / "e.png")
    copy = Image.open(images / "b.png").transpose(Image.Transpose.ROTATE_90)
    copy.resize((144, 192), Image.Resampling.BICUBIC).save(images / "d.jpg", quality=80)
    (images / "d.png").unlink()
    report = check("folder", tmp_path, allow_mask_resize=True)
    same, near = report.duplicates
    assert same == ("a", "e", 0, True)
    assert (near.first, near.second, near.same_file) == ("b", "d", False)
    assert near.bits <= NEAR
    assert any("a = e (same file), b = d (differ in " in note for note in report.notes)
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
    (truth / "a\x1b[2J\n.csv").write_text("")
    assert "notes.csv, a\\x1b[2J\\x0a.csv" in check("isic2017", tmp_path).table()
    assert check("isic2017", tmp_path, against=["ph2"]).shared == {"ph2": []}


def test_check_doubts_inverted_masks(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])
    for count, name in enumerate("abc"):
        assert any("four corners" in n for n in check("folder", tmp_path).notes) is (count > 1)
        path = tmp_path / "masks" / f"{name}.png"
        Image.open(path).point(lambda value: 255 - value).save(path)
    assert any(note.startswith("3 masks hold") for note in check("folder", tmp_path).notes)


def test_check_names_patients_in_two_parts(tmp_path: Path):
    write_isic2017(tmp_path, ISIC_IDS)
    table = tmp_path / "groups.csv"
    table.write_text("id,group\nISIC_0000001,p1\nISIC_0000003,p1\nISIC_0000004,p2\n")
    notes = check("isic2017", tmp_path).notes
    assert not any("more than one part" in note for note in notes)
    assert any("1 ids are not in groups.csv: ISIC_0000002" in note for note in notes)
    table.write_text(table.read_text().replace("p2", "p1"))
    notes = check("isic2017", tmp_path).notes
    assert any("1 groups of groups.csv are in more than one part: p1" in note for note in notes)
    table.write_text("picture\n")
    assert any("has no column 'id'" in note for note in check("isic2017", tmp_path).notes)


def test_shared_ids():
    assert shared_ids(["b", "a", "c"], {"c", "b", "d"}) == ["b", "c"]
    # shared with ISIC 2017: 1800 ids of its training and 121 of its validation part
    assert len(shared_ids("isic2017", "isic2018")) == 1800 + 121
    official = load_split("isic2017", "official")
    assert len(shared_ids(official.ids("validation"), "isic2018")) == 121
    assert shared_ids("ph2", "isic2018") == []
    assert "There are no committed ids of 'folder'" in problem_of(lambda: shared_ids("folder", []))


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
