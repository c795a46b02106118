"""What a segmenter takes, and what its result can do: show itself, be saved, copied, outlined."""

import base64
import copy
import dataclasses
import io
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import ulvm
from ulvm import synthetic
from ulvm.engine import Engine
from ulvm.segmenter import Segmentation, Segmenter
from ulvm.use import NOTICE

UPRIGHT = synthetic.draw_lesion(3, (100, 150)).image_rgb


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return ulvm.load()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A PNG that lies on its side, and says so in its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.png"
    Image.fromarray(np.rot90(UPRIGHT).copy()).save(path, exif=exif)
    return path


def test_every_kind_of_source_gives_the_upright_mask(segmenter: Segmenter, photo: Path) -> None:
    wanted = segmenter(UPRIGHT).mask
    assert 0 < wanted.sum() < wanted.size
    content = photo.read_bytes()
    sources: list[Any] = [
        str(photo),
        photo,
        content,
        bytearray(content),
        memoryview(content),
        io.BytesIO(content),
        Image.open(photo),
        Image.open(photo).convert("RGB"),
        ImageOps.exif_transpose(Image.open(photo)),
        ulvm.read_image(photo),
        Image.fromarray(UPRIGHT),
        Image.fromarray(UPRIGHT).convert("RGBA"),
    ]
    for source in sources:
        found = segmenter(source)
        assert found.size_hw == (100, 150), source
        np.testing.assert_array_equal(found.mask, wanted)
        np.testing.assert_array_equal(np.asarray(found.image), UPRIGHT)
    with tempfile.TemporaryFile() as unnamed:
        unnamed.write(content)
        unnamed.seek(0)
        np.testing.assert_array_equal(segmenter(unnamed).mask, wanted)


def test_pillow_images_of_all_modes_are_read_like_files(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    colour = Image.fromarray(UPRIGHT)
    for mode in ("L", "P", "RGBA", "LA", "1", "I;16", "CMYK"):
        image = colour if mode == "I;16" else colour.convert(mode)
        if mode == "I;16":
            deep = np.asarray(colour.convert("L")).astype(np.uint16) * 257
            image = Image.fromarray(deep)
        ending = "tiff" if mode == "CMYK" else "png"
        if "A" in mode:
            image.putalpha(Image.new("L", image.size, 200))
        image.save(tmp_path / f"image.{ending}")
        expected = segmenter(tmp_path / f"image.{ending}")
        found = segmenter(image)
        np.testing.assert_array_equal(np.asarray(found.image), np.asarray(expected.image))


def test_what_was_turned_by_ulvm_is_not_turned_again(segmenter: Segmenter, photo: Path) -> None:
    once = ulvm.picture.read_picture(photo)
    assert segmenter(once).size_hw == (100, 150)
    assert segmenter(once.copy()).size_hw == (100, 150)


@pytest.mark.parametrize("name", [None, 3])
def test_a_file_without_a_name_is_called_the_picture(segmenter: Segmenter, name: Any) -> None:
    file = io.BytesIO(b"no picture at all")
    file.name = name  # type: ignore[misc]
    with pytest.raises(ulvm.InputError, match=r"^The picture is not"):
        segmenter(file)


def test_refused_sources(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ulvm.InputError, match=r"^File not found: .*photo\.jpg\. Check the path"):
        segmenter(tmp_path / "photo.jpg")
    (tmp_path / "text").write_text("words")
    with (
        (tmp_path / "text").open() as file,
        pytest.raises(ulvm.InputError, match=r"text was opened as text.* 'rb'"),
    ):
        segmenter(file)  # type: ignore[arg-type]
    with pytest.raises(ulvm.InputError, match="has no pixels"):
        segmenter(Image.new("RGB", (0, 5)))
    whole = io.BytesIO()
    Image.fromarray(UPRIGHT).save(whole, "PNG")
    with pytest.raises(ulvm.InputError, match="damaged"):
        segmenter(Image.open(io.BytesIO(whole.getvalue()[:3000])))


def shown_picture(shown: str) -> Image.Image:
    (encoded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_notebook_shows_the_overlay_the_finding_and_the_notice(segmenter: Segmenter) -> None:
    found = segmenter(UPRIGHT)
    shown = found._repr_html_()
    assert NOTICE in shown
    assert f"{100 * found.area_fraction:.1f} %" in shown
    assert "<script" not in shown
    assert "http" not in shown
    np.testing.assert_array_equal(
        np.asarray(shown_picture(shown)), ulvm.draw_overlay(UPRIGHT, found.mask)
    )
    large = segmenter(Image.fromarray(UPRIGHT).resize((3000, 2000)))
    assert max(shown_picture(large._repr_html_()).size) == 512
    assert len(large._repr_html_()) < 1_000_000


def make(mask: np.ndarray, **more: Any) -> Segmentation:
    """A segmentation with this mask, or with these labels."""
    return dataclasses.replace(ulvm.load()(UPRIGHT), mask=mask, **{"image": None, **more})


def test_an_empty_mask_and_a_mask_without_its_picture_are_shown() -> None:
    nothing = make(np.zeros((20, 30), bool), image=UPRIGHT[:20, :30])
    assert "No lesion found" in nothing._repr_html_()
    assert NOTICE in nothing._repr_html_()
    assert nothing.polygons() == []
    alone = make(np.ones((20, 30), bool))
    assert shown_picture(alone._repr_html_()).size == (30, 20)
    with pytest.raises(ulvm.InputError, match=r"does not hold its picture"):
        alone.overlay()


def test_overlay_is_that_of_draw_overlay(segmenter: Segmenter) -> None:
    found = segmenter(UPRIGHT)
    style = {"color_rgb": (255, 0, 0), "opacity": 0.5, "line_width": 3}
    overlay = found.overlay(**style)
    assert isinstance(overlay, Image.Image)
    expected = ulvm.draw_overlay(UPRIGHT, found.mask, **style)
    np.testing.assert_array_equal(np.asarray(overlay), expected)


def test_save_writes_the_mask_and_overwrites_only_its_own(
    segmenter: Segmenter, tmp_path: Path, photo: Path
) -> None:
    found = segmenter(photo)
    found.save(tmp_path / "new" / "mask.png")
    found.save(str(tmp_path / "new" / "mask.png"))
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "new" / "mask.png")) > 0, found.mask
    )
    before = photo.read_bytes()
    with pytest.raises(ulvm.InputError, match="was not written by ulvm"):
        found.save(photo)
    assert photo.read_bytes() == before
    with pytest.raises(ulvm.InputError, match=r"mask\.jpg does not end in \.png"):
        found.save("mask.jpg")
    labels = np.arange(600, dtype=np.uint8).reshape(20, 30) % 3
    several = make(labels != 0, labels=labels, threshold=None)
    several.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), labels)


def test_polygons_are_the_outlines_of_the_mask_or_of_one_class() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:12, 3:13] = 1
    labels[5:8, 5:8] = 0
    labels[12:15, 3:6] = 2
    several = make(labels != 0, labels=labels, threshold=None)
    ((outline, holes),) = several.polygons()
    assert outline.min(axis=0).tolist() == [3, 2]
    assert outline.max(axis=0).tolist() == [13, 15]
    assert sorted(holes[0].tolist()) == [[5, 5], [5, 8], [8, 5], [8, 8]]
    ((second, none),) = several.polygons(label=2)
    assert sorted(second.tolist()) == [[3, 12], [3, 15], [6, 12], [6, 15]]
    assert none == ()
    one = make(labels != 0)
    assert len(one.polygons(label=1)) == 1
    assert one.polygons(label=2) == []


def test_segmenters_and_segmentations_are_copied_and_pickled(segmenter: Segmenter) -> None:
    wanted = segmenter(UPRIGHT)
    for other in (
        copy.copy(segmenter),
        copy.deepcopy(segmenter),
        pickle.loads(pickle.dumps(segmenter)),
    ):
        assert isinstance(other.network, Engine)
        assert other.spec == segmenter.spec
        assert other.provenance == segmenter.provenance
        np.testing.assert_array_equal(other(UPRIGHT).mask, wanted.mask)
    again = pickle.loads(pickle.dumps(wanted))
    np.testing.assert_array_equal(again.probability, wanted.probability)
    assert again.to_dict() == wanted.to_dict()
    assert again._repr_html_() == wanted._repr_html_()
