"""DICOM files: photographs, dermoscopy and others, through pydicom; of the extra ``[dicom]``.

Only the elements that describe the picture are read here, so patient data are not even parsed.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.pixels import pixel_array as decode_frame
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless, SegmentationStorage

from ulvm.errors import InputError, PictureWarning
from ulvm.grey import bits_of
from ulvm.picture import SPACING_MM, size_text, walk_jpeg

_PICTURE_TAGS = [
    "SOPClassUID",
    "ImageType",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelSpacing",
    "NominalScannedPixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    *(
        f"{kind}{colour}PaletteColorLookupTable{part}"
        for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for colour in ("Red", "Green", "Blue", "Alpha")
    ),
]
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_CONTAINER = b"\0\0\0\x0cjP  "  # how a file of JPEG 2000 begins; DICOM wants it without that
_JPEG_SIDES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers that state them
_META_BYTES = 2048  # more than the part of a file that says how the rest is stored

# pydicom itself names no package that is missing, only its own plug-ins.
_MORE_DECODERS = "run pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or python-gdcm"


class DicomImageFile(ImageFile):
    """The first frame of a DICOM file as Pillow's, in mode RGB or L, decoded when it is loaded.

    Args:
        fp: A DICOM file, at its beginning.
        filename: What to call it in messages.

    Raises:
        InputError: It holds no picture, or one that can't be decoded here.
    """

    format = "DICOM"
    format_description = "DICOM picture"

    def _open(self) -> None:
        self._header: pydicom.Dataset | None = read_header(self.fp, self._name())
        header = self._header
        self._size = (int(header.Columns), int(header.Rows))
        self._mode = "L" if header.PhotometricInterpretation in _GREYS else "RGB"
        self.tile = []
        spacing = find_spacing_mm(header)
        if spacing:
            self.info[SPACING_MM] = spacing
        if (count := count_frames(header)) > 1:
            said = f"{self._name()} has {count} frames; the first is taken, by --dicom-seg all"
            warnings.warn(said, PictureWarning, stacklevel=2)

    def _name(self) -> str:
        return os.fsdecode(self.filename)

    def load(self) -> Any:
        """Decode the frame, once."""
        if self._header is not None:
            frame = read_frame(self.fp, self._header, 0, self._name())
            self.im = Image.fromarray(frame).im
            self._header = None
        return super().load()


def read_header(file: Any, name: str) -> pydicom.Dataset:
    """What describes the picture, without pixels and without what describes the patient.

    Raises:
        InputError: As ``DicomImageFile``.
    """
    _refuse_deflated(file, name)
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_PICTURE_TAGS))
        syntax = UID(header.file_meta.TransferSyntaxUID)
        photometric = str(header.get("PhotometricInterpretation", ""))
        bits, segments = header.get("BitsAllocated"), header.get("SOPClassUID", "")
    except Exception as error:  # pydicom raises nearly any type, with values in its messages.
        raise _damaged(name, error) from None
    if not photometric or not header.get("Rows") or not header.get("Columns"):
        raise InputError(
            f"{name} is a DICOM file without a picture",
            "photographs, dermoscopy and other pictures can be read",
            "name the file that holds the picture",
        )
    if bits == 1:
        kind = "a segmentation" if segments == SegmentationStorage else "one bit a pixel"
        raise InputError(
            f"{name} is a DICOM file of {kind}",
            "a photograph has 8 or 16 bits a pixel",
            "name the file that holds the picture",
        )
    if photometric not in (*_COLOURS, *_GREYS, _PALETTE) or bits not in (8, 16, 32):
        raise InputError(
            f"{name} is a DICOM file whose pixels are {photometric or 'unnamed'}, {bits} bits each",
            f"{', '.join((*_COLOURS, *_GREYS, _PALETTE))} of 8, 16 or 32 bits can be read",
            "export its picture as PNG with your DICOM viewer",
        )
    if header.get("SamplesPerPixel") != (3 if photometric in _COLOURS else 1):
        raise InputError(
            f"{name} is a DICOM file of {photometric} pixels of "
            f"{header.get('SamplesPerPixel')} samples each",
            "one of the two is wrong",
            "export its picture as PNG with your DICOM viewer",
        )
    if syntax.is_compressed:
        _require_decoder(syntax, name)
    return header


def count_frames(header: pydicom.Dataset) -> int:
    """Frames of the file, at least 1."""
    return int(header.get("NumberOfFrames") or 1)


def read_frame(file: Any, header: pydicom.Dataset, index: int, name: str) -> npt.NDArray[np.uint8]:
    """One frame as a viewer shows it.

    Grey of more than eight bits, or with a window, is scaled by its own minimum and maximum.

    Args:
        file: The DICOM file, anywhere.
        header: Of it, from ``read_header``.
        index: Of the frame, from 0.
        name: What to call the file in messages.

    Returns:
        uint8 (height, width, 3) or, grey, (height, width).

    Raises:
        InputError: The frame can't be decoded.
    """
    try:
        syntax = UID(header.file_meta.TransferSyntaxUID)
        if syntax.is_compressed and syntax != RLELossless:
            _check_coded_frame(file, header, index, name)
        file.seek(0)
        stored = decode_frame(file, index=index)
        photometric = header.PhotometricInterpretation
        if photometric == _PALETTE:
            _check_palette(header, syntax)
            colours = apply_color_lut(stored, header)
            return _eight_bits(colours, np.iinfo(colours.dtype).bits, name)
        if photometric in _COLOURS:
            return _eight_bits(stored, int(header.BitsStored), name)
        return _show_grey(stored, header)
    except (MemoryError, PictureWarning):
        raise
    except Exception as error:
        raise _damaged(name, error) from None


def _check_coded_frame(file: Any, header: pydicom.Dataset, index: int, name: str) -> None:
    """Refuse a coded picture of other sides than the header's: a decoder would cut its rows anew,
    or take gigabytes for a small file.

    And a JPEG 2000 in a container with a box that has no length, at which pydicom 3.0 never ends.
    """
    file.seek(0)
    pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[])
    file.seek(12, os.SEEK_CUR)  # what the pixels are, and how long
    table = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
    frame = get_frame(
        file,
        index,
        number_of_frames=count_frames(header),
        extended_offsets=table if all(table) else None,
    )
    at = 12
    while frame.startswith(_CONTAINER) and at < len(frame) and frame[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(frame[at : at + 4])
        if length < 8:
            raise ValueError("a box without a length")
        at += length
    if frame.startswith(b"\xff\xd8"):  # of all kinds of JPEG
        sides = {
            struct.unpack_from(">HH", segment, 5)
            for marker, segment in walk_jpeg(frame)
            if marker in _JPEG_SIDES
        }
    else:
        sides = {Jpeg2KImageFile(io.BytesIO(frame)).size[::-1]}
    if sides != {(header.Rows, header.Columns)}:
        coded = ", ".join(size_text(*each) for each in sides)
        raise InputError(
            f"{name} is a DICOM file of {size_text(header.Rows, header.Columns)} pixels, whose "
            f"compressed picture has {coded or 'no size'}",
            "",
            "export its picture as PNG with your DICOM viewer",
        )


def _check_palette(header: pydicom.Dataset, syntax: UID) -> None:
    """Refuse segments that stand for more colours than the palette has: few bytes would fill all
    memory. And segments that refer to others, of which photographs have none."""
    count, _, bits = header.RedPaletteColorLookupTableDescriptor
    entry = np.dtype("u1" if bits == 8 else "<u2" if syntax.is_little_endian else ">u2")
    for colour in ("Red", "Green", "Blue", "Alpha"):
        data = header.get(f"Segmented{colour}PaletteColorLookupTableData") or b""
        entries = np.frombuffer(data, entry, len(data) // entry.itemsize).tolist()
        at = colours = 0
        while at + 1 < len(entries):
            kind, length = entries[at : at + 2]
            at += 3 if kind == 1 else 2 + length
            colours += length
            if kind > 1 or colours > (count or 2**16):
                raise ValueError("segments of a palette")


def find_spacing_mm(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Distance of rows and of columns in mm, where the file states it.

    Of the picture itself, or of the functional groups of a file of many frames, or of the scanner
    that took a secondary capture. What a detector sees before magnification is not taken.
    """
    for given in _spacings(header):
        try:
            rows, columns = (float(value) for value in given)
        except (TypeError, ValueError):
            continue
        if all(math.isfinite(value) and value > 0 for value in (rows, columns)):
            return rows, columns
    return None


def _spacings(header: pydicom.Dataset) -> Iterator[Any]:
    yield header.get("PixelSpacing")
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (header.get(groups) or [])[:1]:
            for measures in group.get("PixelMeasuresSequence") or []:
                yield measures.get("PixelSpacing")
    yield header.get("NominalScannedPixelSpacing")


def _show_grey(stored: npt.NDArray[Any], header: pydicom.Dataset) -> npt.NDArray[np.uint8]:
    values = apply_voi_lut(apply_modality_lut(stored, header), header)
    if values.dtype != np.uint8 or header.BitsStored != 8:
        values = values.astype(np.float64)
        low, high = values.min(), values.max()
        values = np.rint((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    shown: npt.NDArray[np.uint8] = values
    return 255 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown


def _eight_bits(samples: npt.NDArray[Any], bits: int, name: str) -> npt.NDArray[np.uint8]:
    """Samples of this many bits as eight; also copied, for decoders give read-only arrays."""
    if bits == 16 and (found := bits_of(samples.max())) < bits:  # which would be all but black
        said = f"{name} holds {found}-bit samples: they are scaled by {2**found - 1}, not 65535"
        warnings.warn(said, PictureWarning, stacklevel=2)
        bits = found
    shifted: npt.NDArray[np.uint8] = (samples >> max(bits - 8, 0)).astype(np.uint8)
    return shifted


def _refuse_deflated(file: Any, name: str) -> None:
    """Refuse a file that is compressed as a whole: a small one can fill all memory."""
    is_deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(_META_BYTES)
    file.seek(0)
    if is_deflated:
        raise InputError(
            f"{name} is a DICOM file that is deflated as a whole",
            "pictures compressed one by one, and uncompressed ones, can be read",
            "save it uncompressed with your DICOM viewer",
        )


def _require_decoder(syntax: UID, name: str) -> None:
    try:
        decoder: Any = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise InputError(
            f"{name} is compressed as {syntax.name}, which no installed package decodes",
            "",
            _MORE_DECODERS if decoder else "export its picture as PNG with your DICOM viewer",
        )


def _damaged(name: str, error: Exception) -> InputError:
    """Without the error's own words, which may hold values of the file."""
    if isinstance(error, InputError):
        return error
    return InputError(
        f"{name} is a DICOM file that is damaged or of an unsupported variant "
        f"({type(error).__name__})",
        "",
        "copy it again, or export its picture as PNG with your DICOM viewer",
    )
