"""DICOM files whose header and pixels don't fit: refused, and none hangs or fills the memory."""

from pathlib import Path

import numpy as np
import pytest

from ulvm.errors import InputError, PictureWarning
from ulvm.image import read_image

pytest.importorskip("pydicom", reason="needs the extra [dicom]")
pytest.importorskip("highdicom", reason="needs the extra [dicom]")

from pydicom import uid

from made_up_dicom import (
    LESION,
    compress,
    describe,
    encode,
    library_notices,  # noqa: F401 - a fixture
    photograph,
    save,
)


def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    made = photograph()
    made.SamplesPerPixel = 1  # of which a grey picture of a third of its pixels could be read
    with pytest.raises(InputError, match="RGB pixels of 1 samples each"):
        read_image(save(made, tmp_path / "a.dcm"))


def test_a_box_without_a_length_does_not_hang(tmp_path: Path) -> None:
    """pydicom 3.0 looks for the end of such a picture for ever."""
    coded = encode(LESION.image_rgb, "JPEG2000")
    assert coded[16:20] == b"ftyp"
    broken = coded[:12] + bytes(4) + coded[16:]
    made = compress(photograph(photometric="YBR_RCT"), uid.JPEG2000Lossless, broken)
    with pytest.raises(InputError, match="damaged"):
        read_image(save(made, tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    ("kind", "syntax"), [("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000Lossless)]
)
def test_sides_that_the_header_has_the_other_way_round(
    kind: str, syntax: str, tmp_path: Path
) -> None:
    """The rows were cut anew, into stripes."""
    made = compress(photograph(), syntax, encode(LESION.image_rgb, kind))
    made.Rows, made.Columns = made.Columns, made.Rows
    with pytest.raises(InputError, match="300×200 pixels, whose compressed picture has 200×300"):
        read_image(save(made, tmp_path / "a.dcm"))


def test_a_coded_picture_of_huge_sides_is_not_tried(tmp_path: Path) -> None:
    """A package tried what Pillow had refused; four kilobytes took all memory."""
    coded = encode(LESION.image_rgb, "JPEG")
    at = coded.index(b"\xff\xc0") + 5
    huge = coded[:at] + b"\xff\xff\xff\xff" + coded[at + 4 :]
    made = compress(photograph(photometric="YBR_FULL_422"), uid.JPEGBaseline8Bit, huge)
    with pytest.raises(InputError, match="whose compressed picture has 65535×65535"):
        read_image(save(made, tmp_path / "a.dcm"))


@pytest.mark.parametrize("segments", [1, 2, 10**4])
def test_a_palette_in_segments(segments: int, tmp_path: Path) -> None:
    """Ten thousand of six bytes each stood for gigabytes."""
    indices = LESION.image_rgb[..., 1].copy()
    made = describe(indices, "PALETTE COLOR", uid.VLPhotographicImageStorage)
    ramp = np.array([0, 1, 0] + [1, 255, 255 * 257] * segments, "<u2").tobytes()  # black to white
    for each in ("Red", "Green", "Blue"):
        setattr(made, f"{each}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"Segmented{each}PaletteColorLookupTableData", ramp)
    path = save(made, tmp_path / "a.dcm")
    if segments > 1:
        with pytest.raises(InputError, match="damaged"):
            read_image(path)
    else:
        found = read_image(path)
        np.testing.assert_array_equal(found, np.repeat(indices[..., None], 3, axis=2))


def test_eight_bits_that_are_said_to_be_sixteen_are_not_black(tmp_path: Path) -> None:
    colour = describe(LESION.image_rgb.astype(np.uint16), "RGB", uid.VLPhotographicImageStorage)
    indices = LESION.image_rgb[..., 1].copy()
    palette = describe(indices, "PALETTE COLOR", uid.VLPhotographicImageStorage)
    for each in ("Red", "Green", "Blue"):
        setattr(palette, f"{each}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = np.arange(256, dtype="<u2").tobytes()
        setattr(palette, f"{each}PaletteColorLookupTableData", table)
    for made, shown in ((colour, LESION.image_rgb), (palette, indices[..., None])):
        with pytest.warns(PictureWarning, match="8-bit samples: they are scaled by 255"):
            found = read_image(save(made, tmp_path / "a.dcm"))
        np.testing.assert_array_equal(found, np.broadcast_to(shown, found.shape))
