"""DICOM in and out, on drawn pictures: read back by pydicom and highdicom, judged by dciodvfy."""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ulvm
from ulvm.cli import main
from ulvm.errors import InputError, PictureWarning
from ulvm.image import draw_overlay, read_image
from ulvm.picture import SPACING_MM, read_picture
from ulvm.predict import find_images
from ulvm.use import NOTICE

pydicom = pytest.importorskip("pydicom", reason="needs the extra [dicom]")
pytest.importorskip("highdicom", reason="needs the extra [dicom]")

import highdicom  # noqa: E402
from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.pixels import convert_color_space  # noqa: E402

from made_up_dicom import (  # noqa: E402
    LESION,
    SIZE,
    SPACING,
    compress,
    dermoscopy,
    encode,
    frames,
    library_notices,  # noqa: F401 - a fixture
    photograph,
    save,
)

PATIENT = ("Nobody", "Nemo", "KEEP-4711", "19031231", "Dr.Who")


def predict(*words: Any) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def faults(path: Path) -> list[str]:
    """What dciodvfy finds wrong."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


# Reading


@pytest.mark.parametrize("make", [photograph, dermoscopy])
def test_uncompressed_colour_comes_back_exactly(make: Any, tmp_path: Path) -> None:
    path = save(make(), tmp_path / "made.dcm")
    assert faults(path) == []  # so what we read is what a camera may write
    picture = read_picture(path)
    np.testing.assert_array_equal(np.asarray(picture), LESION.image_rgb)
    assert picture.info[SPACING_MM] == SPACING


def test_bytes_and_any_ending(tmp_path: Path) -> None:
    path = save(photograph(), tmp_path / "IM0001")
    np.testing.assert_array_equal(read_image(path), LESION.image_rgb)
    np.testing.assert_array_equal(read_image(path.read_bytes()), LESION.image_rgb)


def test_planes_one_after_another(tmp_path: Path) -> None:
    made = photograph()
    made.PlanarConfiguration = 1
    made.PixelData = LESION.image_rgb.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(read_image(save(made, tmp_path / "a.dcm")), LESION.image_rgb)


def test_luminance_and_chrominance(tmp_path: Path) -> None:
    turned = convert_color_space(LESION.image_rgb, "RGB", "YBR_FULL")
    path = save(photograph(turned, "YBR_FULL"), tmp_path / "a.dcm")
    assert np.abs(read_image(path).astype(int) - LESION.image_rgb).max() <= 3


def test_run_lengths(tmp_path: Path) -> None:
    made = photograph()
    made.compress(uid.RLELossless)
    np.testing.assert_array_equal(read_image(save(made, tmp_path / "a.dcm")), LESION.image_rgb)


@pytest.mark.parametrize(
    ("photometric", "options"),
    [("YBR_FULL_422", {"subsampling": 1}), ("YBR_FULL", {"subsampling": 0})],
)
def test_jpeg_as_cameras_store_it(
    photometric: str, options: dict[str, int], tmp_path: Path
) -> None:
    coded = encode(LESION.image_rgb, "JPEG", quality=95, **options)
    made = compress(photograph(photometric=photometric), uid.JPEGBaseline8Bit, coded)
    made.LossyImageCompression = "01"
    made.LossyImageCompressionRatio, made.LossyImageCompressionMethod = "9", "ISO_10918_1"
    path = save(made, tmp_path / "a.dcm")
    if photometric == "YBR_FULL_422":  # the other is not in the standard, but in the world
        assert faults(path) == []
    # The same coded bytes as a plain JPEG file: colours must not be turned twice or not at all.
    assert np.abs(read_image(path).astype(int) - read_image(coded)).max() <= 4


@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT"])
def test_jpeg_2000(photometric: str, tmp_path: Path) -> None:
    colours_mixed = int(photometric == "YBR_RCT")
    coded = encode(LESION.image_rgb, "JPEG2000", irreversible=False, mct=colours_mixed, no_jp2=True)
    made = compress(photograph(photometric=photometric), uid.JPEG2000Lossless, coded)
    np.testing.assert_array_equal(read_image(save(made, tmp_path / "a.dcm")), LESION.image_rgb)


def test_palette(tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    table = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    made = photograph(indices, "PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        values = (table[:, channel].astype(np.uint16) * 257).tobytes()
        setattr(made, f"{name}PaletteColorLookupTableData", values)
    np.testing.assert_array_equal(read_image(save(made, tmp_path / "a.dcm")), table[indices])


def test_grey_and_its_negative(tmp_path: Path) -> None:
    grey = LESION.image_rgb[..., 0]
    for photometric, expected in (("MONOCHROME2", grey), ("MONOCHROME1", 255 - grey)):
        path = save(photograph(grey, photometric), tmp_path / "a.dcm")
        np.testing.assert_array_equal(read_image(path), np.repeat(expected[..., None], 3, axis=2))


def test_grey_of_twelve_bits_and_windows(tmp_path: Path) -> None:
    grey = LESION.image_rgb[..., 0].astype(np.uint16) * 16
    made = photograph(grey, "MONOCHROME2")
    made.BitsStored, made.HighBit = 12, 11
    shown = read_image(save(made, tmp_path / "a.dcm"))[..., 0]
    low, high = int(grey.min()), int(grey.max())
    np.testing.assert_array_equal(shown, np.rint((grey - low) * (255 / (high - low))))
    made.WindowCenter, made.WindowWidth = 1000, 400
    shown = read_image(save(made, tmp_path / "a.dcm"))[..., 0]
    assert (shown[grey <= 800] == 0).all()
    assert (shown[grey >= 1200] == 255).all()


def test_first_of_several_frames_is_taken_and_that_is_said(tmp_path: Path) -> None:
    made, pictures = frames(2)
    path = save(made, tmp_path / "a.dcm")
    assert faults(path) == []
    with pytest.warns(PictureWarning, match="2 frames; the first is taken"):
        picture = read_image(path)
    np.testing.assert_array_equal(picture, pictures[0])


@pytest.mark.parametrize("place", ["groups", "scanner", "nowhere", "zero", "detector"])
def test_where_the_spacing_is_found(place: str, tmp_path: Path) -> None:
    made = photograph()
    del made.PixelSpacing
    if place == "groups":
        measures, group = Dataset(), Dataset()
        measures.PixelSpacing = list(SPACING)
        group.PixelMeasuresSequence = [measures]
        made.SharedFunctionalGroupsSequence = [group]
    elif place == "scanner":
        made.NominalScannedPixelSpacing = list(SPACING)
    elif place == "zero":
        made.PixelSpacing = [0, 0]
    elif place == "detector":
        made.ImagerPixelSpacing = list(SPACING)
    expected = SPACING if place in ("groups", "scanner") else None
    found = read_picture(save(made, tmp_path / "a.dcm")).info.get(SPACING_MM)
    assert found == expected


# What is refused


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_image(path)
    for word in words:
        assert word in str(caught.value)
    assert not any(part in str(caught.value) for part in PATIENT)


def test_files_without_a_picture_for_us(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    made = photograph()
    for keyword in ("PhotometricInterpretation", "Rows", "Columns", "PixelData"):
        delattr(made, keyword)
    refused(save(made, path), "without a picture")
    bits = photograph(LESION.mask.astype(np.uint8), "MONOCHROME2")
    bits.BitsAllocated = bits.BitsStored = 1
    bits.HighBit = 0
    refused(save(bits, path), "one bit a pixel")
    refused(save(photograph(photometric="YBR_PARTIAL_420"), path), "YBR_PARTIAL_420", "PNG")
    path.write_bytes(path.read_bytes()[:2000])
    refused(path, "a.dcm")


def test_damaged_pixels_and_unknown_codes(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    made = photograph()
    made.PixelData = made.PixelData[:1000]
    refused(save(made, path), "damaged")
    coded = encode(LESION.image_rgb, "JPEG")
    refused(save(compress(photograph(), uid.JPEGBaseline8Bit, coded[:300]), path), "damaged")
    refused(save(compress(photograph(), uid.MPEG4HP41, coded), path), "MPEG-4", "PNG")


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import JPEGLosslessDecoder

    monkeypatch.setattr(JPEGLosslessDecoder, "_available", {})
    path = save(compress(photograph(), uid.JPEGLossless, b"\0" * 100), tmp_path / "a.dcm")
    refused(path, "JPEG Lossless", "pip install pylibjpeg")


def test_a_file_deflated_as_a_whole(tmp_path: Path) -> None:
    made = photograph()
    made.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    refused(save(made, tmp_path / "a.dcm"), "deflated", "uncompressed")


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path) -> None:
    made = compress(photograph(), uid.JPEGBaseline8Bit, b"\0" * 100)
    made.Rows = made.Columns = 60_000
    refused(save(made, tmp_path / "a.dcm"), "60000×60000")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(photograph(), tmp_path / "a.dcm")
    monkeypatch.delitem(sys.modules, "ulvm.use.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(path, "DICOM", "pip install '.[dicom]'")


# Results


@pytest.mark.parametrize("make", [photograph, dermoscopy])
def test_predict_writes_results_that_the_validator_accepts(make: Any, tmp_path: Path) -> None:
    made = make()
    path = save(made, tmp_path / "made.dcm")
    done = predict(path, "--dicom-seg", "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout)
    segmentation = ulvm.load()(LESION.image_rgb)
    assert line["area_mm2"] == pytest.approx(segmentation.area_pixels * SPACING[0] * SPACING[1])
    written = [Path(name) for name in line["dicom_paths"]]
    assert [each.name for each in written] == ["made_seg.dcm", "made_outline.dcm"]
    assert [faults(each) for each in written] == [[], []]

    seg = highdicom.seg.segread(written[0])
    frame = seg.get_pixels_by_source_instance([made.SOPInstanceUID])
    np.testing.assert_array_equal(frame[0, ..., 0], segmentation.mask)
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["Skin lesion"]
    assert seg.SegmentSequence[0].SegmentDescription == NOTICE
    assert seg.Modality == "SEG"
    assert "not for diagnosis" in seg.SeriesDescription
    if "FrameOfReferenceUID" in made:
        assert seg.FrameOfReferenceUID == made.FrameOfReferenceUID

    capture = pydicom.dcmread(written[1])
    assert capture.SOPClassUID == uid.SecondaryCaptureImageStorage
    expected = draw_overlay(LESION.image_rgb, segmentation.mask, opacity=0)
    np.testing.assert_array_equal(capture.pixel_array, expected)
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == made.SOPInstanceUID
    assert NOTICE in capture.DerivationDescription
    assert "not for diagnosis" in capture.SeriesDescription
    assert list(capture.PixelSpacing) == list(SPACING)
    for result in (seg, capture):
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate"):
            assert result[keyword].value == made[keyword].value
        assert result.SeriesInstanceUID != made.SeriesInstanceUID
    assert seg.SeriesInstanceUID != capture.SeriesInstanceUID


def test_every_frame_is_segmented(tmp_path: Path) -> None:
    made, pictures = frames(3)
    path = save(made, tmp_path / "clip.dcm")
    done = predict(path, "--dicom-seg", "--json", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "3 frames" in done.stderr
    written = [Path(name) for name in json.loads(done.stdout)["dicom_paths"]]
    assert [each.name for each in written] == [
        *("clip_seg.dcm", "clip_seg-2.dcm", "clip_seg-3.dcm"),
        *("clip_outline.dcm", "clip_outline-2.dcm", "clip_outline-3.dcm"),
    ]
    assert [faults(each) for each in written] == [[]] * 6
    segment = ulvm.load()
    segmentations = [highdicom.seg.segread(each) for each in written[:3]]
    captures = [pydicom.dcmread(each) for each in written[3:]]
    for number, picture in enumerate(pictures, start=1):
        mask = segment(picture).mask
        seg, capture = segmentations[number - 1], captures[number - 1]
        (frame,) = seg.get_pixels_by_source_frame(made.SOPInstanceUID, [number])
        np.testing.assert_array_equal(frame[..., 0], mask)
        np.testing.assert_array_equal(capture.pixel_array, draw_overlay(picture, mask, opacity=0))
        assert seg.InstanceNumber == capture.InstanceNumber == number
        assert capture.SourceImageSequence[0].ReferencedFrameNumber == number
    for kind in (segmentations, captures):
        assert len({each.SeriesInstanceUID for each in kind}) == 1


def test_results_of_a_frame_are_not_replaced_by_those_of_another_file(tmp_path: Path) -> None:
    """They had one name, so a patient's study got another patient's outline."""
    for name, make in (("x/a.dcm", frames(2)[0]), ("y/a.dcm", photograph()), ("x/a-2.dcm", None)):
        made = make or photograph()
        made.PatientID = name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(made, tmp_path / name)
    for _ in range(2):  # and they aren't taken for pictures
        words = [tmp_path / "x", tmp_path / "y/a.dcm"]
        done = predict(*words, "--dicom-seg", "--json", "--out", tmp_path / "x")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [len(row["dicom_paths"]) for row in rows] == [2, 4, 2]
        for row in rows:
            owners = {pydicom.dcmread(path).PatientID for path in row["dicom_paths"]}
            assert owners == {Path(row["source"]).relative_to(tmp_path).as_posix()}


def test_standard_input_gets_no_dicom_results(tmp_path: Path) -> None:
    content = save(photograph(), tmp_path / "a.dcm").read_bytes()
    words = ["predict", "-", "--dicom-seg", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words, input=content)
    assert "Standard input gives no DICOM results" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_several_classes_become_segments(tmp_path: Path) -> None:
    from ulvm.segmenter import Segmentation
    from ulvm.use.dicom_results import write_results

    labels = np.zeros(SIZE, np.uint8)
    labels[10:50, 20:60], labels[60:90, 100:200] = 3, 1  # of class 2 there is nothing
    found = Segmentation(
        np.zeros((4, 8, 8), np.float32),
        labels != 0,
        labels,
        None,
        1.0,
        spot=labels != 0,
        seen=np.zeros((8, 8, 3), np.uint8),
    )
    made = photograph()
    path = save(made, tmp_path / "a.dcm")
    written = write_results(path, found, lambda _: found, tmp_path / "b", lambda _: None)
    assert faults(written[0]) == []
    seg = highdicom.seg.segread(written[0])
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["Class 1", "Class 3"]
    frame = seg.get_pixels_by_source_instance([made.SOPInstanceUID])[0]
    np.testing.assert_array_equal(frame[..., 0], labels == 1)
    np.testing.assert_array_equal(frame[..., 1], labels == 3)


def test_nothing_found_gives_the_picture_alone(tmp_path: Path) -> None:
    path = save(photograph(np.full((*SIZE, 3), 90, np.uint8)), tmp_path / "a.dcm")
    done = predict(path, "--dicom-seg", "--threshold", "0.999", "--json", "--out", tmp_path)
    line = json.loads(done.stdout)
    assert line["area_mm2"] == 0
    assert [Path(name).name for name in line["dicom_paths"]] == ["a_outline.dcm"]


def test_no_word_about_the_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Values that the packages would complain about, by repeating them."""
    made = photograph()
    made.PatientName = "Nemo Nobody"
    for keyword, value in (("PatientSex", "Nobody"), ("PatientBirthDate", "KEEP-4711")):
        made.add_new(pydicom.tag.Tag(keyword), "LO", value)
    path = save(made, tmp_path / "a.dcm")
    warnings.simplefilter("always")
    done = predict(path, "--dicom-seg", "--overlay", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    said = done.output + caplog.text + "".join(str(each.message) for each in recwarn)
    names = "".join(each.name for each in tmp_path.iterdir())
    assert [part for part in PATIENT if part in said + names] == []
    assert not logging.getLogger("highdicom").disabled
    assert pydicom.dcmread(tmp_path / "a_seg.dcm").PatientName == "Nemo Nobody"


def test_notes_of_other_pictures_are_said_while_results_are_made() -> None:
    """Warnings belong to the whole process: another thread's note was lost."""
    from ulvm.use.dicom_results import _silence

    with pytest.warns(PictureWarning, match="of another"), _silence():
        warnings.warn("of another picture", PictureWarning, stacklevel=1)


def test_names_in_other_letters(tmp_path: Path) -> None:
    made = photograph()
    made.PatientName = "Müller^Jürgen"
    predict(save(made, tmp_path / "a.dcm"), "--dicom-seg", "--out", tmp_path)
    for name in ("a_seg.dcm", "a_outline.dcm"):
        assert pydicom.dcmread(tmp_path / name).PatientName == "Müller^Jürgen"


def test_results_are_replaced_and_never_taken_for_pictures(tmp_path: Path) -> None:
    save(photograph(), tmp_path / "a.dcm")
    for _ in range(2):
        done = predict(tmp_path, "--dicom-seg", "--out", tmp_path)
        assert done.exit_code == 0, done.output
        assert "1 of 1 pictures" in done.output
    (tmp_path / "a_seg.dcm").write_bytes(b"someone else's")
    done = predict(tmp_path, "--dicom-seg", "--out", tmp_path)
    assert done.exit_code == 1
    assert "in the way of a result" in done.output


def test_names_that_are_numbers_keep_their_end(tmp_path: Path) -> None:
    for name in ("1.2.840.1", "1.2.840.2"):
        save(photograph(), tmp_path / name)
    sources = find_images([str(tmp_path / "1.2.840.1"), str(tmp_path / "1.2.840.2")])
    assert [str(source.output) for source in sources] == ["1.2.840.1", "1.2.840.2"]


def test_what_is_no_dicom_file_gets_no_dicom_results(tmp_path: Path) -> None:
    ulvm.image.write_png(tmp_path / "photo.png", LESION.image_rgb)
    done = predict(tmp_path / "photo.png", "--dicom-seg", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "photo.png is no DICOM file" in done.output


def test_a_file_that_belongs_to_no_study(tmp_path: Path) -> None:
    made = photograph()
    del made.StudyInstanceUID
    done = predict(save(made, tmp_path / "a.dcm"), "--dicom-seg", "--out", tmp_path)
    assert done.exit_code == 1
    assert "which patient, study and series" in done.output
    assert not any(part in done.output for part in PATIENT)


def test_the_line_says_mm2(tmp_path: Path) -> None:
    done = predict(save(photograph(), tmp_path / "a.dcm"), "--out", tmp_path)
    assert " mm², box" in done.stdout


def test_results_of_a_picture_of_unknown_scale(tmp_path: Path) -> None:
    made = photograph()
    del made.PixelSpacing
    done = predict(save(made, tmp_path / "a.dcm"), "--dicom-seg", "--json", "--out", tmp_path)
    line = json.loads(done.stdout)
    assert line["area_mm2"] is None
    assert [faults(Path(name)) for name in line["dicom_paths"]] == [[], []]
    seg = highdicom.seg.segread(line["dicom_paths"][0])
    frame = seg.get_pixels_by_source_instance([made.SOPInstanceUID])[0, ..., 0]
    assert frame.sum() == line["area_pixels"]
