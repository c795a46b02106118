"""DICOM files of drawn pictures and a made-up patient; needs the extra [dicom]."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from ulvm.errors import PictureWarning
from ulvm.synthetic import draw_lesion

SPACING = (0.02, 0.025)
SIZE = (200, 300)
LESION = draw_lesion(3, SIZE, frame=False)


@pytest.fixture(autouse=True)
def library_notices() -> Iterator[None]:
    """What these packages deprecate in one another is not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PictureWarning)
        yield


def describe(picture: np.ndarray, photometric: str, sop_class: str) -> Dataset:
    """A file of one frame of a made-up patient, as a camera writes it, uncompressed."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.PatientName, made.PatientID = "Nobody^Nemo", "KEEP-4711"
    made.PatientBirthDate, made.PatientSex = "19031231", "O"
    made.StudyDate, made.StudyTime, made.StudyID = "20200229", "101112", "7"
    made.AccessionNumber, made.ReferringPhysicianName = "9", "Dr.Who"
    made.Modality, made.SeriesNumber, made.InstanceNumber = "XC", 1, 1
    made.Laterality = None
    made.Manufacturer, made.ManufacturerModelName = "drawn", "drawn"
    made.DeviceSerialNumber, made.SoftwareVersions = "1", "1"
    made.ImageType, made.PatientOrientation = ["ORIGINAL", "PRIMARY"], None
    made.ContentDate, made.ContentTime = "20200229", "101112"
    made.Rows, made.Columns = picture.shape[:2]
    made.SamplesPerPixel = 1 if picture.ndim == 2 else 3
    if picture.ndim == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = made.BitsStored = 8 * picture.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, 0
    made.PixelSpacing, made.LossyImageCompression = list(SPACING), "00"
    made.AcquisitionContextSequence = []
    made.PixelData = picture.tobytes()
    return made


def photograph(picture: np.ndarray = LESION.image_rgb, photometric: str = "RGB") -> Dataset:
    return describe(picture, photometric, uid.VLPhotographicImageStorage)


def dermoscopy() -> Dataset:
    made = describe(LESION.image_rgb, "RGB", uid.DermoscopicPhotographyImageStorage)
    made.Modality, made.RecognizableVisualFeatures = "DMS", "NO"
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = uid.generate_uid(), None
    made.LightSourcePolarization = made.EmitterColorTemperature = None
    made.ContactMethod = made.OpticalMagnificationFactor = None
    return made


def frames(count: int) -> tuple[Dataset, list[np.ndarray]]:
    """A secondary capture of several frames, each another lesion."""
    pictures = [draw_lesion(seed, SIZE, frame=False).image_rgb for seed in range(3, 3 + count)]
    made = describe(pictures[0], "RGB", uid.MultiFrameTrueColorSecondaryCaptureImageStorage)
    made.Modality, made.NumberOfFrames, made.BurnedInAnnotation = "OT", count, "NO"
    made.FrameTimeVector = [0.0] + [40.0] * (count - 1)
    made.FrameIncrementPointer = made.data_element("FrameTimeVector").tag
    made.ConversionType, made.PixelData = "DI", np.stack(pictures).tobytes()
    return made, pictures


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def encode(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, kind, **options)
    return content.getvalue()


def compress(made: Dataset, syntax: str, *coded: bytes) -> Dataset:
    made.PixelData = encapsulate(list(coded))
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = syntax
    return made
