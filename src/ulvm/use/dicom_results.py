"""Masks back into DICOM, through highdicom: a segmentation, and the picture with the outline drawn.

Both belong to the study of the file that was segmented, so they hold its patient's data as that
file does; nothing of these data is printed or goes into a message or a file name. Both say that
they are for research. The outline is drawn into a secondary capture because most viewers don't show
a segmentation over a colour picture.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ulvm.errors import InputError, PictureWarning, install_extra
from ulvm.files import write_atomically
from ulvm.image import draw_overlay
from ulvm.limits import PIXELS
from ulvm.picture import SIGNATURE
from ulvm.use import NOTICE
from ulvm.version import __version__

if TYPE_CHECKING:
    import pydicom

    from ulvm.segmenter import Segmentation

SEGMENTATION, OUTLINE = "_seg", "_outline"  # `predict.py` knows them

_SEGMENTATION_SERIES = "ulvm: lesion, for research, not for diagnosis"
_OUTLINE_SERIES = "ulvm: outline drawn, for research, not for diagnosis"
_MAKER = "ulvm"
_MODEL = "UltraLight VM-UNet"
# The first 128 bytes of a DICOM file are free; as in PNG files, this is what lets ulvm replace it.
_PREAMBLE = (b"tEXt" + "\0".join(SIGNATURE).encode()).ljust(128, b"\0")
_SEXES = ("M", "F", "O", "")
_FIRST_SERIES = 9001  # clear of a camera's own
# Warnings and loggers belong to the whole process, so one file is made at a time.
_LOCK = threading.Lock()


def write_results(
    source: str | os.PathLike[str],
    first: Segmentation,
    segment: Callable[[Image.Image], Segmentation],
    output: Path,
    require_replaceable: Callable[[Path], None],
) -> list[Path]:
    """Write ``<output>_seg.dcm`` and ``<output>_outline.dcm``; of further frames ``…_seg-2.dcm``.

    Args:
        source: The DICOM file that was segmented.
        first: What was found in its first frame.
        segment: Called with each further frame, a Pillow image of mode RGB.
        output: Path without ending.
        require_replaceable: Called with each path before it is written; raises if it must stay.

    Returns:
        The files written, segmentations first. A frame without a lesion gets an outline file alone,
        for a segmentation holds at least one pixel.

    Raises:
        InputError: The source is no DICOM file, or lacks what results must repeat.
    """
    try:
        import highdicom  # noqa: F401 - asked for first, so that its absence is one sentence
        import pydicom

        from ulvm.use import dicom
    except ModuleNotFoundError as error:
        raise InputError(
            f"DICOM results need the package {error.name}, which is not installed",
            "",
            install_extra("dicom"),
        ) from error
    name = os.fspath(source)
    with Path(source).open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            raise InputError(
                f"{name} is no DICOM file",
                "DICOM results belong to a patient's study, which only such a file names",
                "leave --dicom-seg out",
            )
        file.seek(0)
        header = dicom.read_header(file, name)
        pixels = header.Rows * header.Columns * dicom.count_frames(header)
        if pixels > PIXELS:
            raise InputError(
                f"{name} has {pixels:,} pixels in all its frames",
                f"up to {PIXELS:,} can be segmented into one file",
                "leave --dicom-seg out, or write fewer frames to a file",
            )
        frames = [_as_rgb(dicom.read_frame(file, header, 0, name))]
        found = [first]
        for index in range(1, dicom.count_frames(header)):
            frames.append(_as_rgb(dicom.read_frame(file, header, index, name)))
            found.append(segment(Image.fromarray(frames[-1])))
    with _silence():
        try:
            whole = _tidy(pydicom.dcmread(name, stop_before_pixels=True))
            results = _segmentations(whole, found, output) | _outlines(whole, frames, found, output)
        except InputError:
            raise
        except Exception as error:  # Their messages may hold a patient's data.
            raise InputError(
                f"no DICOM results can be made for {name} ({type(error).__name__})",
                "it must say which patient, study and series it belongs to, as the standard asks",
                "check it with dciodvfy, or leave --dicom-seg out",
            ) from None
        for path in results:
            require_replaceable(path)
        for path, dataset in results.items():
            _write(path, dataset)
    return list(results)


def _segmentations(
    source: pydicom.Dataset, found: Sequence[Segmentation], output: Path
) -> dict[Path, Any]:
    """For each frame that has any a segmentation, a segment a class, all in one series.

    highdicom makes one for several frames only where they have places in space, so each is given
    to it as a picture of its own.
    """
    import highdicom
    from highdicom.sr import CodedConcept
    from pydicom import uid

    series = highdicom.UID()
    single = copy.deepcopy(source)
    is_multi_frame = "NumberOfFrames" in source
    if is_multi_frame:
        del single.NumberOfFrames
        single.SOPClassUID = uid.SecondaryCaptureImageStorage
    family = CodedConcept("123109", "DCM", "Artificial Intelligence")
    maker = highdicom.AlgorithmIdentificationSequence(
        name=_MODEL, version=__version__, family=family
    )
    segmentations = {}
    for number, each in enumerate(found, start=1):
        labels = each.mask.astype(np.uint8) if each.labels is None else each.labels
        present = [int(label) for label in np.unique(labels) if label]
        if not present:
            continue
        segments = []
        for index, label in enumerate(present, start=1):
            segment = highdicom.seg.SegmentDescription(
                segment_number=index,
                segment_label="Skin lesion" if each.labels is None else f"Class {label}",
                segmented_property_category=CodedConcept(
                    "49755003", "SCT", "Morphologically Abnormal Structure"
                ),
                segmented_property_type=CodedConcept("52988006", "SCT", "Lesion"),
                anatomic_regions=[CodedConcept("39937001", "SCT", "Skin")],
                algorithm_type="AUTOMATIC",
                algorithm_identification=maker,
            )
            segment.SegmentDescription = NOTICE
            segments.append(segment)
        segmentation = highdicom.seg.Segmentation(
            source_images=[single],
            pixel_array=np.searchsorted([0, *present], labels).astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            pixel_measures=_measures(source),
            content_label="LESION",
            series_description=_SEGMENTATION_SERIES,
            **_common(series, _FIRST_SERIES, number),
        )
        segmentation.PatientOrientation = source.get("PatientOrientation")
        if is_multi_frame:
            _refer_to_frame(segmentation, source, number)
        segmentations[_path(output, number, SEGMENTATION)] = segmentation
    return segmentations


def _refer_to_frame(segmentation: Any, source: pydicom.Dataset, number: int) -> None:
    """Name a frame of the source wherever the segmentation refers to the source."""

    def name_class(dataset: Any, element: Any) -> None:
        name = "ReferencedSOPInstanceUID"
        if element.keyword == name and element.value == source.SOPInstanceUID:
            dataset.ReferencedSOPClassUID = source.SOPClassUID

    segmentation.walk(name_class)
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number


def _measures(source: pydicom.Dataset) -> Any:
    """The size of a pixel; a surface has no thickness, but readers ask for one: that of a pixel."""
    import highdicom

    from ulvm.use.dicom import find_spacing_mm

    spacing = find_spacing_mm(source)
    return spacing and highdicom.PixelMeasuresSequence(spacing, slice_thickness=min(spacing))


def _outlines(
    source: pydicom.Dataset,
    frames: Sequence[npt.NDArray[np.uint8]],
    found: Sequence[Segmentation],
    output: Path,
) -> dict[Path, Any]:
    """A secondary capture for each frame, all in one series."""
    import highdicom
    from pydicom.dataset import Dataset

    series = highdicom.UID()
    captures = {}
    for number, (frame, segmentation) in enumerate(zip(frames, found, strict=True), start=1):
        capture = highdicom.sc.SCImage.from_ref_dataset(
            source,
            draw_overlay(frame, segmentation.mask, opacity=0),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # highdicom wants one; the true one is set below
            pixel_spacing=segmentation.spacing_mm,
            series_description=_OUTLINE_SERIES,
            **_common(series, _FIRST_SERIES + 1, number),
        )
        capture.PatientOrientation = source.get("PatientOrientation")
        capture.Laterality = source.get("Laterality")
        capture.ImageType = ["DERIVED", "SECONDARY"]
        capture.BurnedInAnnotation = "YES"
        capture.DerivationDescription = f"Outline of a lesion by {_MODEL}. {NOTICE}"
        for keyword in (
            "RecognizableVisualFeatures",
            "LossyImageCompression",
            "LossyImageCompressionRatio",
            "LossyImageCompressionMethod",
        ):
            if keyword in source:
                setattr(capture, keyword, source[keyword].value)
        reference = Dataset()
        reference.ReferencedSOPClassUID = source.SOPClassUID
        reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
        if len(frames) > 1:
            reference.ReferencedFrameNumber = number
        capture.SourceImageSequence = [reference]
        captures[_path(output, number, OUTLINE)] = capture
    return captures


def _path(output: Path, number: int, kind: str) -> Path:
    """The number comes last: before, the results would have the name of those of ``a-2.dcm``."""
    return output.with_name(f"{output.name}{kind}{'' if number == 1 else f'-{number}'}.dcm")


def _common(series: str, series_number: int, instance_number: int) -> dict[str, Any]:
    import highdicom

    return {
        "series_instance_uid": series,
        "series_number": series_number,
        "sop_instance_uid": highdicom.UID(),
        "instance_number": instance_number,
        "manufacturer": _MAKER,
        "manufacturer_model_name": _MODEL,
        "software_versions": __version__,
        "device_serial_number": __version__,
        "specific_character_set": "ISO_IR 192",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
    }


def _tidy(source: pydicom.Dataset) -> pydicom.Dataset:
    """Without the values that highdicom would refuse; all of them may be left empty."""
    from pydicom.valuerep import DA, TM

    if source.get("PatientSex") not in _SEXES:
        source.PatientSex = None
    for keyword, kind in (
        ("PatientBirthDate", DA),
        ("StudyDate", DA),
        ("StudyTime", TM),
    ):
        try:
            kind(source.get(keyword) or None)
        except Exception:
            setattr(source, keyword, None)
    for keyword in ("PatientID", "PatientName", "AccessionNumber", "StudyID"):
        if keyword not in source:
            setattr(source, keyword, None)
    return source


def _write(path: Path, dataset: Any) -> None:
    dataset.preamble = _PREAMBLE
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_atomically(path, content.getbuffer())


def _as_rgb(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warning and no line of a log: both packages put names and dates of patients into them."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=PictureWarning)  # of other threads
        before = [each.disabled for each in loggers]
        levels = [each.level for each in loggers]
        try:
            for each in loggers:
                each.disabled = True
                each.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for each, disabled, level in zip(loggers, before, levels, strict=True):
                each.disabled = disabled
                each.setLevel(level)
