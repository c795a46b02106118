"""HEIC photographs, made here by pillow-heif: colours, and turned once, whoever says how."""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ulvm.cli import main
from ulvm.errors import InputError
from ulvm.image import read_image
from ulvm.synthetic import draw_lesion

pytest.importorskip("pi_heif", reason="needs the extra [heic]")
pillow_heif = pytest.importorskip("pillow_heif", reason="makes the files of these tests")

PICTURE = draw_lesion(2, (120, 180), frame=False).image_rgb
ORIENTATION = 0x0112


def heic(picture: np.ndarray, *, orientation: int | None = None, **options: Any) -> bytes:
    image = Image.fromarray(picture)
    if orientation:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif.tobytes()
    content = io.BytesIO()
    pillow_heif.from_pillow(image).save(content, quality=95, **options)
    return content.getvalue()


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 4


def test_colours_of_a_path_bytes_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(PICTURE))
    near(read_image(path), PICTURE)
    near(read_image(path.read_bytes()), PICTURE)
    with path.open("rb") as file:
        near(read_image(file), PICTURE)


def test_transparency_is_put_on_white() -> None:
    alpha = np.zeros((*PICTURE.shape[:2], 1), np.uint8)
    alpha[:, 90:] = 255
    found = read_image(heic(np.concatenate([PICTURE, alpha], axis=2)))
    near(found[:, :80], np.full((120, 80, 3), 255))
    near(found[:, 100:], PICTURE[:, 100:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phones_photo_is_turned_once(orientation: int) -> None:
    """Phones write HEIC's own rotation and repeat it as EXIF: the second must be passed over."""
    content = heic(PICTURE, orientation=orientation)
    has_rotation = b"irot" in content or b"imir" in content
    assert has_rotation == (orientation != 1)  # so that this test is of what it says
    jpeg = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PICTURE).save(jpeg, "JPEG", quality=95, exif=exif.tobytes())
    near(read_image(content), read_image(jpeg.getvalue()))


def test_exif_alone_turns_nothing() -> None:
    """What EXIF says of the turn of a HEIC picture is for readers of EXIF, not of pixels."""
    content = heic(PICTURE, orientation=6).replace(b"irot", b"free")
    near(read_image(content), PICTURE)


def test_a_folder_of_a_phones_photos(tmp_path: Path) -> None:
    for name in ("a.HEIC", "b.heif"):
        (tmp_path / name).write_bytes(heic(PICTURE))
    done = CliRunner().invoke(main, ["predict", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_mask.png",
        "b_mask.png",
    ]


def test_damaged_photos_raise_nothing_else() -> None:
    content = heic(PICTURE)
    random = np.random.default_rng(0)
    for length in (13, 40, 200, len(content) // 2, len(content) - 20):
        with pytest.raises(InputError, match="damaged"):
            read_image(content[:length])
    for _ in range(40):
        damaged = bytearray(content)
        for place in random.integers(12, len(content), 8):
            damaged[place] = random.integers(256)
        with contextlib.suppress(InputError):
            read_image(bytes(damaged))


def test_without_the_extra_each_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    for name in ("a.heic", "b.HEIC"):
        (tmp_path / name).write_bytes(heic(PICTURE))
    done = CliRunner().invoke(main, ["predict", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    for name in ("a.heic", "b.HEIC"):
        assert f"{name} is HEIC" in done.stderr
    assert done.stderr.count("pip install '.[heic]'") == 2
